"""The counts of an assessment: how many answers are right, empty or cut off, and how many would be if they were shuffled.

Shape legend: S draws, M metrics of scoring.METRICS.
"""
from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mamba_mi.experiments import UNTESTED
from mamba_mi.measure.effects import PREDICTION
from mamba_mi.measure.generation import Ends
from mamba_mi.measure.scoring import METRICS
from mamba_mi.measure.shuffling import Shuffled
from mamba_mi.measure.stats import holm, wilson
from mamba_mi.report.evaluate_words import ALL, CLEAN, NOTHING, levels


class _Chance(NamedTuple):
    """Sums over the prompts of a group: their scores in every draw, and their baselines, of as many as have one."""

    drawn_SM: np.ndarray
    baseline_M: np.ndarray
    compared: int


class Tally:
    """Every prompt's answer and marks in the clean run, and what of them is right by chance."""

    def __init__(self, effects: pa.Table, shuffled: Shuffled, ends: Ends, most: int):
        self.shuffled, self.ends, self.most = shuffled, ends, most
        self.given, self.scored = answers_given(effects), marks(effects)

    def members(self, kind: str, category: str) -> list[str]:
        """The prompts of a category, or of all of a kind."""
        return [name for name, of in self.scored.items() if of["prompts"] == kind and category in (ALL, of["category"])]

    @cached_property
    def _chances(self) -> dict[tuple[str, str], _Chance]:
        found: dict[tuple[str, str], _Chance] = {}
        for name, of in self.scored.items():
            said = self.ends.said(self.given[name])
            drawn_SM, baseline_M = self.shuffled.scores(name, said), self.shuffled.baseline(name, said)
            mine = _Chance(drawn_SM, np.zeros(len(METRICS)) if baseline_M is None else baseline_M, int(baseline_M is not None))
            for key in ((of["prompts"], of["category"]), (of["prompts"], ALL)):
                found[key] = _Chance(*(x + y for x, y in zip(found[key], mine, strict=True))) if key in found else mine
        return found

    def chance(self, kind: str, category: str, metric: int, right: float) -> dict[str, Any]:
        """What the shuffled answers reach, over the draws, and the share of these that reach what the true ones do (`right` is
        that score's sum); nothing where no prompt has another to be held against."""
        drawn_SM, baseline_M, compared = self._chances[kind, category]
        if not compared:
            return {}
        n, drawn_S = len(self.members(kind, category)), drawn_SM[:, metric]
        low, high = np.quantile(drawn_S / n, [0.025, 0.975])
        return {"control_mean": float(baseline_M[metric] / compared), "control_low": float(low), "control_high": float(high),
                "control_p": float((1 + (drawn_S >= right - 1e-9).sum()) / (1 + len(drawn_S)))}

    def troubles(self, names: list[str]) -> dict[str, int]:
        """How many answers are empty, had not ended, or began rightly and are wrong as a whole."""
        given = [self.given[name] for name in names]
        return {"empty": sum(not self.ends.text(ids).strip() for ids in given),
                "unfinished": sum(len(ids) == self.most and not self.ends.met(ids) for ids in given),
                "begun_only": sum(self.scored[name]["first_token"] > self.scored[name]["exact_match"] for name in names)}


def complete(rows: list[dict], tally: Tally) -> list[dict]:
    """The summary's rows, those of levels with their counts, intervals and what chance reaches."""
    for row in rows:
        kind, category, against = row["conditions"].values()
        if against == NOTHING:
            row.update(UNTESTED, **_level(row, tally, kind, category))
    for kind, metric in sorted({(row["conditions"]["prompts"], row["metric"]) for row in rows}):
        _adjust([row for (of, _), row in levels(rows, metric).items() if of == kind and "control_p" in row])
    return rows


def _level(row: dict, tally: Tally, kind: str, category: str) -> dict[str, Any]:
    metric = row["metric"]
    if metric not in METRICS:
        return {}
    names = tally.members(kind, category)
    right = sum(tally.scored[name][metric] for name in names)
    told = tally.chance(kind, category, METRICS.index(metric), right)
    if metric != "f1":
        low, high = wilson(round(right), len(names))
        told |= {"hits": round(right), "wilson_low": float(low), "wilson_high": float(high)}
    return told | (tally.troubles(names) if metric == "exact_match" else {})


def _adjust(rows: list[dict]) -> None:
    """Of one metric and kind: `p_shuffled`, the permutation test's p, over its categories adjusted (Holm)."""
    parts = [row for row in rows if row["conditions"]["category"] != ALL]
    for row, p in zip(parts, holm([row["control_p"] for row in parts]), strict=True):
        row["p_shuffled"] = float(p)
    for row in rows:
        row.setdefault("p_shuffled", row["control_p"])


def answers_given(effects: pa.Table) -> dict[str, tuple[int, ...]]:
    """The tokens of every prompt's answer in the clean run."""
    mine = effects.filter((pc.field("metric") == PREDICTION) & (pc.field("against") == NOTHING)).sort_by("position")
    found = defaultdict(list)
    for name, token in zip(mine["prompt_id"].to_pylist(), mine["value"].to_pylist(), strict=True):
        found[name].append(int(token))
    return {name: tuple(ids) for name, ids in found.items()}


def marks(effects: pa.Table) -> dict[str, dict]:
    """The metrics of every prompt in the clean run, with its kind (`prompts`) and category."""
    found: dict[str, dict] = {}
    for row in effects.filter((pc.field("metric") != PREDICTION) & (pc.field("against") != CLEAN)).to_pylist():
        found.setdefault(row["prompt_id"], {"prompts": row["prompts"], "category": row["category"]})[row["metric"]] = row["value"]
    return found
