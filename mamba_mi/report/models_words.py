"""The tables of variants, in the report and for the README."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from mamba_mi.report.words import Columns, estimate, span

CAVEATS = ["No published weights were ever loaded: every format was written as its publisher's code and pages describe it, and "
           "read back; what a published file holds beyond that is not known.",
           "The deviation from float64 is our own implementation's; the one from an independent implementation is of random "
           "checkpoints in the published layout."]
PUBLISHED = ["variant", "what it is", "published as", "licence", "format"]
EXACT = ["variant", "embedded model", "recall", "experiments", "oracle", "float32 off the oracle", "float64 off the oracle",
         "real weights"]


def table(facts: Sequence[Mapping]) -> Columns:
    """What each variant is, and what is published of it."""
    rows = [[each["variant"], each["what"] + (f". {each['about']}" if each["about"] else ""),
             _checkpoints(each) or "nothing: no public checkpoint", each["licence"], each["format"]] for each in facts]
    return Columns(PUBLISHED, [False] * len(PUBLISHED), rows, "")


def exact(facts: Sequence[Mapping], summary: Sequence[Mapping] = ()) -> Columns:
    """What runs on each, and how exact it is; with a run's `summary` how far its own float32 is from float64."""
    rows = [_exactness(each) for each in facts]
    if not summary:
        return Columns(EXACT, [False] * len(EXACT), rows, "")
    off = {row["conditions"]["variant"]: estimate(row["mean"], row["ci_low"], row["ci_high"]) for row in summary}
    rows = [[*row, off[row[0]]] for row in rows]
    return Columns([*EXACT, "embedded, float32 off float64"], [False] * (len(EXACT) + 1), rows, "")


def sites(facts: Sequence[Mapping]) -> Columns:
    """The sites each variant has, and what a user may say of its checkpoints."""
    rows = [[each["variant"], " ".join(each["sites"]), " ".join(each["backends"]),
             "; ".join(f"model.{name}: {' or '.join(map(str, values))}" for name, values in each["options"].items()) or "none"]
            for each in facts]
    return Columns(["variant", "sites", "backends", "options"], [False] * 4, rows, "")


MEMORY = ["GB", "weights, float32", "bfloat16", "state, a row", "a pass, 64 × 32 tokens", "1 × 2,048", "all their logits",
          "patching, beside the weights", "the same, measured", "patching in all, float32", "bfloat16"]


def memory(footprints: Mapping[str, object], measured: Mapping[str, int]) -> Columns:
    """What each published Mamba takes; `measured` bytes by name, where they were."""
    rows = [[name, *(_gb(x) for x in (each.float32, each.bfloat16, each.state, each.short, each.long, each.logits_long, each.run)),
             _gb(measured[name]) if name in measured else "–", _gb(each.float32 + each.run), _gb(each.bfloat16 + each.run)]
            for name, each in footprints.items()]
    return Columns(MEMORY, [False, *[True] * (len(MEMORY) - 1)], rows, "")


def memory_markdown(footprints: Mapping[str, object], measured: Mapping[str, int]) -> str:
    """The table as the README has it."""
    return "\n".join(_lines(memory(footprints, measured)))


def _gb(size: int) -> str:
    return f"{size / 1e9:.3f}" if size < 1e8 else f"{size / 1e9:.2f}"


def findings(summary: Sequence[Mapping]) -> list[str]:
    """How exact float32 is over the variants, and where the tables are."""
    least, most = (pick(summary, key=lambda row: row["mean"]) for pick in (min, max))
    return [f"{len(summary)} variants: the float32 logits of their embedded models, or of an untrained one where none ships, are off "
            f"float64's by {_off(least)} to {_off(most)} of the largest on average (n = {span([row['n'] for row in summary])} prompts).",
            "What each variant is, what runs on it and how exact it is are three tables, what the published Mambas take of memory is a "
            "fourth: in report.html, and as Markdown in artifacts/models.json under \"markdown\" and \"memory\"."]


def _off(row: Mapping) -> str:
    return f"{estimate(row['mean'], row['ci_low'], row['ci_high'])} ({row['conditions']['variant']})"


def markdown(facts: Sequence[Mapping]) -> str:
    """The tables as the README has them."""
    return "\n".join(line for columns in (table(facts), exact(facts), sites(facts)) for line in (*_lines(columns), ""))


def _lines(columns: Columns) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns.headings, ["---"] * len(columns.headings), *columns.rows)]


def _checkpoints(each: Mapping) -> str:
    return ", ".join(f"{name} ({of['repo']}, {_count(of['parameters'])})" for name, of in each["checkpoints"].items())


def _exactness(each: Mapping) -> list[str]:
    embedded, recall, numerics = each["embedded"], each["embedded"]["recall"], each["numerics"]
    size = f"{embedded['parameters']:,} parameters"
    return [each["variant"], f"{embedded['name']}, {size}" if recall else f"none ships; here an untrained one, {size}",
            f"{recall['hit']:.3f} [{recall['ci_low']:.3f}, {recall['ci_high']:.3f}], n = {recall['n']}" if recall else "none",
            ", ".join(each["experiments"]), each["oracle"], f"{numerics['float32']:.0e}", f"{numerics['float64']:.0e}",
            each["real_weights"]]


def _count(parameters: int) -> str:
    """`129M`, `1.37B`."""
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"
