"""The scan in plain torch, fast on CPU: matrix products inside chunks for Mamba-2, a cache-resident loop for Mamba-1.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, R heads a group, T chunk, J chunks, E = H·P.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_mi.backends.reference import spread

CHUNK = 64
WORK = 2**17
UNDERFLOW = -800.0  # exp(-800) is 0 in float64 too; the clamp keeps cumulated decays small enough to subtract


def missing() -> str:
    """Why this backend cannot run here; empty when it can."""
    return ""


def scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, *, h0=None, keep_h=True) -> tuple[Tensor, Tensor | None]:
    """The contract of `mamba_mi.backends`: one decay a head in chunks, many decays token by token."""
    kind = torch.promote_types(v_BLHP.dtype, torch.float32)
    v, dt, A, B_, C_ = (x.to(kind) for x in (v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN))
    h0 = None if h0 is None else h0.to(kind)
    mix = _one_decay if A.shape[1] == 1 else _many_decays
    parts = [mix(v[part], dt[part], A, B_[part], C_[part], start, keep_h)
             for part, start in _row_groups(v, A, h0, (v, dt, A, B_, C_, h0))]
    ys, hs = zip(*parts)
    return _joined(ys).to(v_BLHP.dtype), _joined(hs) if keep_h else None


def _row_groups(v, A, h0, given) -> Iterator[tuple[slice, Tensor | None]]:
    """The rows a few at a time, each few with their own start; all at once where gradients will be asked for.

    What is made for a few rows stays in cache, and under the size from which the allocator hands out fresh pages.
    """
    rows, length, inner = len(v), v.shape[1], v.shape[2] * v.shape[3]
    held = inner * (length if A.shape[1] == 1 else A.shape[1])  # numbers in one of a row's work arrays
    size = rows if _needs_grad(given) else max(1, WORK // held)
    if h0 is not None and size < rows and len(h0) not in (1, rows):
        h0 = spread(h0, rows)
    for r in range(0, rows, size):
        part = slice(r, r + size)
        yield part, h0 if h0 is None or len(h0) == 1 or size >= rows else h0[part]


def _needs_grad(given) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)


def _joined(parts):
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _one_decay(v, dt, A_H1, B_BLGN, C_BLGN, h0, keep_h):
    """Mamba-2's dual form: inside a chunk y = ((C Bᵀ) ∘ decay) x, between chunks a short loop over states."""
    length, heads = v.shape[1:3]
    log_decay = torch.clamp_min(dt * A_H1[:, 0], UNDERFLOW)
    x = v * dt[..., None]
    size = min(CHUNK, length)
    x, log_decay, B_, C_ = (_chunks(m, size) for m in (x, log_decay, B_BLGN, C_BLGN))
    x = x.unflatten(3, (B_.shape[3], -1)).permute(0, 1, 3, 4, 2, 5)  # B J G R T P
    B_, C_ = B_.transpose(2, 3), C_.transpose(2, 3)  # B J G T N
    # float64: differences of a long float32 sum are off by 1e-2 in logits at L = 300
    cum = log_decay.double().cumsum(2).transpose(2, 3).unflatten(2, (B_.shape[2], -1))  # B J G R T
    causal = torch.ones(size, size, dtype=torch.bool, device=v.device).tril()
    span = (cum[..., :, None] - cum[..., None, :]).to(x.dtype).masked_fill(~causal, -torch.inf)
    y = (span.exp() * (C_ @ B_.transpose(3, 4))[:, :, :, None]) @ x
    befores, h = _between_chunks(x, cum, B_, h0, keep_h)
    if befores[-1] is not None:
        y = y + _read(C_, befores) * cum.exp().to(x.dtype)[..., None]
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(len(v), -1, heads, v.shape[3])
    return y[:, :length], h


def _chunks(m, size):
    pad = -m.shape[1] % size
    if pad:  # zeros write nothing and decay nothing, so the last state is right as well
        m = F.pad(m, (0, 0) * (m.ndim - 2) + (0, pad))
    return m.unflatten(1, (-1, size))


def _between_chunks(x, cum, B_, h0, keep_h):
    """The state before each chunk (None: zero), and the last one (None unless asked for)."""
    chunks, h = x.shape[1], h0
    befores = [h]
    for j in range(chunks if keep_h else chunks - 1):
        rest = torch.exp(cum[:, j, ..., -1:] - cum[:, j]).to(x.dtype)[..., None]  # B G R T 1
        grown = ((x[:, j] * rest).transpose(3, 4) @ B_[:, j, :, None]).flatten(1, 2)  # B H P N
        if h is not None:
            kept = cum[:, j, ..., -1].exp().to(x.dtype).flatten(1, 2)[..., None, None]
            grown = torch.addcmul(grown, kept, spread(h, len(x)))
        h = grown
        befores.append(h)
    return befores[:chunks], h if keep_h else None


def _read(C_, befores):
    """C_t · h before the chunk, B J G R T P. A state with fewer rows than the batch is read without copying it."""
    rows, _, groups, size, _ = C_.shape
    out = []
    for j, h in enumerate(befores):
        if h is None:
            h = torch.zeros_like(befores[-1])
        h = h.unflatten(1, (groups, -1))  # b G R P N
        c = C_[:, j].unflatten(0, (-1, len(h))).permute(1, 2, 0, 3, 4).flatten(2, 3)  # b G (S T) N
        y = c @ h.flatten(2, 3).transpose(2, 3)  # b G (S T) (R P)
        y = y.unflatten(2, (-1, size)).unflatten(4, h.shape[2:4])  # b G S T R P
        out.append(y.permute(2, 0, 1, 4, 3, 5).reshape(rows, groups, h.shape[2], size, h.shape[3]))
    return torch.stack(out, dim=1)


def _many_decays(v, dt, A_HN, B_BLGN, C_BLGN, h0, keep_h):
    """Mamba-1: the state B N E stays in cache while the tokens go by; no length × state tensor is ever made."""
    heads, width, groups = *v.shape[2:], B_BLGN.shape[2]
    x_BLE = (v * dt[..., None]).flatten(2)
    dt_BLE, A_NE = dt.repeat_interleave(width, dim=2), A_HN.repeat_interleave(width, dim=0).T.contiguous()
    h_BNE = v.new_zeros(len(v), *A_NE.shape) if h0 is None else spread(_to_NE(h0), len(v)).clone()
    ys, hs = zip(*(_one_group(*each) for each in zip(
        x_BLE.chunk(groups, 2), dt_BLE.chunk(groups, 2), A_NE.chunk(groups, 1), B_BLGN.unbind(2), C_BLGN.unbind(2),
        h_BNE.chunk(groups, 2))))
    y, h = torch.cat(ys, dim=2), torch.cat(hs, dim=2)
    return y.unflatten(2, (heads, width)), h.unflatten(2, (heads, width)).permute(0, 2, 3, 1)


def _one_group(x_BLE, dt_BLE, A_NE, B_BLN, C_BLN, h_BNE):
    """y_BLE and the last state of channels that share B and C. The state is written over unless it has gradients."""
    advance = _grown if _needs_grad((x_BLE, dt_BLE, A_NE, B_BLN, h_BNE)) else _overwritten
    ys = []
    for x, dt, B_, C_ in zip(x_BLE[:, :, None].unbind(1), dt_BLE[:, :, None].unbind(1), B_BLN[..., None].unbind(1),
                             C_BLN[:, :, None].unbind(1)):
        h_BNE = advance(h_BNE, torch.mul(dt, A_NE).exp_(), B_, x)
        ys.append(C_ @ h_BNE)
    return torch.cat(ys, dim=1), h_BNE


def _grown(h, decay, B_, x):
    return torch.addcmul(B_ * x, decay, h)


def _overwritten(h, decay, B_, x):
    return h.mul_(decay).addcmul_(B_, x)


def _to_NE(h_BHPN):
    return h_BHPN.permute(0, 3, 1, 2).flatten(2)


def conv(u_BLC, weight_CK, bias_C, *, tail=None) -> tuple[Tensor, Tensor]:
    """The causal depthwise convolution as shifted sums: faster on CPU than a grouped conv1d."""
    length, reach = u_BLC.shape[1], weight_CK.shape[1] - 1
    tail = u_BLC.new_zeros(1, reach, u_BLC.shape[2]) if tail is None else tail
    tap_KC = weight_CK.T.contiguous()
    y = torch.addcmul(bias_C, u_BLC, tap_KC[reach])
    # the sum is ours until it is returned, and no gradient needs what it was before
    for k in range(reach):
        back = reach - k  # how many tokens before its own this tap reads
        y[:, back:].addcmul_(u_BLC[:, :max(length - back, 0)], tap_KC[k])
        y[:, :back].addcmul_(spread(tail[:, k:k + length], len(y)), tap_KC[k])
    return y, torch.cat([spread(tail, len(y)), u_BLC[:, max(length - reach, 0):]], dim=1)[:, -reach or reach + length:]
