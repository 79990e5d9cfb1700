"""The scan of Mamba-2, one decay a head: matrix products inside chunks.

With c_t = Σ_{1..t} dt A (in code times log2(e), for exp2) inside a chunk, x_t = dt_t v_t, h the state before the chunk and h' the one after it (P × N):
    y_t = Σ_{s<=t} M[t, s] x_s + exp(c_t) h C_t,   M[t, s] = Λ[t, s] (C_t · B_s),   Λ[t, s] = exp(c_t - c_s)
    h' = exp(c_T) h + Σ_s exp(c_T - c_s) x_s B_sᵀ

Shape legend: B batch, L length, H heads, P head width, N state, G groups, R heads a group, T chunk; b rows of the state before.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mamba_mi.backends.reference import LOG2E, joined, spread

CHUNK = 64
UNDERFLOW = -800.0  # exp(-800) is 0 in float64 too; the clamp keeps cumulated decays small enough to subtract


def mix(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h):
    """Without gradients, a chunk after another: what one chunk makes stays in cache until it is read."""
    if v.shape[1] == 1 and h0 is not None and not keep_h:
        return _one_token(v, dt, w, A_H1, B_BLGN, C_BLGN, h0), None
    _, ys, hs = zip(*walk(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h))
    return joined(ys, 1), hs[-1]


def walk(v, dt, w, A_H1, B_BLGN, C_BLGN, h, keep_h) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Chunk after chunk, y and the state after it; the last one's unless not `keep_h`."""
    spanned = spans_of(dt)
    for part in chunks(v.shape[1]):
        y, h = _chunk(v[:, part], dt[:, part], w[:, part], A_H1, B_BLGN[:, part], C_BLGN[:, part], h,
                      keep_h or part.stop < v.shape[1], spanned)
        yield part, y, h


def chunks(length: int) -> Iterator[slice]:
    """The tokens, a chunk at a time."""
    return (slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK))


def _one_token(v, dt, w, A_H1, B_BLGN, C_BLGN, h):
    """A token that goes on from a state: exp(dt A) C h + (C B) dt v."""
    groups = B_BLGN.shape[2]
    own = (C_BLGN * B_BLGN).sum(-1, keepdim=True) * w.unflatten(2, (groups, -1))  # B 1 G R
    before = _read(C_BLGN.transpose(1, 2), h) * torch.exp2(dt * (A_H1[:, 0] * LOG2E)).unflatten(2, (groups, -1))[..., None]
    return torch.addcmul(before, v.unflatten(2, (groups, -1)), own[..., None]).flatten(2, 3)


def _chunk(v, dt, w, A_H1, B_BTGN, C_BTGN, h, keep_h, spanned):
    """Inside: y = ((C Bᵀ) ∘ decay) x; from before: C h, decayed. The state after it unless not `keep_h`."""
    groups = B_BTGN.shape[2]
    x = (v * w[..., None]).unflatten(2, (groups, -1))  # B T G R P
    B_, C_ = B_BTGN.transpose(1, 2), C_BTGN.transpose(1, 2)  # B G T N
    cum = cumulated(dt, A_H1, groups)  # B T G R
    M = spanned(cum, x.dtype).mul_((C_ @ B_.transpose(2, 3)).tril_()[:, :, None])  # B G R T T
    y = (M @ x.permute(0, 2, 3, 1, 4)).permute(0, 3, 1, 2, 4)  # B T G R P
    if h is not None:
        y = torch.addcmul(y, _read(C_, h), cum.exp2().to(x.dtype)[..., None])
    y = y.flatten(2, 3)
    return y, _after(x, cum, B_, h) if keep_h else None


def cumulated(dt_BTH, A_H1, groups):
    """c_t log2(e), B T G R, in float64: differences of a long float32 sum are off by 1e-2 in logits at L = 300."""
    return torch.clamp_min(dt_BTH * A_H1[:, 0], UNDERFLOW).double().mul_(LOG2E).cumsum(1).unflatten(2, (groups, -1))


def spans_of(dt_BLH):
    """What makes the Λ of this dt: an edited dt may be negative, and then what it spans grows."""
    return _growing if bool((dt_BLH < 0).any()) else _fading


def _growing(cum_BTGR, kind):
    """Λ of any dt, B G R T T; 0 for s after t."""
    size, cum_BGRT = cum_BTGR.shape[1], cum_BTGR.permute(0, 2, 3, 1).contiguous()
    future = torch.ones(size, size, dtype=torch.bool, device=cum_BGRT.device).triu(1)
    span = (cum_BGRT[..., :, None] - cum_BGRT[..., None, :]).to(kind).masked_fill(future, -torch.inf)
    return span.exp2_()


def _fading(cum_BTGR, kind):
    """Λ where every span between s and a later t is a decay; those of the future are cut off at 1, and still to be struck out."""
    size, cum_BGRT = cum_BTGR.shape[1], cum_BTGR.permute(0, 2, 3, 1).contiguous()
    span = torch.empty(*cum_BGRT.shape, size, dtype=kind, device=cum_BGRT.device)
    torch.sub(cum_BGRT[..., :, None], cum_BGRT[..., None, :], out=span)  # in float64, kept in x's type
    return span.clamp_max_(0).exp2_()


def _after(x, cum, B_, h):
    """The state after a chunk: what its tokens wrote, and what is left of the one before."""
    rest = torch.exp2(cum[:, -1:] - cum).to(x.dtype)[..., None]
    wrote = (x * rest).flatten(3).permute(0, 2, 3, 1) @ B_  # B G (R P) N
    wrote = wrote.unflatten(2, x.shape[3:]).flatten(1, 2)  # B H P N
    if h is None:
        return wrote
    return torch.addcmul(wrote, cum[:, -1].exp2().to(x.dtype).flatten(1)[..., None, None], spread(h, len(x)))


def _read(C_, h):
    """C_t · h, B T G R P. A state with fewer rows than the batch is read without copying it."""
    groups, size = C_.shape[1:3]
    h = h.unflatten(1, (groups, -1))  # b G R P N
    c = C_.unflatten(0, (-1, len(h))).permute(1, 2, 0, 3, 4).flatten(2, 3)  # b G (S T) N
    y = (c @ h.flatten(2, 3).transpose(2, 3)).unflatten(2, (-1, size))  # b G S T (R P)
    return y.permute(2, 0, 3, 1, 4).flatten(0, 1).unflatten(3, h.shape[2:4])
