"""A summary of an information flow made up with the shape of real ones: the subject is read half-way up, past its slots."""
from __future__ import annotations

import math
from itertools import product

import numpy as np

METRIC = "relative_probability"
POLICIES = (("scan", "token"), ("scan", "token+conv"), ("conv", "token"), ("both", "token"))
SOURCES = ("none", "last", "second_to_last", "first", "subject", "relation", "relation_without_last", "context", "random",
           "beyond_conv")
SIZE = {"last": 55, "second_to_last": 9, "first": 4, "subject": 80, "relation": 64, "relation_without_last": 40, "context": 3,
        "random": 12, "beyond_conv": 2}  # at most, in %
CARRIED = {("scan", "token"): 0.25, ("scan", "token+conv"): 1.0, ("conv", "token"): 0.85, ("both", "token"): 0.98}


def flow_summary(layers=6, windows=(2, 3), sources=SOURCES, timescales=("all",), splits=("all", "subject_first", "subject_later"),
                 seed=0) -> list[dict]:
    random, rows = np.random.default_rng(seed), []
    for source, policy, timescale, size, split in product(sources, POLICIES, timescales, windows, splits):
        for start in range(layers - size + 1):
            at = (start + size / 2) / layers
            effect = -SIZE.get(source, 70 if "+" in source else 1) * math.exp(-((at - 0.55) / 0.22) ** 2)
            effect *= CARRIED[policy] if source in ("subject", "value") else 1
            effect *= {"all": 1, "slow": 0.9, "mid": 0.15, "fast": 0.05}[timescale]
            noise = 0.0 if source == "none" else 1.0 + abs(effect) / 12
            rows += _rows(random, {"query": "last", "source": source, "conv": policy[0], "span": policy[1], "timescale": timescale,
                                   "window_size": size, "window_start": start, "split": split}, effect, noise)
    return rows


def _rows(random, conditions, effect, noise) -> list[dict]:
    n = {"all": 200, "subject_first": 60, "subject_later": 140}[conditions["split"]]
    n -= 60 * (conditions["source"] in ("context", "beyond_conv") and conditions["split"] != "subject_first")
    effect = min(effect + noise * random.normal() / 6, 0.0)
    return [_row(conditions, name, n, effect * scale, noise * scale) for name, scale in ((METRIC, 1.0), ("hit", 0.011))]


def _row(conditions, name, n, mean, half) -> dict:
    low, high = (mean, mean) if not half else (mean - 1.1 * half, mean + 0.9 * half)
    p = 0.001 if abs(mean) > 2 * half > 0 else 1.0
    return {"conditions": conditions, "metric": name, "n": n, "n_clusters": n // 2, "mean": mean, "ci_low": low, "ci_high": high,
            "p": p, "p_adjusted": p, "p_bh": p, "effect_size": None, "excluded": 0, "control_p": None, "note": None}
