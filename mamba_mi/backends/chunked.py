"""The scan in plain torch, fast on CPU: matrix products inside chunks for Mamba-2, a cache-resident loop for Mamba-1.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, R heads a group, T chunk, J chunks, E = H·P.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_mi.backends.reference import spread

CHUNK = 64
UNDERFLOW = -800.0  # exp(-800) is 0 in float64 too; the clamp keeps cumulated decays small enough to subtract


def missing() -> str:
    """Why this backend cannot run here; empty when it can."""
    return ""


def scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, *, h0=None, keep_h=True) -> tuple[Tensor, Tensor | None]:
    """The contract of `mamba_mi.backends`: one decay a head in chunks, many decays token by token."""
    kind = torch.promote_types(v_BLHP.dtype, torch.float32)
    args = [x.to(kind) for x in (v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN)]
    h0 = None if h0 is None else h0.to(kind)
    if A_HN.shape[1] == 1:
        y, h = _one_decay(*args, h0, keep_h)
    else:
        y, h = _many_decays(*args, h0)
    return y.to(v_BLHP.dtype), h


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


def _many_decays(v, dt, A_HN, B_BLGN, C_BLGN, h0):
    """Mamba-1: the state B N E stays in cache while the tokens go by; no length × state tensor is ever made."""
    rows, length, heads, width = v.shape
    x_BLE = (v * dt[..., None]).flatten(2)
    dt_BLE, A_NE = dt.repeat_interleave(width, dim=2), A_HN.T.repeat_interleave(width, dim=1)
    h = v.new_zeros(rows, A_NE.shape[0], heads * width) if h0 is None else spread(_to_NE(h0), rows)
    B_BLNG, C_BLNG = (m.transpose(2, 3) for m in (B_BLGN, C_BLGN))
    ys = []
    for t in range(length):
        decay = torch.exp(dt_BLE[:, t, None] * A_NE)
        h = torch.addcmul(_to_heads(B_BLNG[:, t], heads * width) * x_BLE[:, t, None], decay, h)
        ys.append((_to_heads(C_BLNG[:, t], heads * width) * h).sum(dim=1) if C_BLNG.shape[3] > 1
                  else (C_BLNG[:, t].transpose(1, 2) @ h)[:, 0])
    y = torch.stack(ys, dim=1).unflatten(2, (heads, width))
    return y, h.unflatten(2, (heads, width)).permute(0, 2, 3, 1)


def _to_NE(h_BHPN):
    return h_BHPN.permute(0, 3, 1, 2).flatten(2)


def _to_heads(m_BNG, inner):
    return m_BNG if m_BNG.shape[2] == 1 else m_BNG.repeat_interleave(inner // m_BNG.shape[2], dim=2)


def conv(u_BLC, weight_CK, bias_C, *, tail=None) -> tuple[Tensor, Tensor]:
    """The causal depthwise convolution as shifted sums: faster on CPU than a grouped conv1d."""
    length, width = u_BLC.shape[1], weight_CK.shape[1]
    tail = u_BLC.new_zeros(1, width - 1, u_BLC.shape[2]) if tail is None else tail
    u = torch.cat([spread(tail, len(u_BLC)), u_BLC], dim=1)
    y = torch.addcmul(bias_C, u[:, width - 1:], weight_CK[:, width - 1])
    for k in range(width - 1):
        y = torch.addcmul(y, u[:, k:k + length], weight_CK[:, k])
    return y, u[:, length:]
