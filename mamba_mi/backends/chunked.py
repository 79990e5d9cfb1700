"""The scan in plain torch, fast on CPU: matrix products inside chunks for Mamba-2, a cache-resident loop for Mamba-1.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, R heads a group, T chunk, E = H·P.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_mi.backends import many_decays, many_decays_gradients, one_decay, one_decay_gradients
from mamba_mi.backends.long_conv import long_conv
from mamba_mi.backends.mixing import mixing, mixing_over_heads
from mamba_mi.backends.reference import (
    gate,
    gated_norm,
    joined,
    needs_grad,
    norm,
    own_types,
    softplus,
    spread,
    widened,
)
from mamba_mi.backends.retention import retain
from mamba_mi.backends.shifted_sums import Conv, added
from mamba_mi.backends.states import by_scan

__all__ = ["conv", "gate", "gated_norm", "long_conv", "missing", "mixing", "mixing_over_heads", "norm", "retain", "scan",
           "softplus", "states_at"]
WORK = 2**18  # numbers; four bytes each, half of what a core's second cache commonly holds


def missing() -> str:
    """Why this backend cannot run here; empty when it can."""
    return ""


def scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, *, h0=None, keep_h=True,
         dt_write=None) -> tuple[Tensor, Tensor | None]:
    """The contract of `mamba_mi.backends`: one decay a head in chunks, many decays token by token."""
    v, dt, A, B_, C_, h0, w = widened(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0, dt_write)
    one = A.shape[1] == 1
    with own_types(v):
        if needs_grad((v, dt, w, A, B_, C_, h0)):
            mix = (one_decay_gradients if one else many_decays_gradients).mix
            y, h = mix(v, dt, w, A, B_, C_, h0, keep_h)
            return y.to(v_BLHP.dtype), h
        mix = (one_decay if one else many_decays).mix
        parts = [mix(v[part], dt[part], w[part], A, B_[part], C_[part], start, keep_h)
                 for part, start in _row_groups(v, A, h0)]
    ys, hs = zip(*parts)
    return joined(ys).to(v_BLHP.dtype), joined(hs) if keep_h else None


states_at = by_scan(scan)


def _row_groups(v, A, h0) -> Iterator[tuple[slice, Tensor | None]]:
    """The rows a few at a time, each few with their own start.

    What is made for a few rows stays in cache, and under the size from which the allocator hands out fresh pages.
    """
    rows, length, inner = len(v), v.shape[1], v.shape[2] * v.shape[3]
    held = inner * (min(length, one_decay.CHUNK) if A.shape[1] == 1 else 2 * A.shape[1])  # a chunk; or a state and its decay
    size = max(1, WORK // held)
    starts = rows if h0 is None else len(h0)
    if starts < rows:  # whole rounds, so that row r of every few starts from state r % starts and none is copied
        size = max(starts, size // starts * starts)
    for r in range(0, rows, size):
        yield slice(r, r + size), h0 if h0 is None or starts < rows or size >= rows else h0[r:r + size]


def conv(u_BLC, weight_CK, bias_C, *, tail=None, keep_tail=True, silu=False) -> tuple[Tensor, Tensor | None]:
    """The causal depthwise convolution as shifted sums: faster on CPU than a grouped conv1d."""
    tail = u_BLC.new_zeros(1, weight_CK.shape[1] - 1, u_BLC.shape[2]) if tail is None else tail
    given = u_BLC, weight_CK, bias_C, tail
    y = Conv.apply(*given) if needs_grad(given) else added(*given)
    if silu:
        y = F.silu(y, inplace=not y.requires_grad)
    if not keep_tail:
        return y, None
    return y, last_inputs(u_BLC, tail)


def last_inputs(u_BLC, tail_bKC) -> Tensor:
    """The tail after these inputs: as many of the last as there were before them."""
    length, before = u_BLC.shape[1], tail_bKC.shape[1]
    last = max(length - before, 0)
    return torch.cat([spread(tail_bKC, len(u_BLC)), u_BLC[:, last:]], dim=1)[:, length - last:]
