"""Information flow: how much the answer loses when a query may no longer read a source, in a window of layers.

The field's knockout curves (Geva et al. 2023; Endy et al. 2025 for Mamba), for every conv policy, beside random tokens.
Every cell is compared with the run that blocks nothing: a knockout without sources, in the same batch, same policy,
same window, so that rounding is in both and its own change is exactly 0.
Shape legend: S cells, B prompts, L length, M metrics.
"""
from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch

from mamba_mi.config import UserError, did_you_mean, stream
from mamba_mi.data.sources import NONE, RANDOM, is_named, named, positions
from mamba_mi.experiments import Experiment, _info_flow_knobs
from mamba_mi.experiments._info_flow_knobs import ALL, Knobs
from mamba_mi.experiments._knockouts import RELATIVE, distinct, measure, policies, table, windows, with_layers
from mamba_mi.interventions.knockout import Knockout
from mamba_mi.measure.timescale import horizons, thirds
from mamba_mi.report import knockout_caveats, knockout_words

FIRST, LATER = "subject_first", "subject_later"
ROUNDING = 2000  # units in the last place that a run that blocks nothing may be off the plain forward by


class Cell(NamedTuple):
    """What is blocked, and where."""

    source: str
    conv: str
    span: str
    timescale: str
    window_start: int
    window_size: int


class InfoFlow(Experiment):
    """Every source × conv policy × timescale × window of layers, for one query."""

    Knobs = Knobs
    needs = "prompts"
    conditions = ("query", "source", "conv", "span", "timescale", "window_size", "window_start", "split")
    family = ("query", "conv", "span", "timescale", "window_size", "split")  # a panel: all its sources and windows

    def __init__(self, knobs, lm, setting):
        super().__init__(knobs, lm, setting)
        self.items: tuple = ()

    @property
    def question(self) -> str:
        return f"Where does {knockout_words.QUERIES[self.knobs.query]} read what decides the answer from, and in which layers?"

    @property
    def title(self) -> str:
        return "information flow"

    @property
    def figures(self) -> tuple[str, ...]:
        split = any("subject" in prompt.spans for prompt in self.items)
        smear = self.lm.config.d_conv > 1 and any(name == "subject" or name.endswith("+1") for name in self.sources)
        return ("info_flow", "info_flow_bands", *(["info_flow_smear"] if smear else []), *(["info_flow_splits"] if split else []),
                *(["info_flow_timescales"] if len(self.knobs.timescales) > 1 else []))

    def setting_in_words(self):
        scaled = _info_flow_knobs.is_scaled(self.knobs, len(self.lm.mixing))
        return knockout_caveats.setting(self.knobs, self.windows, scaled, self.lm)

    def check(self) -> None:
        _info_flow_knobs.check(self.knobs, self.lm)

    @property
    def windows(self) -> list[int]:
        return _info_flow_knobs.sizes(self.knobs, len(self.lm.mixing))

    def batches(self, items):
        """Also learns what these prompts' sources are called, and takes the corpus of the timescales from them."""
        self.items = tuple(items)
        self._check_names()
        return super().batches(items)

    @property
    def sources(self) -> tuple[str, ...]:
        """Those asked for; in a run whose prompts have several kinds of spans, "all" is of all of them."""
        if self.knobs.sources != ALL:
            return tuple(self.knobs.sources)
        return self._known

    @property
    def _known(self) -> tuple[str, ...]:
        """What the sources of these prompts are called in this model."""
        return tuple(dict.fromkeys(name for kind in self._kinds for name in named(kind, self.lm.config.d_conv)))

    @property
    def _kinds(self) -> list[tuple[str, ...]]:
        return list(dict.fromkeys(tuple(sorted(prompt.spans)) for prompt in self.items))

    def _check_names(self) -> None:
        for name in self.sources:
            if not any(is_named(name, kind) for kind in self._kinds):
                known = self._known
                raise UserError(f"method.sources={name}: these prompts have {', '.join(known)}{did_you_mean(name, known)}")
        if len(set(self.sources)) < len(self.sources):
            raise UserError(f"method.sources={list(self.sources)}: each once")

    @cached_property
    def _layers(self) -> dict[int, dict[int, tuple[int, ...]]]:
        """The layers of each window, by its size and its first layer."""
        return {size: windows(size, self.lm.mixing) for size in self.windows}

    @cached_property
    def timescales(self) -> dict[int, dict[str, tuple[int, ...]]]:
        """A layer's slow, mid and fast heads (Mamba-1: channels), by the mean dt on the first prompts that are measured."""
        return {layer: thirds(horizon_H) for layer, horizon_H in self._horizons.items()}

    @cached_property
    def _horizons(self) -> dict[int, torch.Tensor]:
        return dict(zip(self.lm.mixing, horizons(self.lm, self.items[:self.knobs.reference], self.knobs.batch), strict=True))

    def artefacts(self):
        if set(self.knobs.timescales) == {ALL}:
            return {}
        layers = [{"layer": layer, "horizon": horizon_H.tolist(), **self.timescales[layer]}
                  for layer, horizon_H in self._horizons.items()]
        return {"timescales": {"prompts": min(self.knobs.reference, len(self.items)), "of": self.lm.config.mixes_by[0], "layers": layers}}

    def places(self, batch) -> dict[str, list[tuple[int, ...] | None]]:
        """The positions of every source in every prompt of the batch, None where a prompt has no such tokens; a source
        that no prompt of the batch has is not there."""
        found = {name: [self._place(name, batch, prompt) for prompt in batch.prompts]
                 for name in dict.fromkeys((NONE, *self.sources)) if is_named(name, batch.spans)}
        return {name: rows for name, rows in found.items() if any(at is not None for at in rows)}

    def _place(self, name: str, batch, prompt) -> tuple[int, ...] | None:
        drawn = stream(self.setting.seed, name, prompt.prompt_id) if name in RANDOM else None
        return positions(name, batch.length, batch.spans, conv_width=self.lm.config.d_conv, generator=drawn)

    def cells(self, sources) -> list[Cell]:
        """Every source, policy, timescale and window; sources that are given, as a batch may lack some."""
        return [Cell(source, conv, span, timescale, start, size) for source in sources
                for conv, span in distinct(policies(self.knobs, self.lm))
                for timescale in self.knobs.timescales
                for size in self.windows for start in self._layers[size]]

    def knockouts(self, cell: Cell, queries: tuple[int, ...], sources) -> tuple[Knockout, ...]:
        """The cell's knockouts: one, or one a layer where it is of some heads, which differ by layer."""
        layers = self._layers[cell.window_size][cell.window_start]
        how = {"conv": cell.conv, "span": cell.span, "query_conv": self.knobs.query_conv and cell.conv != "scan",
               "dense": self.knobs.dense}
        if cell.timescale == ALL:
            return (Knockout(layers, queries, sources, **how),)
        parts, _ = self.lm.config.mixes_by
        return tuple(Knockout(layer, queries, sources, **how, **{parts: self.timescales[layer][cell.timescale]})
                     for layer in layers)

    def queries(self, batch) -> tuple[int, ...]:
        """The positions that may no longer read."""
        if not is_named(self.knobs.query, batch.spans):
            raise UserError(f"method.query={self.knobs.query}: these prompts have no subject; method.query=last needs none")
        at = positions(self.knobs.query, batch.length, batch.spans)
        if at is None:
            raise UserError(f"method.query={self.knobs.query}: no such token in {batch.prompts[0].text!r}")
        return at

    def cost(self, batch):
        depth, length = self.lm.config.n_layer, batch.length - min(self.queries(batch))
        cells = self.cells(self.places(batch))
        return len(cells) * len(batch), sum(depth - cell.window_start for cell in cells) * length * len(batch)

    def step(self, batch) -> pa.Table:
        places, queries, setting = self.places(batch), self.queries(batch), self.setting
        cells = self.cells(places)
        sources = {name: _together(rows, _width(batch)) for name, rows in places.items()}
        sets = [self.knockouts(cell, queries, sources[cell.source]) for cell in cells]
        values_SBM, clean_SBM = measure(self.lm, batch, sets, self.knobs.metrics, memory=setting.memory, ledger=setting.ledger)
        nothing = {cell[1:]: s for s, cell in enumerate(cells) if cell.source == NONE}
        beside = [nothing[cell[1:]] for cell in cells]
        blank = list(nothing.values())
        _demand_rounding(values_SBM[blank], clean_SBM[blank], self.knobs.metrics, self.lm.dtype)
        shown = [s for s, cell in enumerate(cells) if cell.source in self.sources]
        lacking = {name: {p.prompt_id for p, at in zip(batch.prompts, rows, strict=True) if at is None}
                   for name, rows in places.items()}
        split = _split(batch.spans)
        return table(batch, self.knobs.metrics, [{"query": self.knobs.query, **cells[s]._asdict(), "split": split} for s in shown],
                     values_SBM[shown], values_SBM[beside][shown], {i: lacking[cells[s].source] for i, s in enumerate(shown)})

    @classmethod
    def in_groups(cls, effects):
        """Every prompt once under `all`, and once under whether its subject comes first, where it has one."""
        at = effects.column_names.index("split")
        every = effects.set_column(at, "split", pa.repeat(pa.scalar(ALL), len(effects)))
        return pa.concat_tables([every, effects.filter(pc.is_valid(effects["split"]))])

    def completed(self, rows, effects, items):
        return with_layers(rows, self.lm)

    def headline(self, summary):
        return knockout_words.headline(summary)

    def findings(self, summary):
        return knockout_words.findings(summary)

    def caveats(self, summary):
        return knockout_caveats.caveats(summary, self.knobs, self.items, self.lm and self.lm.config.d_conv)


def _split(spans) -> str | None:
    """Whether the subject begins the prompt, BOS apart; of a prompt without subject nothing can be said."""
    if "subject" not in spans:
        return None
    return FIRST if spans["subject"][0] == (spans["bos"][1] if "bos" in spans else 0) else LATER


def _width(batch) -> int:
    """Tokens of a prompt and all of its longest answer but the last: what a mask must speak of."""
    return batch.length + max(len(p.target_ids or (0,)) for p in batch.prompts) - 1


def _together(rows, width: int) -> tuple[int, ...] | torch.Tensor:
    """One source of a batch: the positions where all prompts agree, else a mask B by L; a prompt that has none is left out."""
    if len(set(rows)) == 1:
        return rows[0]
    mask_BL = torch.zeros(len(rows), width, dtype=torch.bool)
    for row_L, at in zip(mask_BL, rows, strict=True):
        row_L[list(at or ())] = True
    return mask_BL


def _demand_rounding(values_SBM, clean_SBM, metrics, dtype) -> None:
    """A knockout without sources goes the way of every knockout, and must give the plain forward's numbers."""
    measured = [name for name in metrics if name != RELATIVE]  # the probability, if it is not among them, comes last
    smooth = [i for i in range(values_SBM.shape[-1]) if measured[i:i + 1] != ["hit"]]
    off_SBM = ((values_SBM - clean_SBM).abs() / clean_SBM.abs().clamp(min=1))[..., smooth]
    if not off_SBM.max() <= ROUNDING * torch.finfo(dtype).eps:
        raise RuntimeError(f"the run that blocks nothing is off the plain forward by {off_SBM.max():.1e}: that is no rounding "
                           f"in {dtype}, and no knockout of this model can be believed")
