"""The table of variants, in the report and for the README."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from mamba_mi.report.words import Columns

CAVEATS = ["No published weights were ever loaded: every format was written as its publisher's code and pages describe it, and "
           "read back; what a published file holds beyond that is not known.",
           "The deviation from float64 is our own implementation's; the one from an independent implementation is of random "
           "checkpoints in the published layout."]
HEADINGS = ["variant", "published as", "licence", "format", "embedded model", "recall", "experiments", "oracle", "float32", "float64",
            "real weights"]


def table(facts: Sequence[Mapping]) -> Columns:
    """A row a variant."""
    return Columns(HEADINGS, [False] * len(HEADINGS), [_row(each) for each in facts], "")


def sites(facts: Sequence[Mapping]) -> Columns:
    """The sites each variant has, and what a user may say of its checkpoints."""
    rows = [[each["variant"], " ".join(each["sites"]), " ".join(each["backends"]),
             "; ".join(f"model.{name}: {' or '.join(map(str, values))}" for name, values in each["options"].items()) or "none"]
            for each in facts]
    return Columns(["variant", "sites", "backends", "options"], [False] * 4, rows, "")


def findings(summary: Sequence[Mapping]) -> list[str]:
    """How exact each variant's float32 is."""
    return [f"{row['conditions']['variant']}: float32 logits are off float64's by {row['mean']:.1e} of the largest "
            f"[{row['ci_low']:.1e}, {row['ci_high']:.1e}], n = {row['n']} prompts" for row in summary]


def markdown(facts: Sequence[Mapping]) -> str:
    """Both tables as the README has them."""
    return "\n".join(line for columns in (table(facts), sites(facts)) for line in (*_lines(columns), ""))


def _lines(columns: Columns) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns.headings, ["---"] * len(columns.headings), *columns.rows)]


def _row(each: Mapping) -> list[str]:
    embedded, recall, numerics = each["embedded"], each["embedded"]["recall"], each["numerics"]
    ids = ", ".join(f"{name} ({of['repo']}, {_count(of['parameters'])})" for name, of in each["checkpoints"].items())
    said = f"{each['variant']}: {each['what']}" + (f". {each['about']}" if each["about"] else "")
    return [said, ids or "nothing: no public checkpoint", each["licence"], each["format"], f"{embedded['name']}, {embedded['parameters']:,} parameters",
            f"{recall['hit']:.3f} [{recall['ci_low']:.3f}, {recall['ci_high']:.3f}], n = {recall['n']}",
            ", ".join(each["experiments"]), each["oracle"], f"{numerics['float32']:.0e}", f"{numerics['float64']:.0e}",
            each["real_weights"]]


def _count(parameters: int) -> str:
    """`129M`, `1.37B`."""
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"
