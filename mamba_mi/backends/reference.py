"""The scan as the papers write it: one token after another. Slow, float64-safe, and the only one that holds every state.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, C channels, K conv width.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def missing() -> str:
    """Why this backend cannot run here; empty when it can."""
    return ""


def scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, *, h0=None, keep_h=True,
         dt_write=None) -> tuple[Tensor, Tensor]:
    """The contract of `mamba_mi.backends`, token by token."""
    return watched_scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0=h0, dt_write=dt_write)


def watched_scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, *, h0=None, dt_write: Tensor | None = None,
                 on_write: Callable[[Tensor], Tensor] | None = None,
                 on_state: Callable[[int, Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """The same scan, with all writes handed to `on_write` and each state h_t, as B1HPN, to `on_state(t, h)`.

    What they return is what the recurrence goes on with: a changed h_t reaches every later token.
    """
    v, dt, A, B_, C_, h0, w = widened(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0, dt_write)
    rows, length, heads, width = v.shape
    B_BLHN, C_BLHN = (m.repeat_interleave(heads // m.shape[2], dim=2) for m in (B_, C_))
    decay_BLHN = torch.exp(dt[..., None] * A)
    write_BLHPN = (w[..., None] * v)[..., None] * B_BLHN[..., None, :]
    if on_write:
        write_BLHPN = on_write(write_BLHPN)
    h = v.new_zeros(rows, heads, width, B_.shape[-1]) if h0 is None else spread(h0, rows)
    ys = []
    for t in range(length):
        h = decay_BLHN[:, t, :, None] * h + write_BLHPN[:, t]
        if on_state:
            h = on_state(t, h[:, None])[:, 0]
        ys.append((h @ C_BLHN[:, t, :, :, None])[..., 0])
    return torch.stack(ys, dim=1).to(v_BLHP.dtype), h


def conv(u_BLC, weight_CK, bias_C, *, tail=None, keep_tail=True) -> tuple[Tensor, Tensor]:
    """The causal depthwise convolution, one token after another."""
    width = weight_CK.shape[1]
    tail = u_BLC.new_zeros(len(u_BLC), width - 1, u_BLC.shape[2]) if tail is None else spread(tail, len(u_BLC))
    ys = []
    for t in range(u_BLC.shape[1]):
        window_BKC = torch.cat([tail, u_BLC[:, t:t + 1]], dim=1)
        ys.append((window_BKC * weight_CK.T).sum(dim=1) + bias_C)
        tail = window_BKC[:, 1:]
    return torch.stack(ys, dim=1), tail


def widened(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0, dt_write) -> list[Tensor | None]:
    """The scan's arguments in the type its sums are taken in, at least float32; what is written has dt unless it differs."""
    dt_write = dt_BLH if dt_write is None else dt_write
    kind = torch.promote_types(v_BLHP.dtype, torch.float32)
    return [None if x is None else x.to(kind) for x in (v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0, dt_write)]


def spread(x: Tensor, rows: int) -> Tensor:
    """`x` repeated over the batch: row r of the result is row r % len(x)."""
    return x if len(x) == rows else x.repeat(rows // len(x), *[1] * (x.ndim - 1))
