"""What experiment=classify found, in sentences and tables; and what the sets are called."""
from __future__ import annotations

from collections.abc import Mapping

from mamba_mi.data.questions import CATEGORIES
from mamba_mi.report.words import NOTHING, Columns

SKIPPED = "skipped"
NAMES = {"squad": "SQuAD", "hotpotqa": "HotpotQA", "triviaqa": "TriviaQA", "musique": "MuSiQue", "drop": "DROP",
         "natural_questions": "Natural Questions"}


def findings(account: Mapping, file: str) -> list[str]:
    """How full each category is, how many records were skipped, and where it all is."""
    target = account["target"]
    said = [f"{category}: {sum(parts.values())} of {target} questions ({_given(parts)})"
            + ("." if sum(parts.values()) == target else f", all that {_sets(parts)} had: more samples_per_dataset may find more.")
            for category, parts in kept(account).items()]
    read, skipped = sum(each["records"] for each in account["sources"].values()), sum(each["count"] for each in account["skipped"])
    return [*said, f"Of {read:,} records read {skipped:,} were skipped, each for a reason that is listed.",
            f"The questions are in {file} and in the .parquet beside it; dataset=classified reads them."]


def caveats(account: Mapping) -> list[str]:
    """What the categories rest on."""
    fired = sum(each["fired"] for each in account["rules"])
    guessed = sum(each["fired"] for each in account["rules"] if each["heuristic"])
    share = f"{guessed / fired:.0%}" if fired else "none"
    return [f"Heuristic rules put {guessed:,} of {fired:,} questions ({share}) into their category: sentences and words are counted, or cue words "
            "looked for. Nobody has read these questions.",
            "8 and 9 facts are Long Context and four hops are Three-Hop Reasoning: the categories leave this open.",
            "Natural Questions' context is the passage that holds the answer, not the page. HotpotQA's and MuSiQue's have their distractors.",
            "A share is of the records read, with a 95% interval over clusters (articles, or one answer's questions); a record that "
            "could not be read is one of its own. Of a streamed set the records are the first, no random sample."]


def listings(account: Mapping) -> list[tuple[str, Columns]]:
    """Set by category, why records were skipped, the rules, examples, sources."""
    skipped = [[NAMES[each["dataset"]], each["why"], f"{each['count']:,}"] for each in account["skipped"]]
    rules = [[str(i), each["rule"], each["when"], each["category"], "yes" if each["heuristic"] else "", f"{each['fired']:,}", f"{each['kept']:,}"]
             for i, each in enumerate(account["rules"], 1)]
    examples = [[each["category"], NAMES[each["source"]], each["rule"], each["question"], each["expected"], each["context"] or NOTHING]
                for each in account["examples"]]
    return [("Questions kept, of those found", matrix(account)),
            ("Skipped", _columns(["set", "why", "records"], skipped, 2)),
            ("The rules, in order: the first that fires decides, if its category is one of the set's",
             _columns(["", "rule", "when", "category", "heuristic", "fired", "kept"], rules, 0, 5, 6)),
            ("Examples", _columns(["category", "set", "rule", "question", "answer", "facts"], examples)),
            ("Read from", _columns(["set", "records", "source", "sha256"], [_source(name, each) for name, each in account["sources"].items()], 1))]


def matrix(account: Mapping) -> Columns:
    """A row a set, a column a category: `40 of 312`; – where the set has no such questions."""
    cells = {(each["dataset"], each["category"]): each for each in account["cells"]}
    columns = [*kept(account), SKIPPED]
    rows = [[NAMES[name], *(_cell(cells.get((name, column)), column) for column in columns)] for name in account["sources"]]
    return _columns(["set", *columns], rows, *range(1, len(columns) + 1))


def kept(account: Mapping) -> dict[str, dict[str, int]]:
    """Each category's questions in each set that has it, by category."""
    found: dict[str, dict[str, int]] = {category: {} for category in CATEGORIES}
    for cell in account["cells"]:
        if cell["category"] != SKIPPED:
            found[cell["category"]][cell["dataset"]] = cell["kept"]
    return {category: parts for category, parts in found.items() if parts}


def _cell(cell: Mapping | None, column: str) -> str:
    if cell is None:
        return NOTHING
    return f"{cell['found']:,}" if column == SKIPPED else f"{cell['kept']:,} of {cell['found']:,}"


def _given(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{NAMES[name]} {count}" for name, count in parts.items() if count) or "none"


def _sets(parts: Mapping[str, int]) -> str:
    return " and ".join(NAMES[name] for name in parts)


def _source(name: str, source: Mapping) -> list[str]:
    origin = source["origin"]
    said = f"{origin['hub']}, {origin['split']}, commit {(origin['commit'] or 'unknown')[:12]}" if origin else "a local file"
    return [NAMES[name], f"{source['records']:,}", said, source["fingerprint"][:12]]


def _columns(headings: list[str], rows: list[list[str]], *numeric: int) -> Columns:
    return Columns(headings, [i in numeric for i in range(len(headings))], rows, "")
