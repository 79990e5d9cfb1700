"""The light cone: many interventions on one batch, each run only where it can change anything.

An edit at (layer, position) changes later layers at positions >= it, nothing else. So jobs that start at one position
share the clean state before it, the clean run is the batch's first job, and each job joins at its first layer by
taking over the clean residual stream. Positions are visited in order: the clean state advances once and only the
current one is held. A knockout's sources may lie before its first query: what the knocked layers took in there is
held too, and a job still runs from its query on. Exact: the same numbers as one full forward a job, to rounding.

Shape legend: S jobs (intervention sets), B prompts, L length, D width, K positions read, V padded vocabulary.
"""
from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from mamba_mi.config import UserError
from mamba_mi.interventions.knockout import Knockout
from mamba_mi.models.experts import margins
from mamba_mi.trace import BLIND, KNOCKOUT, NeverReached, Site, Trace

Sets = Sequence[Sequence]  # each a set of interventions applied together; the empty set is the clean run
MEMORY = 1 << 30  # bytes of activations a chunk of jobs may take
READ = 1 << 22  # logits made at once


@dataclass
class Ledger:
    """What the cone did: edits applied at each site name, forwards of tokens through layers, memory halvings."""

    edits: Counter = field(default_factory=Counter)
    token_layers: int = 0
    halvings: int = 0
    routed: Counter = field(default_factory=Counter)  # of each layer with experts: tokens of jobs that were sent to one
    flips: Counter = field(default_factory=Counter)  # and those sent to another than in the clean run beside
    least_margin: float = math.inf  # of any token's best expert's probability over the second's, where one was chosen

    def add(self, other: Ledger) -> None:
        """Count what another has counted, too."""
        for name in ("edits", "routed", "flips"):
            getattr(self, name).update(getattr(other, name))
        self.token_layers += other.token_layers
        self.halvings += other.halvings
        self.least_margin = min(self.least_margin, other.least_margin)

    @property
    def routing(self) -> dict:
        """For a manifest: how many tokens of jobs went to an expert, and how many to another than in the clean run, by
        layer; empty where there are no experts."""
        if not self.routed:
            return {}
        return {"routing": {"tokens": self.routed.total(), "flips": self.flips.total(), "least_margin": self.least_margin,
                            "by_layer": {str(layer): [self.flips[layer], self.routed[layer]] for layer in sorted(self.routed)}}}


def evaluate(lm, batch, sets: Sets, read: Callable[[Tensor], Tensor], *, memory: int = MEMORY,
             ledger: Ledger | None = None) -> Tensor:
    """What `read` makes of the last position's logits, one row a set: `read(logits_SBV) -> SB…`.

    `batch` is a Batch or tokens_BL of equal length. Every edit of every set must be met, at every position it names,
    exactly where it says; else NeverReached. Runs out of memory: half as many jobs at a time, noted in the ledger.
    """
    return contrast(lm, batch, sets, read, memory=memory, ledger=ledger)[0]


@torch.no_grad()
def contrast(lm, batch, sets: Sets, read: Callable[[Tensor], Tensor], *, embedded_BLD: Tensor | None = None,
             tail: int | None = None, only_BX: Tensor | None = None, memory: int = MEMORY,
             ledger: Ledger | None = None) -> tuple[Tensor, Tensor]:
    """`evaluate`, and beside each set what the clean run gave in the very batch that set ran in.

    Batching changes a float32 sum's last bits; a set that changes nothing differs from its own twin by exactly 0.
    `embedded_BLD` stands in for the embedded tokens, in every job and in the clean run (noise on a subject). With
    `tail` the last so many positions are read, `read(logits_SBKV)`. `only_BX` names for each prompt the few tokens whose
    logits are made at all: `read` then sees these, in their order.
    """
    tokens_BL = batch if isinstance(batch, Tensor) else batch.tokens_BL
    ledger = Ledger() if ledger is None else ledger
    embedded_BLD = lm.embed(tokens_BL) if embedded_BLD is None else embedded_BLD
    groups: dict[int, list[int]] = defaultdict(list)
    length, (prefix, late) = tokens_BL.shape[1], _prefix(lm, embedded_BLD, sets, memory)
    for number, interventions in enumerate(sets):
        groups[min(_first_position(interventions, length, late), length - (tail or 1))].append(number)
    out: dict[int, tuple[Tensor, Tensor]] = {}
    starts = [_first_layer(lm, interventions) for interventions in sets]
    past, reached = [None] * lm.config.n_layer, 0
    for position in sorted(groups):
        if position > reached:
            _advance(lm, embedded_BLD[:, reached:position], prefix, reached, past)
            reached = position
        numbers = sorted(groups[position], key=lambda n: (starts[n], n))
        size = _jobs_at_once(lm, embedded_BLD, position, [sets[n] for n in numbers], memory)
        while numbers:
            chunk = numbers[:size]
            try:
                values, clean = _run(lm, embedded_BLD[:, position:], position, past, prefix, [sets[n] for n in chunk],
                                     [starts[n] for n in chunk], lambda logits_SBKV: read(logits_SBKV if tail else logits_SBKV[:, :, 0]),
                                     tail or 1, only_BX, ledger)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise UserError(f"out of memory with one job of {len(tokens_BL)} prompts; "
                                    "lower method.batch or cone.memory") from None
                size, ledger.halvings = max(1, size // 2), ledger.halvings + 1
                continue
            out.update((n, (value, clean)) for n, value in zip(chunk, values))
            numbers = numbers[size:]
    if not sets:
        raise UserError("no intervention sets: nothing to evaluate")
    return tuple(torch.stack([out[n][side] for n in range(len(sets))]) for side in (0, 1))


def _advance(lm, embedded_BLD: Tensor, trace: Trace, position: int, past: list) -> None:
    """The clean state of every layer after these tokens, put into `past`; of two whole states only a layer's lives at once."""
    trace.join(position, embedded_BLD.shape[1])
    resid = embedded_BLD
    for layer in lm.layers:
        resid, past[layer.layer] = layer(resid, trace, past[layer.layer], True)


def _run(lm, embedded_BLD, position, past, prefix, sets, starts, read, tail, only_BX, ledger) -> tuple[Tensor, Tensor]:
    """One chunk of jobs that start at `position`, sorted by `starts`, their first layers; row 0 of every layer is the clean run."""
    rows, depth, end = len(embedded_BLD), lm.config.n_layer, position + embedded_BLD.shape[1]
    trace = _Jobs(sets, rows, position, end, prefix)
    resid = embedded_BLD
    joined = 0
    for layer in range(-1, depth):
        joining = bisect_right(starts, layer) - joined
        if joining:  # all at once: one after another would copy the batch as often as there are jobs
            resid = torch.cat([resid] + [resid[:rows]] * joining)
            joined += joining
        trace.active = joined
        if layer < 0:
            resid = trace(Site(-1, "embed"), resid) if joined else resid
            continue
        resid, _ = lm.layers[layer](resid, trace, past[layer], False)
        ledger.token_layers += resid.shape[0] * resid.shape[1]
    resid = torch.cat([resid] + [resid[:rows]] * (len(sets) - joined))
    trace.active = len(sets)
    # only what is read is unembedded: its place in the pass is kept for edits at final_norm
    x = lm.normed(resid[:, -tail:], trace.last_only(tail))
    trace.close()
    ledger.edits.update(trace.fired)
    ledger.routed.update(trace.choices)
    ledger.flips.update(trace.flips)
    ledger.least_margin = min(ledger.least_margin, trace.least_margin)
    # some jobs at a time, so that their logits are read while they are in cache
    wide = lm.config.padded_vocab if only_BX is None else only_BX.shape[1]
    size = max(1, READ // (rows * tail * wide))
    parts = (lm.logits(part, only_BX).unflatten(0, (-1, rows)) for part in x.split(size * rows))
    values = torch.cat([read(logits_SBKV) for logits_SBKV in parts])
    return values[1:], values[0]


class _Jobs(Trace):
    """The trace of a chunk of jobs: job j owns rows (j+1)·B … (j+2)·B of every value, row block 0 is clean."""

    def __init__(self, sets, rows: int, offset: int, end: int, prefix: Trace):
        super().__init__()
        self.prefix = prefix
        self.rows, self.active = rows, 0
        self.begin(offset, end - offset)
        self.fired: Counter[str] = Counter()
        self.choices: Counter[int] = Counter()
        self.flips: Counter[int] = Counter()
        self.least_margin = math.inf
        self._met: dict[tuple[int, int, Site], set[int]] = {}
        self._jobs: dict[Site, list[tuple[int, int, object]]] = defaultdict(list)
        self._knocked: dict[int, list[tuple[int, tuple]]] = defaultdict(list)  # by layer: a job's block, and what acts there
        self._passed: set[int] = set()  # of these, the layers met
        self._masks: dict[tuple, tuple] = {}
        knockouts = [[i for i in interventions if isinstance(i, Knockout)] for interventions in sets]
        before = any(i.reads_from(end) < offset for several in knockouts for i in several)
        self._start_of_masks = 0 if before else offset
        self._edits = [(j, k, i) for j, interventions in enumerate(sets) for k, i in enumerate(interventions)
                       if not isinstance(i, Knockout)]
        for j, k, edit in self._edits:
            for site in edit.sites:
                self._jobs[site].append((j, k, edit))
                self._met[j, k, site] = set()
        for j, several in enumerate(knockouts):
            here = [(i.layers, self._here(i)) for i in several]
            for layer in {layer for layers, _ in here for layer in layers}:
                acting = tuple(masks for layers, masks in here if layer in layers)
                self._knocked[layer].append((j + 1, acting))

    def last_only(self, tail: int):
        """From here on values hold the last `tail` positions alone."""
        self.offset = self._end - tail
        return self

    def wants(self, site):
        return site in self._jobs

    edits = wants

    def __call__(self, site, x, at=None):
        jobs = self._jobs.get(site)
        if not jobs:
            return x
        offset = self.offset if at is None else at
        x = x.clone()
        for j, k, intervention in jobs:
            met = intervention.touches(offset, x.shape[1], self._end)
            if j >= self.active or not met:
                continue
            block = slice((j + 1) * self.rows, (j + 2) * self.rows)
            x[block] = intervention.apply(site, x[block], offset, self._end)
            if met & self._met[j, k, site]:
                raise RuntimeError(f"the edit at site {site} fired twice at positions {sorted(met)}")
            self._met[j, k, site] |= met
            self.fired[site.name] += 1
        return x

    def knockouts(self, layer, rows):
        if found := self._knocked.get(layer, []):
            self._passed.add(layer)
            self.fired[KNOCKOUT] += sum(len(several) for _, several in found)
        return found

    def _here(self, knockout) -> tuple:
        """A knockout's masks, made once for all layers and jobs that have its like. Over the whole prompt where some
        knockout's source lies before the pass."""
        if (known := self._masks.get(knockout.alike)) is None:
            if missing := knockout.missing(knockout.touches(0, self._end, self._end)):
                raise self._never(knockout.sites[0], missing)
            known = self._masks[knockout.alike] = knockout.here(self.rows, self._start_of_masks, self._end, True)
        return known

    def _never(self, site: Site, missing: str) -> NeverReached:
        return NeverReached(f"never reached at site {site}: {missing}; the prompt has {self._end} tokens")

    def before(self, layer, names):
        return [self.prefix.kept(Site(layer, name)) for name in names]

    def routed(self, layer, choice_BL, p_BLE):
        clean_BL, *jobs = choice_BL.split(self.rows)
        self.choices[layer] += sum(choice_BL.numel() for choice_BL in jobs)
        self.flips[layer] += sum(int((choice_BL != clean_BL).sum()) for choice_BL in jobs)
        self.least_margin = min(self.least_margin, float(margins(p_BLE).min()))

    def _acting(self, site, block):
        return [intervention for j, _, intervention in self._jobs[site] if j + 1 == block]

    def close(self):
        for j, k, edit in self._edits:
            for site in edit.sites:
                met = self._met[j, k, site]
                if not met or edit.missing(met):
                    raise self._never(site, edit.missing(met) or "any position")
        if missed := sorted(self._knocked.keys() - self._passed):
            raise self._never(Site(missed[0], KNOCKOUT), "any position")


def _prefix(lm, embedded_BLD, sets: Sets, memory: int) -> tuple[Trace, bool]:
    """Keeps of the clean prefix what knockouts read of it, and says whether a job may start at its query.

    It starts at its source instead where the prefix would not fit into `memory`, or a layer can't do without.
    """
    knocked = {layer for interventions in sets for i in interventions if isinstance(i, Knockout) for layer in i.layers}
    layers = [layer for layer in lm.layers if layer.layer in knocked]
    dense = any(i.dense for interventions in sets for i in interventions if isinstance(i, Knockout))
    if not layers or dense or any(layer.BEFORE is None for layer in layers):
        return BLIND, False
    sites = [Site(layer.layer, name) for layer in layers for name in layer.BEFORE]
    rows, length, _ = embedded_BLD.shape
    if 4 * rows * length * sum(math.prod(lm.widths[site.name]) for site in sites) > memory:
        return BLIND, False
    return Trace(keep=sites) if sites else BLIND, True


def _first_position(interventions, length: int, late: bool) -> int:
    first = min((i.first(length) for i in interventions), default=length - 1)
    if not late:
        first = min([first, *(i.reads_from(length) for i in interventions if isinstance(i, Knockout))])
    if not 0 <= first < length:
        raise NeverReached(f"never reached: position {first}; the prompt has {length} tokens")
    return first


def _first_layer(lm, interventions) -> int:
    """The layer whose block the job must join at; edits at final_norm join after the last."""
    depth, knocked = lm.config.n_layer, [i for i in interventions if isinstance(i, Knockout)]
    for layer in (layer for i in knocked for layer in i.layers):
        if layer >= depth:
            raise NeverReached(f"never reached: {Site(layer, KNOCKOUT)}; {lm.name} has layers 0-{depth - 1}")
        if layer not in lm.mixing:
            raise UserError(f"knockout at layer {layer}: it mixes no tokens in {lm.name}; layers "
                            f"{', '.join(map(str, lm.mixing))} do")
    sites = [site for i in interventions if not isinstance(i, Knockout) for site in i.sites]
    lm.demand(sites)
    return min([*(layer for i in knocked for layer in i.layers),
                *(depth if site.name == "final_norm" else site.layer for site in sites)], default=depth)


def _jobs_at_once(lm, embedded_BLD, position: int, sets: Sets, memory: int) -> int:
    """How many jobs fit into `memory`: a function of the configuration alone, never of what happens to be free."""
    prompts, whole, _ = embedded_BLD.shape
    length = whole - position
    watched = any(site.name in ("write", "state") for interventions in sets for i in interventions
                  if not isinstance(i, Knockout) for site in i.sites)
    knocked = [[i.layers for i in interventions if isinstance(i, Knockout)] for interventions in sets]
    again = max((max(Counter(chain(*layers)).values()) if len(layers) > 1 else len(layers) for layers in knocked),
                default=0)  # scans beside the first, a layer
    row = (1 + again) * length * lm.config.floats(length, watched) * 4
    return max(1, memory // (row * prompts) - 1)
