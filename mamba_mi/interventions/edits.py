"""Edits: frozen data that say at which site, at which positions, and what is done to the value there.

Shape legend: B batch, K positions edited, X whatever the site's value has beyond them, D its last axis, R rank.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from mamba_mi.config import UserError
from mamba_mi.trace import Site

ALL = "all"


class Op(Protocol):
    """From the value at the edited positions to the one the model goes on with."""

    def __call__(self, x_BKX: Tensor, picked: Sequence[int]) -> Tensor:
        """`picked` says which of the edit's positions these K are, for an op that holds a value for each."""


@dataclass(frozen=True, eq=False)
class Replace:
    """Put `values` there: one for each edited position (B or 1, K, X), or one that fits all of them."""

    values: Tensor

    def __call__(self, x_BKX, picked):
        return _fit(self.values, x_BKX, picked).expand_as(x_BKX)


@dataclass(frozen=True, eq=False)
class Add:
    """Add `vector`, times `strength`."""

    vector: Tensor
    strength: float = 1.0

    def __call__(self, x_BKX, picked):
        return x_BKX + self.strength * _fit(self.vector, x_BKX, picked)


@dataclass(frozen=True)
class Scale:
    """Multiply by `factor`; 1 changes nothing to the bit."""

    factor: float

    def __call__(self, x_BKX, picked):
        return x_BKX * self.factor


@dataclass(frozen=True, eq=False)
class Ablate:
    """Remove what is there: by zero, by the mean over a reference corpus, or by another prompt's value (resample)."""

    kind: Literal["zero", "mean", "resample"] = "zero"
    values: Tensor | None = None

    def __post_init__(self):
        if self.kind not in ("zero", "mean", "resample"):
            raise UserError(f"Ablate(kind={self.kind!r}): there are zero, mean, resample")
        if (self.values is None) != (self.kind == "zero"):
            raise UserError(f"Ablate(kind={self.kind!r}) {'takes no' if self.kind == 'zero' else 'needs'} values")

    def __call__(self, x_BKX, picked):
        return torch.zeros_like(x_BKX) if self.kind == "zero" else _fit(self.values, x_BKX, picked).expand_as(x_BKX)


@dataclass(frozen=True, eq=False)
class Project:
    """Remove the span of `directions_RD` from the last axis, or with `keep` leave nothing else."""

    directions_RD: Tensor
    keep: bool = False

    def __call__(self, x_BKX, picked):
        basis_DR = orthonormal(self.directions_RD, x_BKX)
        inside = x_BKX @ basis_DR @ basis_DR.T
        return inside if self.keep else x_BKX - inside


@dataclass(frozen=True, eq=False)
class SwapSubspace:
    """Take the part inside the span of `directions_RD` from `values`, leave the rest: an interchange in a subspace."""

    values: Tensor
    directions_RD: Tensor

    def __call__(self, x_BKX, picked):
        basis_DR = orthonormal(self.directions_RD, x_BKX)
        difference = _fit(self.values, x_BKX, picked) - x_BKX
        return x_BKX + difference @ basis_DR @ basis_DR.T


def orthonormal(directions_RD: Tensor, like: Tensor) -> Tensor:
    """An orthonormal basis, D by R, of the directions' span; directions that depend on each other raise."""
    directions = torch.atleast_2d(directions_RD).double()
    if directions.shape[1] != like.shape[-1]:
        raise UserError(f"directions of width {directions.shape[1]} at a site of width {like.shape[-1]}")
    rank = int(torch.linalg.matrix_rank(directions))
    if rank < len(directions):
        raise UserError(f"{len(directions)} directions span only {rank} dimensions")
    return torch.linalg.qr(directions.T)[0].to(like)


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
            several = [self.positions] if isinstance(self.positions, int) else self.positions
            object.__setattr__(self, "positions", tuple(int(p) for p in several))
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


def _fit(values: Tensor, x_BKX: Tensor, picked: Sequence[int]) -> Tensor:
    """`values` for the positions at hand, in the value's type and place."""
    values = values.to(device=x_BKX.device, dtype=x_BKX.dtype)
    if values.ndim == x_BKX.ndim and values.shape[1] > 1:
        if max(picked) >= values.shape[1]:
            raise UserError(f"the edit holds values for {values.shape[1]} positions, and position number "
                            f"{max(picked)} was asked for")
        values = values[:, list(picked)]
    try:
        return values.expand_as(x_BKX)
    except RuntimeError:
        raise UserError(f"values of shape {tuple(values.shape)} do not fit the site's {tuple(x_BKX.shape)}") from None
