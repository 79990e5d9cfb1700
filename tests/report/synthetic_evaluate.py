"""The summary of a capability assessment, made up."""
from __future__ import annotations

from mamba_mi.data.questions import CATEGORIES
from mamba_mi.measure.stats import wilson
from mamba_mi.report.evaluate_words import ALL, NOTHING, SHUFFLED

EXAMPLES = {"custom": CATEGORIES, "dataset": ("profession", "capital", "place of birth")}


def level(kind: str, category: str, metric: str, hits: int, n: int, *, counted: bool = True, **more) -> dict:
    """A row that says how much is right; `counted` as in a run, not as in runs put together."""
    low, high = (float(end) for end in wilson(hits, n))
    row = {"conditions": {"prompts": kind, "category": category, "against": NOTHING}, "metric": metric, "n": n, "n_clusters": n,
           "mean": hits / n, "ci_low": max(0.0, hits / n - 0.1), "ci_high": min(1.0, hits / n + 0.1), "effect_size": None,
           "p": None, "p_adjusted": None, "p_bh": None, "control_p": None}
    if counted:
        row |= {"control_mean": 0.1, "control_low": 0.05, "control_high": 0.2, "control_p": 0.001, "p_shuffled": 0.004}
    if counted and metric != "f1":
        row |= {"hits": hits, "wilson_low": low, "wilson_high": high}
    if counted and metric == "exact_match":
        row |= {"empty": 0, "unfinished": 0, "begun_only": 0}
    return row | more


def against(row: dict, p: float | None = 0.004) -> dict:
    """The row that compares a level with the shuffled answers."""
    conditions = {**row["conditions"], "against": SHUFFLED}
    return {"conditions": conditions, "metric": row["metric"], "n": row["n"], "n_clusters": row["n"], "mean": row["mean"] - 0.1,
            "ci_low": row["ci_low"] - 0.1, "ci_high": row["ci_high"] - 0.1, "effect_size": 1.4, "p": p, "p_adjusted": p, "p_bh": p,
            "control_p": None}



def evaluate_summary(categories=EXAMPLES, *, counted: bool = True) -> list[dict]:
    rows = []
    for kind, names in categories.items():
        for number, name in enumerate((ALL, *names)):
            n = 100 * len(names) if name == ALL else 100
            for metric, share in (("first_token", 0.9), ("exact_match", 0.7), ("f1", 0.8)):
                hits = round(n * share * (1 - 0.9 * number / (len(names) + 1)))
                rows.append(level(kind, name, metric, hits, n, counted=counted))
                rows.append(against(rows[-1]))
    return rows
