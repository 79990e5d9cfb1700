"""Activation patching: where the answer sits, and where it has moved to.

Denoising puts the clean run's value into the corrupted run: what is restored was sufficient. Noising puts the
corrupted run's value into the clean one: what is lost was necessary. Symmetric token replacement, logit difference
first (Zhang & Nanda 2024; Heimersheim & Nanda 2024).
Shape legend: S cells, B pairs, L length, D width at the site, V vocabulary, M metrics.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mamba_mi.config import UserError, did_you_mean
from mamba_mi.data import roles
from mamba_mi.experiments import Experiment
from mamba_mi.interventions import Edit, Replace
from mamba_mi.interventions.cone import contrast
from mamba_mi.measure import metrics
from mamba_mi.measure.effects import effects
from mamba_mi.trace import Site, Trace

DIRECTIONS = ("denoising", "noising")
METRICS = {  # name: of the logits, the clean prompt's answer and the corrupt prompt's
    "logit_difference": metrics.logit_difference,
    "probability": lambda logits_BV, right_B, wrong_B: metrics.probability(logits_BV, right_B),
    "rank": lambda logits_BV, right_B, wrong_B: metrics.rank(logits_BV, right_B),
}
HEADLINE = "normalised_logit_difference"


@dataclass(frozen=True)
class Knobs:
    """Keys of conf/method/patching.yaml. `layers` and `roles` are "all" or a list; `tau` is in logits."""

    sites: list[str] = field(default_factory=lambda: ["resid", "out", "scan_out"])
    layers: Any = "all"
    roles: Any = "all"
    directions: list[str] = field(default_factory=lambda: list(DIRECTIONS))
    metrics: list[str] = field(default_factory=lambda: list(METRICS))
    batch: int = 32
    tau: float = 0.5
    resamples: int = 2000


class Patching(Experiment):
    """Every site × layer × position role, both directions, through the light cone."""

    Knobs = Knobs
    needs = "pairs"
    figures = ("patching_map", "patching_curves")
    question = "Where in the model does the information that decides the answer sit, and where does it move to?"
    conditions = ("direction", "site", "layer", "role")
    normalised = {"logit_difference": HEADLINE}

    def check(self) -> None:
        for key, known in (("sites", self.lm.sites.names), ("directions", DIRECTIONS), ("metrics", METRICS)):
            chosen = getattr(self.knobs, key)
            if not chosen:
                raise UserError(f"method.{key}=[]: give at least one of {', '.join(known)}")
            for name in chosen:
                if name not in known:
                    raise UserError(f"method.{key}={name}: {self.lm.name} has {', '.join(known)}{did_you_mean(name, known)}")
        if "logit_difference" not in self.knobs.metrics:
            raise UserError("method.metrics must hold logit_difference: the headline is its normalised form")
        self.layers()

    def layers(self) -> list[int]:
        depth = self.lm.config.n_layer
        if self.knobs.layers == "all":
            return list(range(depth))
        chosen = [self.knobs.layers] if isinstance(self.knobs.layers, int) else self.knobs.layers
        if not isinstance(chosen, list) or not chosen or not all(isinstance(i, int) for i in chosen):
            raise UserError(f"method.layers={self.knobs.layers}: give all or a list such as [0,3]")
        if wrong := [i for i in chosen if not 0 <= i < depth]:
            raise UserError(f"method.layers={wrong}: out of range; {self.lm.name} has layers 0-{depth - 1}")
        return sorted(set(chosen))

    def cells(self, batch) -> list[tuple[str, int, str, tuple[int, ...]]]:
        """(site, layer, role, positions) of every cell that this layout has; outer sites are patched once."""
        found = roles(batch.length, batch.spans)
        if self.knobs.roles != "all":
            chosen = [self.knobs.roles] if isinstance(self.knobs.roles, str) else self.knobs.roles
            found = {role: at for role, at in found.items() if role in chosen}
        return [(name, layer, role, at) for name in self.knobs.sites
                for layer in ([-1] if Site(-1, name) in self.lm.sites else self.layers())
                for role, at in found.items() if name != "final_norm" or role == "last"]

    def cost(self, batch) -> tuple[int, int]:
        depth = self.lm.config.n_layer
        jobs = {(name, layer, at) for name, layer, _, at in self.cells(batch)}
        tokens = sum((batch.length - min(at)) * (depth - max(layer, 0)) for _, layer, at in jobs)
        return len(jobs) * len(batch) * len(self.knobs.directions), tokens * len(batch) * len(self.knobs.directions)

    def step(self, batch) -> pa.Table:
        cells = self.cells(batch)
        if not cells:
            raise UserError(f"method.roles={self.knobs.roles}: these prompts have "
                            f"{', '.join(roles(batch.length, batch.spans))}")
        tables = [self._patch(batch, cells, direction) for direction in DIRECTIONS if direction in self.knobs.directions]
        return pa.concat_tables(tables)

    def _patch(self, batch, cells, direction: str) -> pa.Table:
        clean, corrupt = (batch.tokens_BL, batch.corrupt_BL)
        base_BL, source_BL = (corrupt, clean) if direction == "denoising" else (clean, corrupt)
        read = self._reader(batch)
        jobs = {(name, layer, at): None for name, layer, _, at in cells}  # a one-token subject has equal roles
        sites = {Site(layer, name) for name, layer, _ in jobs}
        with torch.no_grad(), Trace(keep=sites) as trace:
            source_logits, _ = self.lm(source_BL, trace=trace)
        full_BM = read(source_logits[None, :, -1])[0]
        sets = [(Edit(Site(layer, name), at, Replace(trace.values[layer, name][:, list(at)])),)
                for name, layer, at in jobs]
        values_JBM, baselines_JBM = contrast(self.lm, base_BL, sets, read, memory=self.setting.memory,
                                             ledger=self.setting.ledger)
        row_of = {job: i for i, job in enumerate(jobs)}
        rows = [row_of[name, layer, at] for name, layer, _, at in cells]
        return self._table(batch, cells, direction, values_JBM[rows], baselines_JBM[rows], full_BM)

    def _reader(self, batch):
        """What the cone reads: the metrics of each job's logits, S B M in float64."""
        right_B = torch.tensor([p.target_id for p in batch.prompts], device=self.lm.device)
        wrong_B = torch.tensor([p.target_id for p in batch.corrupt], device=self.lm.device)

        def read(logits_SBV):
            rows = logits_SBV.flatten(0, 1)
            right, wrong = (x.repeat(len(logits_SBV)) for x in (right_B, wrong_B))
            values = [METRICS[name](rows, right, wrong).double() for name in self.knobs.metrics]
            return torch.stack(values, dim=-1).unflatten(0, logits_SBV.shape[:2])
        return read

    def _table(self, batch, cells, direction, values_SBM, baselines_SBM, full_BM) -> pa.Table:
        S, B, M = values_SBM.shape
        each_cell = lambda xs: np.repeat(np.array(xs), B * M)  # noqa: E731
        return effects({
            "prompt_id": np.tile(np.repeat([p.prompt_id for p in batch.prompts], M), S),
            "direction": np.full(S * B * M, direction),
            "site": each_cell([name for name, *_ in cells]),
            "layer": each_cell([layer for _, layer, *_ in cells]),
            "role": each_cell([role for _, _, role, _ in cells]),
            "position": each_cell([min(at) for *_, at in cells]),
            "metric": np.tile(np.array(self.knobs.metrics), S * B),
            "value": values_SBM.flatten().cpu().numpy(),
            "baseline": baselines_SBM.flatten().cpu().numpy(),
            "full": full_BM.expand(S, B, M).flatten().cpu().numpy(),
        })

    def headline(self, summary):
        return [{key: value for key, value in row.items() if key != "note"} for row in summary
                if row["metric"] == HEADLINE and row["conditions"]["site"] == self.knobs.sites[0]
                and row["conditions"]["role"] in ("subject", "between", "last")]

    def findings(self, summary):
        return [sentence for direction in DIRECTIONS if direction in self.knobs.directions
                for role in ("subject", "last")
                for sentence in _crossing(summary, direction, self.knobs.sites[0], role)]

    def caveats(self, summary):
        n = max((row["n"] for row in summary), default=0)
        few = [f"Only {n} prompts: under 50 the intervals are too narrow (a BCa interval covers about 83% at n = 20)."]
        return (few if n < 50 else []) + [
            f"Prompts whose clean and corrupt logit differences lie within {self.knobs.tau} are left out of the ratio; "
            "the column `excluded` counts them.",
            "Patching shows where information that distinguishes the two prompts is used, not how it is computed. "
            "A site can be sufficient without being necessary, where the model holds the information twice.",
            "The conv of width 4 carries a token's content into the next three positions of the scan, so a site after "
            "the conv can show a token's information one to three positions after the token.",
        ]


def _crossing(summary, direction: str, site: str, role: str) -> list[str]:
    """Where a role's curve over layers passes one half, in words."""
    wanted = {"direction": direction, "site": site, "role": role}
    rows = sorted((row for row in summary if row["metric"] == HEADLINE and row["mean"] is not None
                   and wanted.items() <= row["conditions"].items()), key=lambda row: row["conditions"]["layer"])
    if not rows:
        return []
    what = {"subject": "all subject tokens", "last": "the last token"}[role]
    verb = {"denoising": ("Restoring", "brings back"), "noising": ("Corrupting", "destroys")}[direction]
    peak = max(rows, key=lambda row: row["mean"])
    text = (f"{verb[0]} {what} ({site}) {verb[1]} the most at layer {peak['conditions']['layer']}: {_number(peak)} of the "
            f"logit difference, n = {peak['n']}")
    final = rows[-1]
    if peak["mean"] < 0.5:
        return [f"{text}; it stays below one half before every layer measured."]
    turn = _turn(rows, peak, falling=role == "subject")
    if turn is None:
        return [f"{text}; it is still {_number(final)} before layer {final['conditions']['layer']}."]
    verb = "falls below" if role == "subject" else "passes"
    return [f"{text}; it {verb} one half at layer {turn['conditions']['layer']} ({_number(turn)})."]


def _turn(rows, peak, falling: bool):
    """The first row past one half: below it after the peak, or above it at all."""
    if falling:
        return next((r for r in rows if r["conditions"]["layer"] >= peak["conditions"]["layer"] and r["mean"] < 0.5), None)
    return next((r for r in rows if r["mean"] >= 0.5), None)


def _number(row) -> str:
    interval = "" if row["ci_low"] is None else f" [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
    return f"{row['mean']:.2f}{interval}"
