"""The light cone's jobs: sets of interventions that act together, the trace of some of them in one pass, what it counted.

Shape legend: B prompts, L positions of a pass, E experts.
"""
from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mamba_mi.config import UserError
from mamba_mi.interventions.knockout import Knockout
from mamba_mi.models.experts import margins
from mamba_mi.trace import KNOCKOUT, NeverReached, Site, Trace


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


class Job:
    """One set of interventions, parted: edits change values at sites, knockouts what the scan of a layer takes in."""

    def __init__(self, interventions: Sequence):
        self.edits = tuple(i for i in interventions if not isinstance(i, Knockout))
        self.knockouts = tuple(i for i in interventions if isinstance(i, Knockout))

    @cached_property
    def knocked(self) -> Counter[int]:
        """The layers with knockouts, and how many of them act there."""
        return Counter(layer for i in self.knockouts for layer in i.layers)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Where its edits change something."""
        return tuple(site for i in self.edits for site in i.sites)

    def first_position(self, length: int, late: bool) -> int:
        """Where it must join: at what it changes first or, unless `late`, at the first source that a query of it reads."""
        first = min((i.first(length) for i in (*self.edits, *self.knockouts)), default=length - 1)
        if not late:
            first = min([first, *(i.reads_from(length) for i in self.knockouts)])
        if not 0 <= first < length:
            raise NeverReached(f"never reached: position {first}; the prompt has {length} tokens")
        return first

    def first_layer(self, lm) -> int:
        """The layer whose block it must join at; edits at final_norm join after the last."""
        depth = lm.config.n_layer
        for layer in self.knocked:
            if layer >= depth:
                raise NeverReached(f"never reached: {Site(layer, KNOCKOUT)}; {lm.name} has layers 0-{depth - 1}")
            if layer not in lm.mixing:
                raise UserError(f"knockout at layer {layer}: it mixes no tokens in {lm.name}; layers "
                                f"{', '.join(map(str, lm.mixing))} do")
        lm.demand(self.sites)
        return min([*self.knocked, *(depth if site.name == "final_norm" else site.layer for site in self.sites)], default=depth)


class Jobs(Trace):
    """The trace of a chunk of jobs: job j owns rows (j+1)·B … (j+2)·B of every value, row block 0 is clean."""

    def __init__(self, jobs: Sequence[Job], rows: int, offset: int, end: int, prefix: Trace):
        super().__init__()
        self.prefix, self.ledger = prefix, Ledger()
        self.rows, self.active = rows, 0
        self.begin(offset, end - offset)
        self._met: dict[tuple[int, int, Site], set[int]] = {}
        self._jobs: dict[Site, list[tuple[int, int, object]]] = defaultdict(list)
        self._knocked: dict[int, list[tuple[int, tuple]]] = defaultdict(list)  # by layer: a job's block, and what acts there
        self._passed: set[int] = set()  # of these, the layers met
        self._masks: dict[tuple, tuple] = {}
        before = any(i.reads_from(end) < offset for job in jobs for i in job.knockouts)
        self._start_of_masks = 0 if before else offset
        self._edits = [(j, k, edit) for j, job in enumerate(jobs) for k, edit in enumerate(job.edits)]
        for j, k, edit in self._edits:
            for site in edit.sites:
                self._jobs[site].append((j, k, edit))
                self._met[j, k, site] = set()
        for j, job in enumerate(jobs):
            here = [(i.layers, self._here(i)) for i in job.knockouts]
            for layer in job.knocked:
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
            self.ledger.edits[site.name] += 1
        return x

    def knockouts(self, layer, rows):
        if found := self._knocked.get(layer, []):
            self._passed.add(layer)
            self.ledger.edits[KNOCKOUT] += sum(len(several) for _, several in found)
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
        self.ledger.routed[layer] += sum(choice_BL.numel() for choice_BL in jobs)
        self.ledger.flips[layer] += sum(int((choice_BL != clean_BL).sum()) for choice_BL in jobs)
        self.ledger.least_margin = min(self.ledger.least_margin, float(margins(p_BLE).min()))

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
