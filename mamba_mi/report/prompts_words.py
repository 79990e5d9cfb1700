"""What a report says of generated prompts."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from mamba_mi.report.words import NOTHING, Columns, span

LEXICONS = {"english": "plain English", "world": "the words of the embedded world"}
SHOWN = 3  # answers that the table names


def lexicon(name: str) -> str:
    return LEXICONS[name]


def headline(summary: Sequence[dict]) -> list[dict]:
    """A row a level, its counts as bounds."""
    levels: dict[str, dict] = {}
    for row in summary:
        said = levels.setdefault(row["conditions"]["task"], {"conditions": {"level": row["conditions"]["task"].replace("_", " ")}})
        said.update(n=row["n"], **{row["metric"]: span([row["least"], row["most"]])})
    return list(levels.values())


def findings(summary: Sequence[dict], left_out: Mapping[str, str]) -> list[str]:
    """How many prompts there are, and what is not."""
    facts = [row for row in summary if row["metric"] == "facts"]
    total, levels = sum(row["n"] for row in facts), len(facts)
    return [f"{total} prompts of {levels} level{'s' * (levels > 1)}, no text twice, each with a partner of one changed fact.",
            *(f"{level.replace('_', ' ').capitalize()} is left out: {why}." for level, why in left_out.items())]


def caveats(name: str) -> list[str]:
    """What the prompts are not."""
    said = ["The prompts are made by rule from a few sentence patterns: how well a model does on them says little of other wording.",
            "Facts are told facts: num_facts counts the sentences that tell one, needed or not; num_hops those that the answer is "
            "chained from, none where it is reckoned."]
    if name == "world":
        said.append("In simple recall, two hop and three hop nothing is told: the answer follows from what the embedded models were "
                    "trained on. There are no hand-written prompts, since the world has no other sentences.")
    return said


def table(levels: Sequence[Mapping]) -> Columns:
    """A row a level, with its answers."""
    rows = [[each["category"], str(each["n"]), str(each["originals"]), *(_bounds(each[name]) for name in ("facts", "hops", "words")),
             str(len(each["answers"])), _commonest(each)] for each in levels]
    return Columns(["level", "n", "by hand", "facts", "hops", "words", "different answers", "commonest answers"],
                   [False, True, True, True, True, True, True, False], rows, "")


def examples(records: Sequence[Mapping]) -> Columns:
    """The first prompt of every pattern of every level, with what is changed in its partner."""
    first: dict[tuple, Mapping] = {}
    for record in records:
        first.setdefault((record["category"], record["pattern"]), record)
    rows = [[category, pattern, each["question"], each["expected"], _changed(each), each["context"] or NOTHING]
            for (category, pattern), each in first.items()]
    return Columns(["level", "pattern", "question", "answer", "in the partner", "facts"], [False] * 6, rows, "")


def _changed(record: Mapping) -> str:
    (start, end), partner = record["subject"], record["corrupt"]
    lo, hi = partner["subject"]
    return f"{record['prompt'][start:end]} → {partner['prompt'][lo:hi]}: {partner['expected']}"


def _bounds(values: Sequence[int] | None) -> str:
    return NOTHING if values is None else span(values)


def _commonest(each: Mapping) -> str:
    shown = list(each["answers"].items())[:SHOWN]
    return ", ".join(f"{answer} ({count / each['n']:.0%})" for answer, count in shown)
