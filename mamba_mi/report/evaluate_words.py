"""What a capability assessment found, in sentences and tables for a reader who has met none."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mamba_mi.data.questions import CATEGORIES
from mamba_mi.report.words import ALPHA, Columns, equals, number, too_few

ALL = "all categories"
NOTHING, SHUFFLED, CLEAN = "nothing", "shuffled answers", "clean run"  # what a row's value is compared with
KINDS = {"custom": "custom prompts", "dataset": "prompts of the data set"}
FEW = 10  # prompts of a category under which its share says little
MOST = 8  # categories named in a sentence
EACH, LONG = 2, 64  # examples of a category, and characters of a text in them
PASSED = {"\n": "a new line", " ": "the next word"}


def data(knobs, configured: str) -> str:
    """Where the prompts are from."""
    mine = f"custom prompts (the file {knobs.path})" if knobs.path else "custom prompts (made by the generator, as no file was given)"
    theirs = f"prompts of the data set {configured}"
    return {"custom": mine, "dataset": theirs, "both": f"{mine}, and {theirs}"}[knobs.prompts]


def setting(knobs, stops: Sequence[str], left_out: Mapping[tuple[str, str], int]) -> dict[str, str]:
    """How the prompts were chosen and answered."""
    ends = ", ".join(PASSED.get(stop, repr(stop)) for stop in stops)
    said = {"answers": f"the most probable token each time, up to {ends}, at most {knobs.max_new_tokens}",
            "shuffled": f"{knobs.shuffles:,} random orders of the right answers within a category"}
    if any(left_out.values()):
        said["left out"] = f"{sum(left_out.values()):,} prompts beyond {knobs.max_per_category} of their category"
    return said


def levels(summary: Iterable[Mapping], metric: str) -> dict[tuple[str, str], Mapping]:
    """The rows that say how much is right, by kind and category: the whole of a kind first, then from simple to hard."""
    rows = [row for row in summary if row["metric"] == metric and row["conditions"]["against"] == NOTHING]
    rows.sort(key=lambda row: (row["conditions"]["prompts"], _place(row["conditions"]["category"])))
    return {(row["conditions"]["prompts"], row["conditions"]["category"]): row for row in rows}


def _place(category: str) -> tuple[int, str]:
    known = (ALL, *CATEGORIES)
    return (known.index(category) if category in known else len(known)), category


def profile(summary: Sequence[Mapping]) -> list[dict]:
    """A row a category: the share of exact answers with its interval, the other metrics, and what shuffled answers reach."""
    firsts, f1s, tested = levels(summary, "first_token"), levels(summary, "f1"), against_shuffled(summary)
    out = []
    for key, row in levels(summary, "exact_match").items():
        low, high = _ends(row)
        test = tested.get(key, {})
        out.append({"conditions": dict(zip(("prompts", "category"), key, strict=True)), "metric": "exact_match", "n": row["n"],
                    "mean": row["mean"], "ci_low": low, "ci_high": high, "first_token": firsts[key]["mean"], "f1": f1s[key]["mean"],
                    "shuffled": row.get("control_mean"), "effect_size": test.get("effect_size"), "p_shuffled": row.get("p_shuffled", test.get("p_adjusted"))})
    return out


def findings(summary: Sequence[Mapping]) -> list[str]:
    """How much is right in all, where most and least, what is no better than shuffled, and what went wrong with the rest."""
    rows = levels(summary, "exact_match")
    return [line for kind in KINDS if (kind, ALL) in rows for line in _of_kind(kind, rows, summary)] + _interventions(summary)


def _of_kind(kind: str, rows: Mapping, summary) -> list[str]:
    whole, first, f1 = (levels(summary, metric)[kind, ALL] for metric in ("exact_match", "first_token", "f1"))
    what = KINDS[kind]
    by_chance = "" if whole.get("control_mean") is None else (
        f" Held against other prompts' right answers, the same answers would be right on {_percent(whole['control_mean'])}"
        f"{_judged(whole)}.")
    told = [f"Of the {what}, the model answers {_share(whole)} rightly, word for word.{by_chance}",
            f"The right answer's first token is its first choice on {_share(first)}; in F1, which also counts an answer that is right "
            f"in part, it reaches {_mean(f1)}."]
    return [*told, *_best_and_worst(kind, rows), *_by_chance(kind, rows, summary), *_troubles(what, whole)]


def _best_and_worst(kind: str, rows: Mapping) -> list[str]:
    known = {name: row for (of, name), row in rows.items() if of == kind and name != ALL}
    if len(known) < 2:
        return []
    most, least = (pick(row["mean"] for row in known.values()) for pick in (max, min))
    if most == least:
        return [f"No category stands out: {_percent(most)} in each of the {len(known)}."]
    best, worst = ({name: row for name, row in known.items() if row["mean"] == end} for end in (most, least))
    return [f"Most is right in {_alike(best)}; least in {_alike(worst)}."]


def _alike(rows: Mapping[str, Mapping]) -> str:
    """Categories of one share."""
    row = next(iter(rows.values()))
    return f"{_names(list(rows))}: {_share(row) if len(rows) == 1 else _percent(row['mean']) + ' each'}"


def _by_chance(kind: str, rows: Mapping, summary) -> list[str]:
    tested = against_shuffled(summary)
    names = [name for (of, name), row in rows.items() if of == kind and name != ALL
             and _no_better_than_shuffled(row, tested.get((of, name)))]
    if not names:
        return []
    return [f"No better than shuffled answers, as far as can be told from so few prompts: {_names(names)}. What is right there may be "
            "chance, or a word the model says to everything."]


def _no_better_than_shuffled(row: Mapping, test: Mapping | None) -> bool:
    """By the permutation test; where runs were put together, by the paired one. What was not tested is not said to be so."""
    p = row.get("p_shuffled", test and test["p_adjusted"])
    return p is not None and (p >= ALPHA or test["mean"] <= 0)


def _troubles(what: str, whole: Mapping) -> list[str]:
    counted = {"begun_only": "began with the right token and went wrong or on after it", "empty": "were empty, which counts as wrong",
               "unfinished": "had not ended when they were cut off (method.max_new_tokens, method.stop)"}
    said = [f"{whole[key]} {text}" for key, text in counted.items() if whole.get(key)]
    return [f"Of {whole['n']} answers to the {what}, {'; '.join(said)}."] if said else []


def _interventions(summary) -> list[str]:
    rows = [row for row in summary if row["metric"] == "exact_match" and row["conditions"]["category"] == ALL
            and row["conditions"]["against"] == CLEAN]
    return [f"The interventions change the share of the {KINDS[row['conditions']['prompts']]} that is answered rightly by {_points(row)} "
            f"points (n = {row['n']}; p {equals(row['p'])})." for row in rows]


def caveats(summary: Sequence[Mapping], most: int) -> list[str]:
    """What a reader must know of such numbers."""
    rows = levels(summary, "exact_match")
    n = min((row["n"] for (_, name), row in rows.items() if name == ALL), default=0)
    small = [name for (_, name), row in rows.items() if name != ALL and row["n"] < FEW]
    alone = [name for key, row in rows.items() for name in key[1:] if row.get("control_mean") is None and name != ALL]
    told = [f"Fewer than {FEW} prompts: {_names(small)}. Read their shares with their intervals or not at all."] if small else []
    told += [f"Nothing to shuffle with: {_names(alone)}, each with one prompt."] if alone else []
    return [*too_few(n), *told,
            "A whole answer is compared without case, punctuation, articles and spare spaces, with every right answer that is named, and "
            "never looked for inside a longer text: one that goes on after the right word is wrong as a whole, and partly right in F1.",
            "The first token alone is a weaker test: several answers may begin with it. What a token is depends on the tokenizer, so first "
            "tokens and log-probabilities of models with different tokenizers do not compare; whole answers do, unless one ends them elsewhere.",
            f"An answer of more than {most} tokens cannot be given at all (method.max_new_tokens).",
            "Shares of a category carry Wilson's interval, and p is a permutation test, adjusted over the categories (Holm): both take every "
            "prompt for independent. F1's intervals and the paired tests of summary.json resample clusters (subjects). Effect sizes are of "
            "right less shuffled, prompt by prompt, over its standard deviation.",
            "A model may be right for other reasons than the category's name says, and wrong because of the form of the question alone."]


def examples(answers: Sequence[Mapping]) -> list[tuple[str, Columns]]:
    """Some answers that are right and some that are wrong, of each category."""
    parts = {"right": [a for a in answers if a["exact_match"] == 1], "wrong": [a for a in answers if a["exact_match"] == 0]}
    return [(f"Answers that are {name} ({len(shown)} of {len(found):,}, all in artifacts/answers.json)", _listed(shown))
            for name, found in parts.items() if (shown := _some(found))]


def _some(found: Sequence[Mapping]) -> list[Mapping]:
    taken: dict[tuple, list] = {}
    for each in sorted(found, key=lambda a: (a["prompts"], _place(a["category"]), a["prompt_id"])):
        taken.setdefault((each["prompts"], each["category"]), []).append(each)
    return [each for several in taken.values() for each in several[:EACH]]


def _listed(found: Sequence[Mapping]) -> Columns:
    rows = [[a["category"], _short(a["prompt"]), _begun(" | ".join([a["expected"], *a["alternatives"]])), repr(_begun(a["answer"])),
             number(a["first_token"], 0), number(a["f1"]), number(a["target_logprob"])] for a in found]
    headings = ["category", "prompt", "right answer", "the model's", "first token", "F1", "log p of the right"]
    return Columns(headings, [False] * 4 + [True] * 3, rows, "")


def _short(text: str) -> str:
    """A prompt's end, on one line."""
    line = " ⏎ ".join(text.split("\n"))
    return line if len(line) <= LONG else f"… {line[-LONG:]}"


def _begun(text: str) -> str:
    return text if len(text) <= LONG else f"{text[:LONG]} …"


def against_shuffled(summary) -> dict[tuple[str, str], Mapping]:
    return {(row["conditions"]["prompts"], row["conditions"]["category"]): row for row in summary
            if row["metric"] == "exact_match" and row["conditions"]["against"] == SHUFFLED}


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"{', '.join(map(repr, names[:MOST]))}{more}"


def _ends(row: Mapping) -> tuple[float | None, float | None]:
    """Wilson's interval of what was counted; where runs were put together, the one over clusters."""
    return row.get("wilson_low", row["ci_low"]), row.get("wilson_high", row["ci_high"])


def _share(row: Mapping) -> str:
    low, high = _ends(row)
    between = "" if low is None else f" [{number(100 * low)}, {number(100 * high)}]"
    counted = f"{row['hits']} of {row['n']}" if "hits" in row else f"n = {row['n']}"
    return f"{_percent(row['mean'])}{between} ({counted})"


def _mean(row: Mapping) -> str:
    between = "" if row["ci_low"] is None else f" [{number(row['ci_low'])}, {number(row['ci_high'])}]"
    return f"{number(row['mean'])}{between}"


def _points(row: Mapping) -> str:
    between = "" if row["ci_low"] is None else f" [{number(100 * row['ci_low'])}, {number(100 * row['ci_high'])}]"
    return f"{number(100 * row['mean'])}{between}"


def _judged(row: Mapping) -> str:
    p = row.get("control_p")
    return "" if p is None else f" (permutation p {equals(p)})"


def _percent(share: float) -> str:
    return f"{number(100 * share)}%"
