"""Operations: what an edit makes of the value it meets, as frozen data.

Shape legend: B batch, K positions edited, X whatever the site's value has beyond them, D its last axis, R rank.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from mamba_mi.config import UserError


class Op(Protocol):
    """From the value at the edited positions to the one the model goes on with."""

    def __call__(self, x_BKX: Tensor, picked: Sequence[int]) -> Tensor:
        """`picked` says which of the edit's positions these K are, for an op that holds a value for each."""


@dataclass(frozen=True, eq=False)
class Replace:
    """Put `values` there: one for each edited position (B or 1, K, X), or one that fits all of them."""

    values: Tensor

    def __call__(self, x_BKX, picked):
        return fit(self.values, x_BKX, picked).expand_as(x_BKX)


@dataclass(frozen=True, eq=False)
class Add:
    """Add `vector`, times `strength`."""

    vector: Tensor
    strength: float = 1.0

    def __call__(self, x_BKX, picked):
        return x_BKX + self.strength * fit(self.vector, x_BKX, picked)


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
        return torch.zeros_like(x_BKX) if self.kind == "zero" else fit(self.values, x_BKX, picked).expand_as(x_BKX)


@dataclass(frozen=True, eq=False)
class Project:
    """Remove the span of `directions_RD` from the last axis, or with `keep` leave nothing else."""

    directions_RD: Tensor
    keep: bool = False

    @cached_property
    def basis_DR(self) -> Tensor:
        return orthonormal(self.directions_RD)

    def __call__(self, x_BKX, picked):
        inside = _inside(x_BKX, _placed(self.basis_DR, x_BKX))
        return inside if self.keep else x_BKX - inside


@dataclass(frozen=True, eq=False)
class SwapSubspace:
    """Take the part inside the span of `directions_RD` from `values`, leave the rest: an interchange in a subspace.

    With `as_long_as`, other directions, what is put in is rescaled to the norm of what an interchange in their span
    would put in, prompt by prompt and position by position. That is an interchange no more, only as large as one.
    """

    values: Tensor
    directions_RD: Tensor
    as_long_as: Tensor | None = None

    @cached_property
    def basis_DR(self) -> Tensor:
        return orthonormal(self.directions_RD)

    @cached_property
    def other_DR(self) -> Tensor:
        return orthonormal(self.as_long_as)

    def __call__(self, x_BKX, picked):
        difference_BKX = fit(self.values, x_BKX, picked) - x_BKX
        inside_BKX = _inside(difference_BKX, _placed(self.basis_DR, x_BKX))
        if self.as_long_as is None:
            return x_BKX + inside_BKX
        wanted, norm = (torch.linalg.vector_norm(part, dim=-1, keepdim=True) for part in (
            _inside(difference_BKX, _placed(self.other_DR, x_BKX)), inside_BKX))
        # where the two runs do not differ there is nothing to rescale
        return x_BKX + inside_BKX * torch.where(norm > 0, wanted / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0)


@dataclass(frozen=True, eq=False)
class Part:
    """Do `op` to some coordinates alone: `dims` counts along the value's axes beyond the positions, flattened.

    Of a head's P channels in E, `range(h * P, (h + 1) * P)`; of its state, `range(h * P * N, (h + 1) * P * N)`.
    """

    op: Op
    dims: range | tuple[int, ...]

    def __call__(self, x_BKX, picked):
        width = x_BKX[0, 0].numel()
        if not self.dims or min(self.dims) < 0 or max(self.dims) >= width:
            raise UserError(f"coordinates {min(self.dims, default='none')} to {max(self.dims, default='none')} of a "
                            f"value that has 0 to {width - 1}")
        at = slice(self.dims.start, self.dims.stop, self.dims.step) if isinstance(self.dims, range) else list(self.dims)
        y_BKE = x_BKX.flatten(2).clone()
        y_BKE[..., at] = self.op(x_BKX, picked).flatten(2)[..., at]
        return y_BKE.view(x_BKX.shape)


def orthonormal(directions_RD: Tensor) -> Tensor:
    """An orthonormal basis, D by R in float64, of the directions' span; directions that depend on each other raise."""
    directions = torch.atleast_2d(directions_RD).double()
    basis_DR, left_RR = torch.linalg.qr(directions.T)
    # what is left of each direction beside those before it; a rank by singular values costs five times as much
    left_R = left_RR.detach().diagonal().abs() / directions.detach().norm(dim=1)
    if len(left_R) < len(directions) or not (left_R > 1e-10).all():
        rank = int(torch.linalg.matrix_rank(directions.detach()))
        raise UserError(f"{len(directions)} directions span only {rank} dimensions")
    return basis_DR


def _placed(basis_DR: Tensor, x_BKX: Tensor) -> Tensor:
    if len(basis_DR) != x_BKX.shape[-1]:
        raise UserError(f"directions of width {len(basis_DR)} at a site of width {x_BKX.shape[-1]}")
    return basis_DR.to(x_BKX)


def _inside(x_BKX: Tensor, basis_DR: Tensor) -> Tensor:
    return x_BKX @ basis_DR @ basis_DR.T


def fit(values: Tensor, x_BKX: Tensor, picked: Sequence[int]) -> Tensor:
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
