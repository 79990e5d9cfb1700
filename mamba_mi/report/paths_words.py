"""What the two paths of a model answered, in sentences and tables: levels of each, and how they differ."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from mamba_mi.report.words import Columns, equals, estimate, fine, number, too_few

ORDINARY, ATTENTION = "ordinary", "attention"
LONG = 48  # characters of a prompt in that table: its end
SHOWN = 20  # mismatches in the report; all are in artifacts/mismatches.json
LEVELS = ("conditions", "metric", "n", "n_clusters", "mean", "ci_low", "ci_high", "hits", "wilson_low", "wilson_high")
DIFFERENCES = ("conditions", "metric", "n", "mean", "ci_low", "ci_high", "sd", "largest", "over_tolerance")
ORDER = ("hit", "probability", "max_probability", "false_probability", "target_logprob", "logit_deviation")
SAME_BITS = ("Both paths gave the same bits on every prompt: they ran the same arithmetic (retention makes its matrix on both, and for "
             "short prompts in one piece), and that they agree says nothing. backend=reference goes token by token.")
ASSERTED = {"probability": "the answer's probability", "max_probability": "the largest probability"}


def levels(summary: Sequence[Mapping]) -> list[str]:
    """Accuracy and mean probabilities on the ordinary path, and the attention path's accuracy."""
    found = {(row["conditions"]["path"], row["metric"]): row for row in summary if row["mean"] is not None}
    hit, beside = (found.get((path, "hit")) for path in (ORDINARY, ATTENTION))
    if hit is None:
        return []
    n = f"n = {hit['n']:,}" + (f" prompts of {hit['n_clusters']:,} subjects" if hit["n_clusters"] < hit["n"] else " prompts")
    counted = beside and "accuracy" in beside  # not where the runs of a sweep were put together
    ends = (hit["wilson_low"], hit["wilson_high"]) if counted else (hit["ci_low"], hit["ci_high"])
    told = f"The answer's first token is the model's first choice on {_percent(hit['mean'], *ends)}, {n}"
    if counted:
        told += (f"; on the attention path {_percent(beside['accuracy'], beside['wilson_low'], beside['wilson_high'])}. Hits on both paths: {beside['hits_on_both']:,}, on the ordinary one alone: {beside['ordinary_only']:,}, on the "
                 f"attention path alone: {beside['attention_only']:,}, on neither: {beside['neither']:,}")
    said = {"probability": "its probability", "max_probability": "the first choice's probability",
            "target_logprob": "the whole answer's log-probability"}
    means = [f"{what} {_estimate(found[ORDINARY, metric])}" for metric, what in said.items() if (ORDINARY, metric) in found]
    return [f"{told}.", f"On average, ordinary path: {'; '.join(means)}."] if means else [f"{told}."]


def differences(summary: Sequence[Mapping]) -> list[str]:
    """How far the attention path is off, and whether that passes."""
    rows = {row["metric"]: row for row in summary if row["conditions"]["path"] == ATTENTION}
    told = [_difference(rows[metric], what) for metric, what in ASSERTED.items() if "over_tolerance" in rows.get(metric, {})]
    if "predictions_differ" in rows.get("hit", {}):
        row = rows["hit"]
        wrong = row["ordinary_only"] + row["attention_only"]
        told.append(f"The first choice differs on {row['predictions_differ']:,} of {row['n']:,} prompts, hit or miss on {wrong:,}.")
    if "largest" in rows.get("logit_deviation", {}):
        told.append(f"Of all logits at the answer's position none differs by more than {fine(rows['logit_deviation']['largest'])} "
                    f"(mean over prompts of the largest: {fine(rows['logit_deviation']['mean'])}).")
    return told


def _difference(row: Mapping, what: str) -> str:
    passed = "within" if row["over_tolerance"] == 0 else f"{row['over_tolerance']:,} prompts beyond"
    ends = "" if row["ci_low"] is None else f" [{fine(row['ci_low'])}, {fine(row['ci_high'])}]"
    same = "" if row["p_tost"] is None else f"; the mean is equivalent to 0 within it, TOST p {equals(row['p_tost'])}"
    if row["p_tost"] is not None and row["p_tost"] >= 0.05:
        same = f"; that the mean lies within it is not shown, TOST p {equals(row['p_tost'])}"
    return (f"Attention less ordinary, {what}: mean {fine(row['mean'])}{ends}, from {fine(row['min'])} to {fine(row['max'])}; "
            f"{row['over_0.1']:,} differ by more than 0.1; {passed} the tolerance of {row['tolerance']:g}{same}.")


def verdict(summary: Sequence[Mapping]) -> str:
    """One line where a difference of the two paths exceeds the tolerance; empty where none does."""
    rows = [row for row in summary if row["metric"] in ASSERTED and row.get("over_tolerance")]
    if not rows:
        return ""
    row = max(rows, key=lambda row: row["largest"])
    return (f"the two paths differ by up to {fine(row['largest'])} in {ASSERTED[row['metric']]}, at {row['largest_at']!r}; "
            f"{row['over_tolerance']:,} of {row['n']:,} prompts exceed method.tolerance={row['tolerance']:g}. With dtype=float64 "
            f"rounding goes away and a fault stays; method.tolerance={2 * row['largest']:.1g} would accept it")


def listed(mismatches: Sequence[Mapping]) -> list[tuple[str, Columns]]:
    """The first of the prompts on which the paths' first choices differ, as a table of the report."""
    if not mismatches:
        return []
    headings = ["prompt", "text", "answer", "p, ordinary", "p, attention", "first choice, ordinary", "first choice, attention"]
    rows = [[m["prompt_id"], m["text"] if len(m["text"]) <= LONG else f"… {m['text'][-LONG:]}", repr(m["target"]),
             *(fine(m[path]["true_prob"]) for path in (ORDINARY, ATTENTION)),
             *(f"{m[path]['pred']!r} {fine(m[path]['max_prob'])}{' (hit)' * m[path]['hit']}" for path in (ORDINARY, ATTENTION))]
            for m in mismatches[:SHOWN]]
    numeric = [heading.startswith("p,") for heading in headings]
    what = f"first {SHOWN} of {len(mismatches):,}, all in artifacts/mismatches.json" if len(rows) < len(mismatches) else f"all {len(rows)}"
    return [(f"Prompts whose first choice differs ({what})", Columns(headings, numeric, rows, ""))]


def table_of_levels(summary: Sequence[Mapping]) -> list[dict]:
    """The rows of the ordinary path."""
    return _table(summary, ORDINARY, LEVELS)


def table_of_differences(summary: Sequence[Mapping]) -> list[dict]:
    """The rows of the attention path: its numbers less the ordinary path's."""
    return _table(summary, ATTENTION, DIFFERENCES)


def caveats(summary: Sequence[Mapping]) -> list[str]:
    """What a reader must know of both experiments."""
    told = ["A hit is the answer's first token as first choice; of an answer of several tokens the rest may still be missed "
            "(target_logprob is of all of them).",
            "Rows of the ordinary path are levels and are tested against nothing; rows of the attention path are its numbers less "
            "the ordinary path's. Their intervals resample subjects; Wilson's takes every prompt for independent.",
            "Both paths share everything but the scan: that they agree says the matrix is the scan, not that either is the "
            "published model. The deviation from a float64 reference above is of the ordinary path."]
    n = max((row["n"] for row in summary), default=0)
    return too_few(n) + ([SAME_BITS] if _same_bits(summary) else []) + told


def _same_bits(summary: Sequence[Mapping]) -> bool:
    """Whether no prompt had any other number on the attention path."""
    apart = [row for row in summary if row["conditions"]["path"] == ATTENTION]
    return bool(apart) and all(row["mean"] == row["ci_low"] == row["ci_high"] == 0 for row in apart)


def _estimate(row: Mapping) -> str:
    return estimate(row["mean"], row["ci_low"], row["ci_high"])


def _table(summary: Sequence[Mapping], path: str, keys: Sequence[str]) -> list[dict]:
    rows = [row for row in summary if row["conditions"]["path"] == path]
    rows.sort(key=lambda row: ORDER.index(row["metric"]) if row["metric"] in ORDER else len(ORDER))
    return [{key: row[key] for key in keys if key in row} for row in rows]


def _percent(share_: float, low: float | None, high: float | None) -> str:
    ends = "" if low is None else f" [{number(100 * low)}, {number(100 * high)}]"
    return f"{number(100 * share_)}%{ends}"
