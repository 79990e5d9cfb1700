"""Seeing and touching a forward pass: sites, and the trace that keeps and edits what passes through them.

Every quantity of a model goes through `trace(Site(layer, "dt"), x)`; a site may also be named as MambaLens and
TransformerLens name it (`"blocks.3.hook_resid_pre"`, see `hook_names`). Positions are absolute: they count from
the prompt's first token, so an edit means the same token in a whole pass, in a pass restarted from a prefix,
and in generation. The position axis of every value is 1.
"""
from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mamba_mi.config import UserError
from mamba_mi.hook_names import Place, place_of, site_name, state_name

__all__ = ["BLIND", "KNOCKOUT", "Intervention", "NeverReached", "Site", "Trace", "site_name"]
KNOCKOUT = "knockout"  # where knockouts act and are counted under; no value passes here, so it is no site of a model


class Site(NamedTuple):
    """A named place in the forward pass: `Site(12, "dt")`. Layer -1 is outside the blocks (embed, final_norm)."""

    layer: int
    name: str

    def __str__(self):
        return f"{self.layer}.{self.name}"

    @classmethod
    def of(cls, asked: Site | tuple[int, str] | str) -> Site:
        """A site however it is named: `Site(3, "resid")`, `"3.resid"`, `"blocks.3.hook_resid_pre"`.

        `"blocks.3.hook_h.7"` is the state at layer 3; the position is kept beside it for who reads or edits there.
        """
        if not isinstance(asked, str):
            layer, name = asked
            place, asked = Place(layer, site_name(name)), asked if isinstance(asked, Site) else cls(layer, name)
            if place.name == name:
                return asked
        else:
            place = place_of(asked)
        if place.layer is None:
            raise UserError(f"{asked}: at which layer? Write Site(3, {place.name!r}) or \"3.{place.name}\"")
        site = _Asked(place.layer, place.name)
        site.asked, site.position = str(asked), place.position
        return site


class _Asked(Site):
    """A site and the name it was asked for by, so that an error can say it."""

    position = None

    def __str__(self):
        own = super().__str__()
        return own if self.asked == own else f"{own} ({self.asked})"


class Values(dict):
    """Tensors by site, found under any name the site has; a name with a position gives that position alone. Where nothing
    but positions was kept of a site, these are found by their names (`state_name`), and the site is not."""

    def __init__(self, values, start: int):
        super().__init__(values)
        self.start = start

    def __missing__(self, asked):
        site = Site.of(asked)
        position = getattr(site, "position", None)
        if position is not None and dict.__contains__(self, name := state_name(site.layer, position)):
            return self[name]
        if not dict.__contains__(self, site):
            raise KeyError(f"{site} was not kept; kept are {', '.join(map(str, self)) or 'none'}")
        x = self[Site(*site)]
        if position is None:
            return x
        if not 0 <= position - self.start < x.shape[1]:
            raise KeyError(f"{site}: positions {self.start}-{self.start + x.shape[1] - 1} were met")
        return x[:, [position - self.start]]


class NeverReached(LookupError):
    """Something asked for was not met in the pass: a silent intervention is a wrong result."""


class Intervention(Protocol):
    """What a trace asks of an intervention: where it acts, and what it makes of the value it meets there."""

    sites: tuple[Site, ...]

    def touches(self, offset: int, length: int, end: int) -> set[int]:
        """The absolute positions it acts on, of those in `offset … offset+length-1`; `end` is where the pass ends."""

    def missing(self, touched: set[int]) -> str:
        """What it wanted to act on beyond `touched`, in words; empty when nothing."""

    def apply(self, site: Site, x: Tensor, offset: int, end: int) -> Tensor:
        """The value the model goes on with; `x` has positions offset … on axis 1 and is never changed in place."""


class Trace:
    """One prompt's passage through a model, seen from inside: `.values[site]` for the sites kept, edits applied.

    Serves one pass, or several that go on where the last one stopped (generation). Kept values are cut from the
    graph unless `grad`: then after `loss.backward()` the gradient at each is in `.grads`. Of a state that is kept by names
    with positions alone (`"blocks.3.hook_h.7"`) no other positions are held. Use it as a context: leaving raises NeverReached
    for a site or a position never met.
    """

    def __init__(self, keep: Iterable[Site | str] = (), interventions: Iterable[Intervention] = (), grad: bool = False):
        asked = [Site.of(site) for site in ([keep] if isinstance(keep, str | Site) else keep)]
        named = [(site, getattr(site, "position", None)) for site in asked]
        self.keep = frozenset(asked)
        self.interventions, self.grad = tuple(interventions), grad
        self.counts: Counter[Site] = Counter()
        self.memory: dict = {}  # what is made once and serves every layer
        self.offset, self._start, self._end = 0, 0, None
        whole = {site for site, position in named if grad or position is None}
        self._few: dict[Site, set[int]] = defaultdict(set)  # the positions that alone are kept
        self._unmet: dict[Site, set[int]] = defaultdict(set)  # those that were named and not met yet
        for site, position in named:
            if position is not None:
                self._unmet[site].add(position)
            if site not in whole:
                self._few[site].add(position)
        self._pieces: dict[Site | str, list[Tensor]] = defaultdict(list)
        self._touched: dict[tuple[int, Site], set[int]] = defaultdict(set)
        self._at: dict[Site, list[tuple[int, Intervention]]] = defaultdict(list)
        for number, intervention in enumerate(self.interventions):
            for site in intervention.sites:
                self._at[site].append((number, intervention))

    @property
    def asked(self) -> list[Site]:
        """The sites kept and those edited."""
        return [*self.keep, *(site for site in self._at if site.name != KNOCKOUT)]

    @property
    def values(self) -> Values:
        """What was kept: one tensor a site, positions of later passes joined on axis 1."""
        return self._joined(lambda x: x)

    @property
    def grads(self) -> Values:
        """Gradients at the sites kept, after `backward` (grad=True); a site the loss does not depend on raises.

        Zero at the positions the loss does not depend on. At an edited site it is that of the value the model went on
        with.
        """
        if cut := [str(site) for site, pieces in self._pieces.items() if all(p.grad is None for p in pieces)]:
            raise NeverReached(f"no gradient at {', '.join(cut)}: call backward first, with Trace(grad=True); whole numbers "
                               "(choice) have none")
        return self._joined(lambda x: torch.zeros_like(x) if x.grad is None else x.grad)

    def _joined(self, part) -> Values:
        pieces = ((site, [part(x) for x in several]) for site, several in self._pieces.items())
        return Values({site: p[0] if len(p) == 1 else torch.cat(p, dim=1) for site, p in pieces}, self._start)

    def kept(self, site: Site) -> Tensor:
        """What was kept at one site, without joining the others."""
        pieces = self._pieces[site]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def wants(self, site: Site) -> bool:
        """Whether anybody watches this site: costly values (write, state) are made only then."""
        return site in self.keep or site in self._at

    def few(self, site: Site) -> list[int] | None:
        """The positions of this pass, counted from its first, that alone are kept of this site; None where more is asked
        of it. The site counts as met."""
        if site not in self._few or self.edits(site):
            return None
        self.counts[site] += 1
        return [p - self.offset for p in sorted(self._few[site]) if self.offset <= p < self._end]

    def begin(self, offset: int, length: int) -> None:
        """A pass over positions offset … offset+length-1 starts. It must go on where the last one stopped."""
        if self._end is not None and offset != self._end:
            raise ValueError(f"this Trace already saw positions up to {self._end - 1}, and the new pass starts at "
                             f"{offset}: make a new Trace for every prompt")
        if self.grad and not torch.is_grad_enabled():
            raise UserError("Trace(grad=True) inside torch.no_grad() or a call that is (generate, evaluate): no gradient "
                            "is made there")
        self._start = offset if self._end is None else self._start
        self.offset, self._end = offset, offset + length

    def join(self, offset: int, length: int) -> None:
        """A pass may start at any layer: `begin`, unless this very stretch has begun below."""
        if (self.offset, self._end) != (offset, offset + length):
            self.begin(offset, length)

    def edits(self, site: Site) -> bool:
        """Whether an intervention acts at this site."""
        return site in self._at

    def __call__(self, site: Site, x: Tensor, at: int | None = None) -> Tensor:
        """The value to go on with. `at` is the position of x's first token where that is not the pass's first."""
        offset = self.offset if at is None else at
        self.counts[site] += 1
        if self.grad and not x.requires_grad and x.is_floating_point():
            x = x.detach().requires_grad_(True)
        for number, intervention in self._at.get(site, ()):
            self._touched[number, site] |= intervention.touches(offset, x.shape[1], self._end)
            x = intervention.apply(site, x, offset, self._end)
        if site in self.keep:
            if self.grad and x.is_floating_point():
                x.retain_grad()
            self._take(site, x if self.grad else x.detach(), offset)
        return x

    def _take(self, site: Site, x: Tensor, offset: int) -> None:
        end = offset + x.shape[1]
        if site in self._unmet:
            self._unmet[site] -= set(range(offset, end))
        if site not in self._few:
            return self._pieces[site].append(x)
        for p in self._few[site]:
            if offset <= p < end:  # of several positions a copy, so that the others are let go
                one = x if x.shape[1] == 1 else x[:, p - offset:p - offset + 1].clone()
                self._pieces[state_name(site.layer, p)].append(one)

    def knockouts(self, layer: int, rows: int) -> list[tuple[int, list]]:
        """The knockouts of this layer by the block of rows they act on, here all `rows`: (queries, sources, knockout).

        Queries and sources are masks over the positions of this pass; the cone's trace, which holds what came before
        it, may give them over the whole prompt.
        """
        site = Site(layer, KNOCKOUT)
        if site not in self._at:
            return []
        self.counts[site] += 1
        for number, knockout in self._at[site]:
            self._touched[number, site] |= knockout.touches(self.offset, self._end - self.offset, self._end)
        return [(0, [knockout.here(rows, self.offset, self._end, self.offset == self._start)
                     for _, knockout in self._at[site]])]

    def routed(self, layer: int, choice_BL: Tensor, p_BLE: Tensor) -> None:
        """Which expert each token of this layer was sent to, and every expert's probability; the cone counts what its
        jobs change."""

    def again(self, site: Site, x: Tensor, blocks: Sequence[int], at: int) -> Tensor:
        """Edits on a value of `blocks`, one after another on axis 0, that a knockout makes a second time: not counted."""
        if not self.edits(site):
            return x
        parts = list(x.chunk(len(blocks)))
        for k, block in enumerate(blocks):
            for intervention in self._acting(site, block):
                parts[k] = intervention.apply(site, parts[k], at, self._end)
        return torch.cat(parts)

    def _acting(self, site: Site, block: int) -> list[Intervention]:
        return [intervention for _, intervention in self._at[site]]

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()

    def close(self) -> None:
        """Raise NeverReached for every site or position that was asked for and not met."""
        missed = {s for s in (*self.keep, *self._at) if not self.counts[s]}
        if missed:
            met = sorted({s.name for s in self.counts})
            layers = sorted({s.layer for s in self.counts if s.layer >= 0})
            span = f"layers {layers[0]}-{layers[-1]}" if layers else "no layer"
            raise NeverReached(f"never reached: {', '.join(map(str, sorted(missed)))}; "
                               f"the pass went through {span} and sites {', '.join(met) or 'none'}")
        if unmet := [state_name(site.layer, p) for site, positions in self._unmet.items() for p in sorted(positions)]:
            raise NeverReached(f"never reached: {', '.join(unmet)}; the pass went over positions {self._start}-{self._end - 1}")
        for number, intervention in enumerate(self.interventions):
            for site in intervention.sites:
                if missing := intervention.missing(self._touched[number, site]):
                    raise NeverReached(f"never reached at site {site}: {missing}; the pass ended at position {self._end - 1}")


class _Blind(Trace):
    """The trace of a pass nobody watches: hands every value straight back and counts nothing."""

    def begin(self, offset, length):
        pass

    def __call__(self, site, x, at=None):
        return x


BLIND = _Blind()
