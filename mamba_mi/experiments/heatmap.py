"""Knockout heatmaps: what the last token reads from each token in each window of layers, prompt by prompt and on average.

A cell is one knockout, M[last, token] := 0 in the window's layers (Geva et al. 2023; for Mamba Endy et al. 2025): the whole
map of a prompt is one call of the cone. Prompts of different length are averaged by the role of each token.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pyarrow as pa

from mamba_mi.config import UserError, did_you_mean
from mamba_mi.data import Dataset, Prompt, batches
from mamba_mi.data.alignment import aligned
from mamba_mi.data.sources import check_names
from mamba_mi.experiments import Experiment, _knockouts, at_least
from mamba_mi.interventions import Knockout
from mamba_mi.interventions.knockout import CONVS, SPANS
from mamba_mi.measure.answers import answers
from mamba_mi.report import heatmap_words as words

WINDOW = 5
QUERIES = ("last",)
OF_A_ROLE = ("prompt_id", "role", "source", "conv", "span", "window_start", "window_size", "metric")


@dataclass(frozen=True)
class Knobs:
    """`prompts` is null, or a list of numbers or of prompt ids; `best` is null or a number of prompts."""

    window: int = WINDOW
    conv: list[str] = field(default_factory=lambda: ["scan"])
    span: list[str] = field(default_factory=lambda: ["token"])
    query: str = "last"
    dense: bool = False
    prompts: Any = None
    best: int | None = None
    metrics: list[str] = field(default_factory=lambda: list(_knockouts.DEFAULT))
    batch: int = 32
    resamples: int = 2000


class Heatmap(Experiment):
    """Every token × every window of layers, each prompt's own map and their mean by role."""

    Knobs = Knobs
    question = "From which token, and in which layers, does the last token read what decides the answer?"
    title = "knockout heatmap"
    conditions = ("role", "window_start", "window_size", "conv", "span")
    family = ("conv", "span")

    def __init__(self, knobs, lm, setting):
        super().__init__(knobs, lm, setting)
        self.items: Sequence[Prompt] = ()

    @property
    def size(self) -> int:
        """Layers in a window: of a model with fewer than the default, a third of them."""
        depth = len(self.lm.mixing)
        return max(1, depth // 3) if depth < self.knobs.window == WINDOW else self.knobs.window

    @property
    def figures(self) -> tuple[str, ...]:
        own = ("heatmap_prompts", "heatmap_normalised") if "probability" in self.knobs.metrics else ()
        return ("heatmap_mean", *own)

    @property
    def metric(self) -> str:
        """The one that figures and sentences are about."""
        return _knockouts.RELATIVE if _knockouts.RELATIVE in self.knobs.metrics else self.knobs.metrics[0]

    def check(self) -> None:
        knobs, depth = self.knobs, len(self.lm.mixing)
        if not 1 <= self.size <= depth:
            raise UserError(f"method.window={knobs.window}: {self.lm.name} has {depth} layers that mix tokens; give 1-{depth}")
        for key, asked, known in (("conv", knobs.conv, CONVS), ("span", knobs.span, SPANS), ("query", [knobs.query], QUERIES),
                                  ("metrics", knobs.metrics, _knockouts.KNOWN)):
            check_names(f"method.{key}", asked, known)
        _knockouts.policies(knobs, self.lm)
        _knockouts.check_dense(knobs, self.lm)
        at_least(knobs, best=1, batch=1, resamples=20)
        _check_prompts(knobs)

    def candidates(self, load):
        """Of a data set whose prompts are named, those alone: the others need not even be looked at."""
        return self._narrowed(load())

    def _narrowed(self, dataset: Dataset) -> Dataset:
        if not _named(self.knobs.prompts):
            return dataset
        known = [p.prompt_id for p in dataset.prompts] or [pair.clean.prompt_id for pair in dataset.pairs]
        for name in self.knobs.prompts:
            if name not in known:
                raise UserError(f"method.prompts=[{name}]: dataset={dataset.name} has no such prompt_id among its {len(known)} "
                                f"usable ones, {known[0]} for one{did_you_mean(name, known)}")
        wanted = set(self.knobs.prompts)
        return replace(dataset, prompts=tuple(p for p in dataset.prompts if p.prompt_id in wanted),
                       pairs=tuple(pair for pair in dataset.pairs if pair.clean.prompt_id in wanted))

    def choose(self, items):
        self.items, why = self._chosen(items)
        if self.knobs.metrics == ["logit_difference"] and all(p.wrong_id is None for p in self.items):
            raise UserError("method.metrics=[logit_difference]: these prompts name no wrong answer; probability needs none")
        return self.items, why

    def _chosen(self, items) -> tuple[Sequence[Prompt], str]:
        asked, best = self.knobs.prompts, self.knobs.best
        if best is not None:
            if best > len(items):
                raise UserError(f"method.best={best}: there are {len(items)} prompts (dataset.n sets how many are chosen)")
            p = self._probabilities(items)
            return sorted(items, key=lambda item: -p[item.prompt_id])[:best], f"not among the {best} of highest probability"
        if asked is None:
            return items, ""
        by = {item.prompt_id: item for item in items} if _named(asked) else dict(enumerate(items))
        if missing := [name for name in asked if name not in by]:
            raise UserError(f"method.prompts={missing}: " + (
                "not among the prompts in use: the model does not answer them rightly (dataset.only_correct=false uses them all "
                "the same), or dataset.n is smaller than this list" if _named(asked) else
                f"{len(items)} prompts were chosen, 0-{len(items) - 1} (dataset.n sets how many)"))
        return [by[name] for name in asked], "not among method.prompts"

    def _probabilities(self, items) -> dict[str, float]:
        """The clean run's, by prompt_id."""
        found = {}
        for batch in batches(items, self.knobs.batch):
            p_B = _knockouts.measure(self.lm, batch, [()], ["probability"], memory=self.setting.memory,
                                     ledger=self.setting.ledger)[1][0, :, 0]
            found.update(zip((p.prompt_id for p in batch.prompts), p_B.tolist(), strict=True))
        return found

    def cells(self, batch) -> list[dict]:
        """The condition columns of every knockout of a prompt of this layout."""
        starts, roles = _knockouts.windows(self.size, self.lm.mixing), aligned(batch.length, batch.spans)
        asked = _knockouts.policies(self.knobs, self.lm)
        return [{"position": position, "role": roles[position], "source": "token", "conv": conv, "span": span,
                 "window_start": start, "window_size": self.size}
                for (conv, span), position, start in product(asked, range(batch.length), starts)]

    def step(self, batch) -> pa.Table:
        knobs, cells = self.knobs, self.cells(batch)
        asked = ["target_logprob"] if "target_logprob" in knobs.metrics else ["probability"]
        # of an answer of several tokens none may read the source, so that all of it is what the prompt without it gives
        queries = tuple(range(batch.length - 1, batch.length - 1 + answers(batch, asked, self.lm.device).tail))
        windows = _knockouts.windows(self.size, self.lm.mixing)
        sets = [[Knockout(windows[cell["window_start"]], queries, cell["position"], cell["conv"], cell["span"], dense=knobs.dense)]
                for cell in cells]
        measured = _knockouts.measure(self.lm, batch, sets, knobs.metrics, memory=self.setting.memory,
                                      ledger=self.setting.ledger)
        return _knockouts.table(batch, knobs.metrics, cells, *measured)

    @classmethod
    def in_groups(cls, effects: pa.Table) -> pa.Table:
        """Tokens of one role in one prompt as one: the prompt is the sampling unit."""
        return mean_by_role(effects)

    def cost(self, batch) -> tuple[int, int]:
        cells, depth = self.cells(batch), self.lm.config.n_layer
        return len(cells) * len(batch), len(batch) * (batch.length * depth + sum(depth - c["window_start"] for c in cells))

    def artefacts(self):
        """The prompts' tokens as they are written, for the figures."""
        return {"tokens": {p.prompt_id: [self.lm.tokenizer.decode([token]) for token in p.token_ids] for p in self.items}}

    def setting_in_words(self):
        return words.setting(self.knobs, self.size, _knockouts.policies(self.knobs, self.lm))

    def completed(self, rows, effects, items):
        return _knockouts.with_layers(rows, self.lm)

    def headline(self, summary):
        return words.headline(summary, self.metric)

    def findings(self, summary):
        return words.findings(summary, self.metric, self.lm and self.lm.config.d_conv)

    def caveats(self, summary):
        return words.caveats(summary, self.knobs, self.lm and self.lm.config.d_conv)


def mean_by_role(effects: pa.Table) -> pa.Table:
    """The mean of a prompt's tokens of one role, in every window and metric."""
    grouped = effects.group_by(list(OF_A_ROLE), use_threads=False).aggregate([("value", "mean"), ("baseline", "mean")])
    return grouped.rename_columns([name.removesuffix("_mean") for name in grouped.column_names])


def _named(prompts) -> bool:
    """Whether prompts are asked for by id, not by number."""
    return prompts is not None and any(isinstance(asked, str) for asked in prompts)


def _check_prompts(knobs: Knobs) -> None:
    asked = knobs.prompts
    if asked is None:
        return
    if not isinstance(asked, list) or not asked or len({type(each) for each in asked}) > 1 or type(asked[0]) not in (int, str):
        raise UserError(f"method.prompts={asked}: give numbers, such as [0,3], or prompt ids, such as [cf-00017]")
    if len(set(asked)) < len(asked):
        raise UserError(f"method.prompts={asked}: each prompt once")
    if knobs.best is not None:
        raise UserError("method.prompts names prompts, method.best takes those of highest probability: give one of them")
