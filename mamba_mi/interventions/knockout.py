"""Knockouts: frozen data that say which positions may no longer read from which, through the mixing of which layers.

Shape legend: B prompts, L positions of a pass, T positions of the whole prompt.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mamba_mi.config import UserError, did_you_mean
from mamba_mi.interventions.edits import ALL, whole_numbers
from mamba_mi.trace import KNOCKOUT, Site

Places = int | tuple[int, ...] | str | Tensor
CONVS, SPANS = ("scan", "conv", "both"), ("token", "token+conv")


@dataclass(frozen=True, eq=False)
class Knockout:
    """M[queries, sources] := 0 at each of `layers`: the queries read a scan in which the sources wrote nothing.

    Queries and sources: a position, several, "all", or a boolean mask, prompts by positions; negative ones count from
    the end. What decays, D, the gate and C stay, and so does every other position. The conv carries a token's content
    into the slots up to K-1 after it, so say what is meant:
    conv="scan"  the slot writes nothing: what earlier tokens left in it by the conv goes too, what it left in later
                 slots stays; "both" the token is taken out of the conv's input for every write; "conv" the same, but
                 its own slot keeps it: only the way past the scan is cut.
    span="token+conv"  sources are widened by the K-1 slots after each.
    heads (Mamba-2) or channels (Mamba-1)  only these lose the sources; all by default.
    query_conv   with "both" or "conv": a query's own C and D-skip are made without the sources too.
    dense (DenseMamba)  the queries lose what the sources' slots wrote in the earlier layers too, as this layer reads it:
                 whole slots under every conv policy, with the same span. Otherwise only this layer's own writes go.
    Sites of that layer before the scan hold what they hold without the knockout; `scan_out` is the first to change.
    """

    layers: int | tuple[int, ...]
    queries: Places
    sources: Places
    conv: str = "scan"
    span: str = "token"
    heads: int | tuple[int, ...] | None = None
    query_conv: bool = False
    channels: int | tuple[int, ...] | None = None
    dense: bool = False

    def __post_init__(self):
        for name, known in (("conv", CONVS), ("span", SPANS)):
            if (asked := getattr(self, name)) not in known:
                raise UserError(f"Knockout({name}={asked!r}): there are {', '.join(known)}{did_you_mean(str(asked), known)}")
        if self.query_conv and self.conv == "scan":
            raise UserError("Knockout(query_conv=True) goes with conv=\"both\" or \"conv\": \"scan\" leaves the conv as it is")
        for name in ("layers", "heads", "channels"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _counted(name, getattr(self, name)))
        for name in ("queries", "sources"):
            object.__setattr__(self, name, _places(name, getattr(self, name)))
        if not _asked(self.queries):
            raise UserError("Knockout: no query; give at least one position that may no longer read the sources")

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        return tuple(Site(layer, KNOCKOUT) for layer in self.layers)

    @cached_property
    def alike(self) -> tuple:
        """What two knockouts share that do the same, whatever their layers; two masks are the same if they are one."""
        return tuple(id(x) if isinstance(x, Tensor) else x for x in (
            self.queries, self.sources, self.conv, self.span, self.heads, self.query_conv, self.channels, self.dense))

    def first(self, length: int) -> int:
        """The first position it can change, in a prompt of `length` tokens."""
        return min(_positions(self.queries, length))

    def reads_from(self, length: int) -> int:
        """The first position whose writes must be at hand: of the sources that a query may read, or the first query."""
        queries = list(_positions(self.queries, length))
        return min([*queries, *(s for s in _positions(self.sources, length) if s <= max(queries))])

    def touches(self, offset: int, length: int, end: int) -> set:
        """Which of the queries and sources asked for lie in this pass."""
        return {(kind, p) for kind, places in self._kinds() for p in _asked(places)
                if p == ALL or offset <= (p + end if p < 0 else p) < offset + length}

    def missing(self, touched: set) -> str:
        missed = [(kind, p) for kind, places in self._kinds() for p in sorted(_asked(places), key=str)
                  if (kind, p) not in touched]
        return ", ".join(f"{kind} {p}" for kind, p in missed)

    def here(self, rows: int, offset: int, end: int, first: bool) -> tuple[Tensor, Tensor, Knockout]:
        """Queries and sources of a pass over positions offset … end-1 as masks, B by L; `first` of its prompt or not.

        Raises where a source lies before the pass and a query in it: the state it starts from holds that source.
        """
        queries_BT, sources_BT = (_mask(kind, places, rows, end, first) for kind, places in self._kinds())
        past_B = queries_BT[:, offset:].any(dim=1) & sources_BT[:, :offset].any(dim=1)
        if past_B.any():
            source = int(sources_BT[past_B].int().argmax(dim=1).min())
            raise UserError(f"knockout of source {source}: it was read in an earlier pass (this one has positions {offset}-"
                            f"{end - 1}), and the state that goes on from there holds it; run sources and queries in "
                            "one pass over the whole text, without past")
        return queries_BT[:, offset:], sources_BT[:, offset:], self

    def _kinds(self):
        return ("query", self.queries), ("source", self.sources)


def _counted(name: str, asked) -> tuple[int, ...]:
    several = whole_numbers(f"Knockout: {name}", asked)
    if not several or len(set(several)) < len(several) or min(several) < 0:
        raise UserError(f"Knockout({name}={asked}): at least one, each once, counted from 0")
    return several


def _places(name: str, asked) -> Places:
    if isinstance(asked, Tensor):
        if asked.dtype != torch.bool or asked.ndim != 2:
            raise UserError(f"Knockout({name}=…): a tensor must be a boolean mask, prompts by positions, not "
                            f"{asked.dtype} of shape {tuple(asked.shape)}")
        return asked.detach().cpu().clone()
    if isinstance(asked, str):
        if asked != ALL:
            raise UserError(f"Knockout({name}={asked!r}): give a position, several, \"all\" or a boolean mask")
        return asked
    several = whole_numbers(f"Knockout: {name}", asked)
    if len(set(several)) < len(several):
        raise UserError(f"Knockout({name}={several}): each position once")
    return several


def _asked(places: Places) -> set:
    """What must be met: positions as they were given, a mask's columns, or "all"."""
    if isinstance(places, Tensor):
        return set(places.any(dim=0).nonzero()[:, 0].tolist())
    return {ALL} if places == ALL else set(places)


def _positions(places: Places, length: int) -> Iterator[int]:
    asked = _asked(places)
    return iter(range(length)) if ALL in asked else (p + length if p < 0 else p for p in asked)


def _mask(kind: str, places: Places, rows: int, end: int, first: bool) -> Tensor:
    """B by T. A mask of the prompt's width says nothing of tokens generated after it: these are not in it."""
    if not isinstance(places, Tensor):
        mask_T = torch.zeros(end, dtype=torch.bool)
        mask_T[[p for p in _positions(places, end) if 0 <= p < end]] = True
        return mask_T.expand(rows, end)
    if len(places) not in (1, rows) or (first and places.shape[1] < end):
        raise UserError(f"Knockout: the {kind} mask has shape {tuple(places.shape)}, and there are {rows} prompts of {end} "
                        "positions")
    wide_BT = torch.nn.functional.pad(places, (0, max(0, end - places.shape[1])))
    return wide_BT[:, :end].expand(rows, end)
