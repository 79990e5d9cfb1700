"""What construct and compare_paths share: every prompt through both paths of one model.

The ordinary path is the run's own backend. The attention path is the same weights (nothing is copied) with the matrix M
of y = M v written out in every layer. Prompts are run with others of their length, so nothing is ever padded before a
token that is read. In the effects the baseline of the attention path is the ordinary path's number; that of the ordinary
path is 0, so that its rows of the summary are levels: accuracy, mean probability.
Shape legend: B prompts, K answer tokens, V vocabulary, N prompts of a run.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from mamba_mi.config import UserError
from mamba_mi.data import Batch, batches
from mamba_mi.experiments import UNTESTED, Experiment, at_least
from mamba_mi.interventions.patches import watch
from mamba_mi.measure import metrics
from mamba_mi.measure.answers import METRICS, Answers, answers, reader
from mamba_mi.measure.effects import PREDICTION, effects
from mamba_mi.measure.stats import wilson
from mamba_mi.report.paths_words import ATTENTION, ORDINARY, caveats

PATHS = (ORDINARY, ATTENTION)
DEVIATION = "logit_deviation"  # the largest |logit difference| of the two paths at the answer's position


@dataclass(frozen=True)
class Knobs:
    """The keys of conf/method/construct.yaml, and of compare_paths.yaml the same."""

    batch: int = 32
    resamples: int = 2000


class Paths(Experiment):
    """Both paths' numbers of every prompt, in the experiment's `metrics`."""

    Knobs = Knobs
    needs = "prompts"
    figures = ("paths_violins",)
    conditions = ("path",)
    family = ("path",)
    metrics: tuple[str, ...] = ()

    def check(self) -> None:
        at_least(self.knobs, batch=1, resamples=20)
        if self.lm.choice.used == ATTENTION:
            raise UserError(f"backend=attention: {self.name} compares that path with the ordinary one, so the run's backend "
                            "must be another; leave backend= out, or give backend=chunked")

    @cached_property
    def paths(self) -> dict:
        return {ORDINARY: self.lm, ATTENTION: self.lm.on("attention")}

    def setting_in_words(self) -> dict[str, str]:
        return {"paths": f"ordinary ({self.lm.choice.used}) and attention (M written out)"}

    def batches(self, items) -> list[Batch]:
        """By length alone: no position of a prompt matters here but its last."""
        return batches([replace(prompt, spans={}) for prompt in items], self.knobs.batch)

    def cost(self, batch) -> tuple[int, int]:
        return 2 * len(batch), 2 * len(batch) * batch.length * self.lm.config.n_layer

    @torch.no_grad()
    def step(self, batch) -> pa.Table:
        known = [name for name in self.metrics if name in METRICS]
        told = answers(batch, known, self.lm.device)
        tokens_BL = told.continued(batch.tokens_BL)
        logits = {path: watch(lm, lm.embed(tokens_BL), (), tail=told.tail)[1] for path, lm in self.paths.items()}
        found = {path: _numbers(logits_BKV, told, known) for path, logits_BKV in logits.items()}
        if DEVIATION in self.metrics:
            real = self.lm.config.vocab_size
            off_BV = (logits[ATTENTION][:, 0, :real] - logits[ORDINARY][:, 0, :real]).abs()
            found[ATTENTION][DEVIATION] = off_BV.amax(dim=-1)
        return _table(batch, self.metrics, found)

    def completed(self, rows, table, items):
        """A level is tested against nothing; hits are counted, Wilson's interval beside the one over clusters."""
        ids, *hits = both(table, "hit")
        for row in rows:
            if row["conditions"]["path"] == ORDINARY or row["metric"] == DEVIATION:
                row.update(UNTESTED)
            if row["metric"] == "hit":
                hit_N = hits[PATHS.index(row["conditions"]["path"])]
                low, high = wilson(hit_N.sum(), len(ids))
                row.update(hits=int(hit_N.sum()), accuracy=float(hit_N.mean()), wilson_low=float(low), wilson_high=float(high))
                if row["conditions"]["path"] == ATTENTION:
                    row.update(agreement(*hits))
        return rows

    def caveats(self, summary):
        return caveats(summary)

    def predicted(self, token: float) -> str:
        """A predicted token's text."""
        return self.lm.tokenizer.decode([int(token)])


def both(table: pa.Table, metric: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Prompt ids, and a metric's numbers on the ordinary and on the attention path."""
    mine = table.filter((pc.field("metric") == metric) & (pc.field("path") == ATTENTION))
    return mine["prompt_id"].to_pylist(), mine["baseline"].to_numpy(), mine["value"].to_numpy()


def agreement(ordinary_N, attention_N) -> dict[str, int]:
    """How many prompts are hits on both paths, on one alone, on neither."""
    count = lambda one, other: int(((ordinary_N == one) & (attention_N == other)).sum())  # noqa: E731
    return {"hits_on_both": count(1, 1), "ordinary_only": count(1, 0), "attention_only": count(0, 1), "neither": count(0, 0)}


def _numbers(logits_BKV: Tensor, told: Answers, known: Sequence[str]) -> dict[str, Tensor]:
    """Every metric there is of these logits, B each."""
    logits_BV = logits_BKV[:, 0]
    top_B = logits_BV.argmax(dim=-1)
    of_known = reader(known, told, None)(logits_BKV[None])[0]
    return {**dict(zip(known, of_known.unbind(-1), strict=True)), PREDICTION: top_B,
            "max_probability": metrics.probability(logits_BV, top_B),
            "false_probability": metrics.probability(logits_BV, told.wrong_B)}


def _table(batch: Batch, asked: Sequence[str], found: Mapping[str, Mapping[str, Tensor]]) -> pa.Table:
    """The effects of a batch; a prompt without a wrong answer has no false_probability."""
    ids = np.array([prompt.prompt_id for prompt in batch.prompts])
    compared_B = np.array([prompt.wrong_id is not None for prompt in batch.prompts])
    parts = []
    for path in PATHS:
        for name in (name for name in asked if name in found[path]):
            compared = path == ATTENTION and name in found[ORDINARY]
            value_B = found[path][name].double().cpu().numpy()
            baseline_B = found[ORDINARY][name].double().cpu().numpy() if compared else np.zeros(len(ids))
            keep_B = compared_B if name == "false_probability" else np.ones(len(ids), bool)
            if not keep_B.any():
                continue
            parts.append(effects({"prompt_id": ids[keep_B], "path": np.full(keep_B.sum(), path),
                                  "metric": np.full(keep_B.sum(), name), "value": value_B[keep_B],
                                  "baseline": baseline_B[keep_B]}))
    return pa.concat_tables(parts)
