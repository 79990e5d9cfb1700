"""The scan as the papers write it: one token after another. Slow, float64-safe, and the only one that holds every state.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, C channels, K conv width.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_mi.backends.mixing import mixing, mixing_over_heads  # noqa: F401 - of the contract
from mamba_mi.backends.states import by_scan

LOG2E = math.log2(math.e)  # exp(x) is 2^(x LOG2E), and to raise 2 is cheaper on most devices


def missing() -> str:
    """Why this backend cannot run here; empty when it can."""
    return ""


def scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, *, h0=None, keep_h=True,
         dt_write=None) -> tuple[Tensor, Tensor]:
    """The contract of `mamba_mi.backends`, token by token."""
    return watched_scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0=h0, dt_write=dt_write)


states_at = by_scan(scan)


def by_token(v_BLHP, dt_BLH, w_BLH, A_HN, B_BLGN, C_BLGN, h0) -> tuple[Tensor, Tensor]:
    """`scan` in the order of a gradient by hand, which `again` takes through it where it is to have one itself."""
    return scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0=h0, dt_write=w_BLH)


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


def conv(u_BLC, weight_CK, bias_C, *, tail=None, keep_tail=True, silu=False) -> tuple[Tensor, Tensor]:
    """The causal depthwise convolution, one token after another."""
    width = weight_CK.shape[1]
    tail = u_BLC.new_zeros(len(u_BLC), width - 1, u_BLC.shape[2]) if tail is None else spread(tail, len(u_BLC))
    ys = []
    for t in range(u_BLC.shape[1]):
        window_BKC = torch.cat([tail, u_BLC[:, t:t + 1]], dim=1)
        ys.append((window_BKC * weight_CK.T).sum(dim=1) + bias_C)
        tail = window_BKC[:, 1:]
    y_BLC = torch.stack(ys, dim=1)
    return F.silu(y_BLC) if silu else y_BLC, tail


def softplus(z_BLE, bias_E) -> Tensor:
    """log(1 + exp(z + bias)), in the bias's type."""
    x_BLE = z_BLE.to(bias_E.dtype) + bias_E
    # over its argument: on CPU half of this step was the memory for another tensor
    return F.softplus(x_BLE) if x_BLE.requires_grad else torch._C._nn.softplus(x_BLE, out=x_BLE)


def gate(y_BLE, z_BLE) -> Tensor:
    """y ∘ silu(z)."""
    return F.silu(z_BLE).mul_(y_BLE)


def norm(x_BLD, weight_D, eps, *, groups=1) -> Tensor:
    """x over the root of its mean square, group by group, in the weight's type."""
    parts = x_BLD.to(weight_D.dtype).unflatten(-1, (groups, -1))
    # torch's rms_norm makes three tensors of this size on CPU, and most of its time is the memory for them
    square = torch.linalg.vector_norm(parts, dim=-1, keepdim=True).square() / parts.shape[-1]
    return (parts * torch.rsqrt(square + eps)).flatten(-2).mul_(weight_D)


def gated_norm(y_BLE, z_BLE, weight_E, eps, *, groups=1) -> Tensor:
    """The norm of what is gated, in y's type."""
    return norm(gate(y_BLE, z_BLE), weight_E, eps, groups=groups).to(y_BLE.dtype)


def retain(q_BQHK, k_BLHK, v_BLHV, decay_BLH, *, past=None, at=None, gone_BT=None) -> Tensor:
    """Retention, one query after another; L pass, P before it, T = P + L, K key, V value."""
    rows, length = k_BLHK.shape[:2]
    wide = [x.to(torch.promote_types(v_BLHV.dtype, torch.float32)) for x in (q_BQHK, k_BLHK, v_BLHV, decay_BLH)]
    q_BQHK, k_BTHK, v_BTHV, decay_BLH = wide[0], wide[1], wide[2], wide[3].expand(rows, -1, -1)
    left_BTH = decay_BLH[:, :0]
    if past is not None:
        k_past, v_past, left_BTH = (spread(x, rows).to(k_BTHK) for x in past)
        k_BTHK, v_BTHV = torch.cat([k_past, k_BTHK], 1), torch.cat([v_past, v_BTHV], 1)
    ys, before = [], left_BTH.shape[1]
    asked = list(range(length)) if at is None else at.tolist()
    for t in range(length):
        left_BTH = torch.cat([left_BTH * decay_BLH[:, t:t + 1], torch.ones_like(decay_BLH[:, :1])], 1)
        if t not in asked:
            continue
        M_BTH = (k_BTHK[:, :before + t + 1] * q_BQHK[:, asked.index(t), None]).sum(-1)
        M_BTH = M_BTH * left_BTH / left_BTH.sum(1, keepdim=True).sqrt()
        M_BTH = M_BTH / M_BTH.detach().abs().sum(1, keepdim=True).clamp(1, 5e4)
        if gone_BT is not None:
            first = gone_BT.shape[1] - length - before  # a mask may say nothing of what came before the pass
            here_BT = torch.nn.functional.pad(gone_BT, (-first, 0))[:, :before + t + 1]
            M_BTH = M_BTH.masked_fill(here_BT[..., None].to(M_BTH.device), 0)
        ys.append((M_BTH[..., None] * v_BTHV[:, :before + t + 1]).sum(1))
    return torch.stack(ys, dim=1).to(v_BLHV.dtype)


def long_conv(w_BLD, k_TD, *, past_bPD=None) -> Tensor:
    """The long convolution, one token after another, each a sum over all before it."""
    kind = torch.promote_types(w_BLD.dtype, torch.float32)
    w_BTD, k_TD, before = w_BLD.to(kind), k_TD.to(kind), 0
    if past_bPD is not None:
        before = past_bPD.shape[1]
        w_BTD = torch.cat([spread(past_bPD.to(kind), len(w_BLD)), w_BTD], dim=1)
    ys = [(w_BTD[:, :t + 1] * k_TD[..., :t + 1, :].flip(-2)).sum(dim=1) for t in range(before, w_BTD.shape[1])]
    return torch.stack(ys, dim=1).to(w_BLD.dtype)


def widened(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0, dt_write) -> list[Tensor | None]:
    """The scan's arguments in the type its sums are taken in, at least float32; what is written has dt unless it differs."""
    dt_write = dt_BLH if dt_write is None else dt_write
    kind = torch.promote_types(v_BLHP.dtype, torch.float32)
    return [None if x is None else x.to(kind) for x in (v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0, dt_write)]


def needs_grad(given: Iterable[Tensor | None]) -> bool:
    """Whether autograd is to see what is made of these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)


def own_types(x: Tensor) -> AbstractContextManager:
    """Where autocast is on, not under it: it takes products in a short type."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def spread(x: Tensor, rows: int) -> Tensor:
    """`x` repeated over the batch: row r of the result is row r % len(x)."""
    return x if len(x) == rows else x.repeat(rows // len(x), *[1] * (x.ndim - 1))


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """All of them along `dim`; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def starts(own: slice, h0: Tensor | None) -> Tensor | None:
    """The states from which these of a batch's rows start: row r from h0[r % len(h0)]."""
    return None if h0 is None else h0[torch.arange(own.start, own.stop, device=h0.device) % len(h0)]


def gather(dh0: Tensor, own: slice, dh: Tensor) -> None:
    """Add to the gradient of shared starts, in place, those of the starts of these rows."""
    dh0.index_add_(0, torch.arange(own.start, own.stop, device=dh0.device) % len(dh0), dh)


def again(scan: Callable, given: list[Tensor | None], into: tuple[Tensor | None, ...],
          needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of `given` that are `needed`, by autograd through `scan(*given)` and open to being differentiated again;
    `into` are those of what it returns."""
    given = [None if x is None else x.view_as(x) for x in given]  # what one is made of another by is not ours to go through
    pairs = [(y, dy) for y, dy in zip(scan(*given), into) if dy is not None]
    asked = [x for x, need in zip(given, needed) if need]
    found = iter(torch.autograd.grad([y for y, _ in pairs], asked, [dy for _, dy in pairs], create_graph=True,
                                     allow_unused=True))
    return tuple(next(found) if need else None for need in needed[:len(given)])
