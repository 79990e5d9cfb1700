"""Edits: frozen data that say at which site, at which positions, and what is done to the value there."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor

from mamba_mi.config import UserError
from mamba_mi.interventions.ops import Op
from mamba_mi.trace import Site

ALL = "all"


@dataclass(frozen=True, eq=False)
class Edit:
    """`op` at `site`, at `positions`: one, several, or "all". Negative positions count from the end of the pass.

    The site may be named as other libraries do (`Site.of`); a name that has a position goes with that one alone.
    """

    site: Site | str
    positions: int | tuple[int, ...] | str
    op: Op

    def __post_init__(self):
        object.__setattr__(self, "site", Site.of(self.site))
        if self.positions != ALL:
            if isinstance(self.positions, str):
                raise UserError(f"positions={self.positions!r}: give a position, several, or \"all\"")
            object.__setattr__(self, "positions", whole_numbers("positions", self.positions))
            if not self.positions or len(set(self.positions)) < len(self.positions):
                raise UserError(f"positions={self.positions}: at least one, and each once")
        named = getattr(self.site, "position", None)
        if named is not None and self.positions != (named,):
            raise UserError(f"{self.site.asked}: names position {named}, and positions={self.positions} was given")

    @property
    def sites(self) -> tuple[Site, ...]:
        return (self.site,)

    def first(self, length: int) -> int:
        """The first position it can change, in a prompt of `length` tokens."""
        return 0 if self.positions == ALL else min(p + length if p < 0 else p for p in self.positions)

    def touches(self, offset: int, length: int, end: int) -> set[int]:
        return {position for position, _ in self._met(offset, length, end)}

    def missing(self, touched: set[int]) -> str:
        if self.positions == ALL:
            return ""
        missed = [p for p in self.positions if p >= 0 and p not in touched]
        from_end = [p for p in self.positions if p < 0]
        if len(touched - set(self.positions)) < len(from_end):  # each must have met a position of its own
            missed += from_end
        return f"position{'s' if len(missed) > 1 else ''} {', '.join(map(str, missed))}" if missed else ""

    def apply(self, site: Site, x: Tensor, offset: int, end: int) -> Tensor:
        met = self._met(offset, x.shape[1], end)
        if not met:
            return x
        at = [position - offset for position, _ in met]
        chosen = x[:, at]
        changed = self.op(chosen, [which for _, which in met])
        if changed.shape != chosen.shape:
            raise UserError(f"edit at site {site}: the op gives shape {tuple(changed.shape)}, the site has {tuple(chosen.shape)}")
        x = x.clone()
        x[:, at] = changed.to(x.dtype)
        return x

    def _met(self, offset, length, end):
        """(absolute position, which of the edit's positions it is) for those in this pass."""
        if self.positions == ALL:
            return [(p, p) for p in range(offset, offset + length)]
        resolved = ((p + end if p < 0 else p, which) for which, p in enumerate(self.positions))
        return [(p, which) for p, which in resolved if offset <= p < offset + length]


@dataclass(frozen=True, eq=False)
class StateEdit:
    """`op` on the SSM state h_t (B1HPN) right after token `position`; the recurrence goes on from the changed state."""

    layer: int
    position: int
    op: Op

    def __post_init__(self):
        edit = Edit(Site(self.layer, "state"), self.position, self.op)
        for name in ("first", "touches", "missing", "apply"):
            object.__setattr__(self, name, getattr(edit, name))

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(self.layer, "state"),)


def whole_numbers(name: str, asked) -> tuple[int, ...]:
    """One or several; what is no whole number is refused, never rounded or read from letters."""
    alone = isinstance(asked, str) or not isinstance(asked, Iterable) or getattr(asked, "ndim", 1) == 0
    try:
        several = (asked,) if alone else tuple(asked)
        if any(isinstance(i, bool) or getattr(i, "dtype", None) == torch.bool for i in several):
            raise TypeError
        return tuple(index(i) for i in several)
    except TypeError:
        raise UserError(f"{name}={asked!r}: give a whole number or several, such as 3 or (3, 4)") from None
