"""Ours beside published numbers: probabilities of named answers, shares of right ones, and knockouts, prompt by prompt.

Every number is recomputed under the published condition and held against it within the reference's own tolerance.
"""
from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from mamba_mi import references
from mamba_mi.config import UserError
from mamba_mi.data import Dataset
from mamba_mi.data.sources import check_names
from mamba_mi.experiments import Experiment, _reproduce_cells
from mamba_mi.experiments._knockouts import RELATIVE, measure, table
from mamba_mi.experiments._reproduce_cells import NOTHING, knockouts
from mamba_mi.experiments._reproduce_compare import compare
from mamba_mi.experiments._reproduce_prompts import candidates, needs_counterfact
from mamba_mi.references import KINDS, Reference
from mamba_mi.report import reproduce_words as words

KNOCKED = ("probability", "hit", RELATIVE)


@dataclass(frozen=True)
class Knobs:
    """Keys of conf/method/reproduce.yaml; which reference is read is a group of its own."""

    numbers: Any = "all"
    tolerance: float | None = None
    batch: int = 32
    resamples: int = 2000


class Reproduce(Experiment):
    """The reference's prompts under the reference's conditions; what is published beside what comes out."""

    Knobs = Knobs
    question = "Does this model give the published numbers here?"
    conditions = _reproduce_cells.Cell._fields
    family = ("query", "source", "timescale")
    compares = True

    def __init__(self, knobs, lm, setting):
        super().__init__(knobs, lm, setting)
        self.compared: dict | None = None

    @cached_property
    def published(self) -> Reference:
        """Everything the reference has of this model, with the tolerance asked for."""
        whole = references.read(**self.setting.reference)
        if (limit := self.knobs.tolerance) is not None:
            whole = replace(whole, tolerance=dict.fromkeys(whole.tolerance, (limit, 0.0)))
        return whole.of(self.setting.model)

    @cached_property
    def reference(self) -> Reference:
        """The kinds of numbers asked for."""
        kinds = list(KINDS) if self.knobs.numbers == "all" else self.knobs.numbers
        if not isinstance(kinds, list):
            raise UserError(f"method.numbers={kinds}: give all or a list of {', '.join(KINDS)}")
        check_names("method.numbers", kinds, KINDS)
        chosen = tuple(n for n in self.published.numbers if n.kind in kinds)
        if not chosen:
            there = ", ".join(dict.fromkeys(n.kind for n in self.published.numbers))
            raise UserError(f"method.numbers={kinds}: of {self.setting.model} {self.published.asked} has {there} only")
        return replace(self.published, numbers=chosen).of(self.setting.model)

    def check(self) -> None:
        reference, config, name = self.reference, self.lm.config, self.setting.model
        said = reference.models.get(name)
        if said and (said["variant"], said["layers"]) != (config.variant, config.n_layer):
            raise UserError(f"{reference.asked}: {name} is a {said['variant']} of {said['layers']} layers, and this checkpoint is a "
                            f"{config.variant} of {config.n_layer}; give the published one as model.path")
        if self.knobs.tolerance is not None and self.knobs.tolerance < 0:
            raise UserError(f"method.tolerance={self.knobs.tolerance:g}: give a number from 0 on, or null")
        _reproduce_cells.check_windows(reference, config.n_layer)

    def candidates(self, load) -> Dataset:
        return candidates(self.reference, load, self.lm.tokenizer)

    @property
    def title(self) -> str:
        return "published numbers"

    @property
    def figures(self) -> tuple[str, ...]:
        curves = ("reproduce_curves",) if any(n.blocked for n in self.reference.numbers) else ()
        return (*curves, "reproduce_scatter")

    def setting_in_words(self):
        from_there = {} if needs_counterfact(self.reference) else {"data": "the reference's own prompts"}
        published = {"published in": self.reference.source} if self.reference.source else {}
        return {**from_there, "reference": f"{self.reference.name}: {self.reference.about}", **published}

    def cost(self, batch) -> tuple[int, int]:
        cells = _reproduce_cells.cells(self.reference, {p.prompt_id for p in batch.prompts})
        jobs = len(batch) * (1 + len(cells))
        return jobs, jobs * batch.length * self.lm.config.n_layer

    def step(self, batch) -> pa.Table:
        cells = _reproduce_cells.cells(self.reference, {p.prompt_id for p in batch.prompts})
        return pa.concat_tables([self._as_it_is(batch), *([self._knocked(batch, cells)] if cells else [])])

    def _knocked(self, batch, cells) -> pa.Table:
        """The knockouts that are published of these prompts."""
        sets = [knockouts(self.lm, batch, cell) for cell in cells]
        values, baselines = measure(self.lm, batch, sets, KNOCKED, memory=self.setting.memory, ledger=self.setting.ledger)
        ids = {p.prompt_id for p in batch.prompts}
        left_out = {s: ids - {i for n in self.reference.numbers if n.blocked == tuple(cell) for i in n.values}
                    for s, cell in enumerate(cells)}
        return table(batch, KNOCKED, [cell.columns() for cell in cells], values, baselines, left_out)

    def _as_it_is(self, batch) -> pa.Table:
        """The answers with nothing blocked: the clean run, value and baseline alike."""
        metrics = sorted({"probability", *(n.metric for n in self.reference.numbers if not n.blocked)})
        _, clean_SBM = measure(self.lm, batch, [()], metrics, memory=self.setting.memory, ledger=self.setting.ledger)
        return table(batch, metrics, [NOTHING.columns()], clean_SBM, clean_SBM)

    def tables(self, effects, items):
        bare = {i: x for n in self.published.numbers if n.metric == "probability" and not n.blocked for i, x in n.values.items()}
        self.compared = compare(effects, self.reference, bare)
        return {"reproduce": self.compared}

    def recall(self, folder) -> None:
        self.compared = json.loads((folder / "artifacts" / "reproduce.json").read_text(encoding="utf-8"))

    def verdict(self, summary):
        off = [item for item in self.compared["items"] if item["agree"] < item["of"]]
        if self.knobs.tolerance is None or not off:
            return ""
        return (f"method.tolerance={self.knobs.tolerance:g}: {len(off)} of {len(self.compared['items'])} published numbers "
                f"are further from ours, the first {off[0]['item']}")

    def headline(self, summary):
        if self.compared is None:  # of several runs put together, which have no comparison in common
            return [row for row in summary if row["metric"] == RELATIVE] or summary[:12]
        return words.rows(self.compared)

    def findings(self, summary):
        return words.findings(self.compared) if self.compared else []

    def caveats(self, summary):
        return words.caveats(self.compared) if self.compared else []
