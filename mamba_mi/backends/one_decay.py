"""The scan of Mamba-2, one decay a head: matrix products inside chunks, and its gradient by hand in the same products.

With c_t = Σ_{1..t} dt A inside a chunk, x_t = dt_t v_t, h the state before the chunk and h' the one after it (P × N):
    y_t = Σ_{s<=t} M[t, s] x_s + exp(c_t) h C_t,   M[t, s] = Λ[t, s] (C_t · B_s),   Λ[t, s] = exp(c_t - c_s)
    h' = exp(c_T) h + Σ_s exp(c_T - c_s) x_s B_sᵀ

Let dh' be the gradient of h' by all later ways, and dM[t, s] = dy_t · x_s, 0 for s > t:
    dx_s = Σ_t M[t, s] dy_t + exp(c_T - c_s) dh' B_s,   hence dv_s = dt_s dx_s and, of what is written, d(dt_s) = v_s · dx_s
    dC_t = Σ_heads Σ_s (dM ∘ Λ)[t, s] B_s + exp(c_t) hᵀ dy_t
    dB_s = Σ_heads Σ_t (dM ∘ Λ)[t, s] C_t + exp(c_T - c_s) dh'ᵀ x_s
    dh = exp(c_T) dh' + Σ_t exp(c_t) dy_t C_tᵀ
The decay dt_τ A at τ is in all that spans it: with S = dM ∘ M, e_t = exp(c_t) dy_t · h C_t, f_s = exp(c_T - c_s) x_s · dh' B_s,
    d(dt_τ A) = Σ_{s<τ<=t} S[t, s] + Σ_{t>=τ} e_t + Σ_{s<τ} f_s + exp(c_T) h · dh'
Only the spans themselves are summed. The gradient of c would be a difference of sums over all of S, whose rounding a strong
A multiplies where a token has wiped the state and nothing is left to be told apart.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, R heads a group, T chunk, K chunks; b rows of
the state before.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import Function

from mamba_mi.backends import reference
from mamba_mi.backends.reference import again, gather, joined, own_types, spread, starts

CHUNK = 64
WORK = 2**18  # numbers; four bytes each, half of what a core's second cache commonly holds
UNDERFLOW = -800.0  # exp(-800) is 0 in float64 too; the clamp keeps cumulated decays small enough to subtract


def mix(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h):
    """Without gradients, a chunk after another: what one chunk makes stays in cache until it is read."""
    if v.shape[1] == 1 and h0 is not None and not keep_h:
        return _one_token(v, dt, w, A_H1, B_BLGN, C_BLGN, h0), None
    _, ys, hs = zip(*_walk(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h))
    return joined(ys, 1), hs[-1]


def _walk(v, dt, w, A_H1, B_BLGN, C_BLGN, h, keep_h) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Chunk after chunk, y and the state after it; the last one's unless not `keep_h`."""
    spanned = _spanned(dt)
    for part in _chunks(v.shape[1]):
        y, h = _chunk(v[:, part], dt[:, part], w[:, part], A_H1, B_BLGN[:, part], C_BLGN[:, part], h,
                      keep_h or part.stop < v.shape[1], spanned)
        yield part, y, h


def _one_token(v, dt, w, A_H1, B_BLGN, C_BLGN, h):
    """A token that goes on from a state: exp(dt A) C h + (C B) dt v."""
    groups = B_BLGN.shape[2]
    own = (C_BLGN * B_BLGN).sum(-1, keepdim=True) * w.unflatten(2, (groups, -1))  # B 1 G R
    before = _read(C_BLGN.transpose(1, 2), h) * torch.exp(dt * A_H1[:, 0]).unflatten(2, (groups, -1))[..., None]
    return torch.addcmul(before, v.unflatten(2, (groups, -1)), own[..., None]).flatten(2, 3)


def _chunk(v, dt, w, A_H1, B_BTGN, C_BTGN, h, keep_h, spanned):
    """Inside: y = ((C Bᵀ) ∘ decay) x; from before: C h, decayed. The state after it unless not `keep_h`."""
    groups = B_BTGN.shape[2]
    x = (v * w[..., None]).unflatten(2, (groups, -1))  # B T G R P
    B_, C_ = B_BTGN.transpose(1, 2), C_BTGN.transpose(1, 2)  # B G T N
    cum = _cumulated(dt, A_H1, groups)  # B T G R
    M = spanned(cum, x.dtype).mul_((C_ @ B_.transpose(2, 3)).tril_()[:, :, None])  # B G R T T
    y = (M @ x.permute(0, 2, 3, 1, 4)).permute(0, 3, 1, 2, 4)  # B T G R P
    if h is not None:
        y = torch.addcmul(y, _read(C_, h), cum.exp().to(x.dtype)[..., None])
    y = y.flatten(2, 3)
    return y, _after(x, cum, B_, h) if keep_h else None


def _cumulated(dt_BTH, A_H1, groups):
    """c_t, B T G R, in float64: differences of a long float32 sum are off by 1e-2 in logits at L = 300."""
    return torch.clamp_min(dt_BTH * A_H1[:, 0], UNDERFLOW).double().cumsum(1).unflatten(2, (groups, -1))


def _spanned(dt_BLH):
    """What makes the Λ of this dt: an edited dt may be negative, and then what it spans grows."""
    return _growing if bool((dt_BLH < 0).any()) else _fading


def _growing(cum_BTGR, kind):
    """Λ of any dt, B G R T T; 0 for s after t."""
    size, cum_BGRT = cum_BTGR.shape[1], cum_BTGR.permute(0, 2, 3, 1).contiguous()
    future = torch.ones(size, size, dtype=torch.bool, device=cum_BGRT.device).triu(1)
    span = (cum_BGRT[..., :, None] - cum_BGRT[..., None, :]).to(kind).masked_fill(future, -torch.inf)
    return span.exp_()


def _fading(cum_BTGR, kind):
    """Λ where every span between s and a later t is a decay; those of the future are cut off at 1, and still to be struck out."""
    size, cum_BGRT = cum_BTGR.shape[1], cum_BTGR.permute(0, 2, 3, 1).contiguous()
    span = torch.empty(*cum_BGRT.shape, size, dtype=kind, device=cum_BGRT.device)
    torch.sub(cum_BGRT[..., :, None], cum_BGRT[..., None, :], out=span)  # in float64, kept in x's type
    return span.clamp_max_(0).exp_()


def _after(x, cum, B_, h):
    """The state after a chunk: what its tokens wrote, and what is left of the one before."""
    rest = torch.exp(cum[:, -1:] - cum).to(x.dtype)[..., None]
    wrote = (x * rest).flatten(3).permute(0, 2, 3, 1) @ B_  # B G (R P) N
    wrote = wrote.unflatten(2, x.shape[3:]).flatten(1, 2)  # B H P N
    if h is None:
        return wrote
    return torch.addcmul(wrote, cum[:, -1].exp().to(x.dtype).flatten(1)[..., None, None], spread(h, len(x)))


def _read(C_, h):
    """C_t · h, B T G R P. A state with fewer rows than the batch is read without copying it."""
    groups, size = C_.shape[1:3]
    h = h.unflatten(1, (groups, -1))  # b G R P N
    c = C_.unflatten(0, (-1, len(h))).permute(1, 2, 0, 3, 4).flatten(2, 3)  # b G (S T) N
    y = (c @ h.flatten(2, 3).transpose(2, 3)).unflatten(2, (-1, size))  # b G S T (R P)
    return y.permute(2, 0, 3, 1, 4).flatten(0, 1).unflatten(3, h.shape[2:4])


def mix_with_gradients(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h):
    """The same, open to gradients of all."""
    return OneDecay.apply(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h)


class OneDecay(Function):
    """y_BLHP and the last state h_BHPN (None unless `keep_h`), from what `mix` takes; any dt, h0 or none.

    Where its gradient is to have one itself (`create_graph`), that of the reference's token loop is taken, which holds
    every state.
    """

    @staticmethod
    def forward(ctx, v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h):
        rows, length, heads, width = v.shape
        state = heads, width, B_BLGN.shape[3]
        y_BLHP, last = torch.empty_like(v), v.new_empty(rows, *state) if keep_h else None
        borders_KBHPN = v.new_empty((length - 1) // CHUNK, rows, *state)  # between chunks
        for own in _few(rows, v):
            walk = _walk(v[own], dt[own], w[own], A_H1, B_BLGN[own], C_BLGN[own], starts(own, h0), keep_h)
            for k, (part, y, h) in enumerate(walk):
                y_BLHP[own, part] = y
                if k < len(borders_KBHPN):
                    borders_KBHPN[k, own] = h
            if keep_h:
                last[own] = h
        ctx.save_for_backward(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, borders_KBHPN)
        ctx.set_materialize_grads(False)
        return y_BLHP, last

    @staticmethod
    def backward(ctx, dy, dlast):
        *given, borders_KBHPN = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *again(_by_token, given, (dy, dlast), ctx.needs_input_grad), None
        with own_types(borders_KBHPN):
            return *_back(dy, dlast, *given, borders_KBHPN), None


def _back(dy, dlast, v, dt, w, A_H1, B_BLGN, C_BLGN, h0, borders_KBHPN):
    """The gradients of what `mix` takes, the last chunk first."""
    dy = torch.zeros_like(v) if dy is None else dy
    dv, ddt, dw, dB, dC = (torch.empty_like(x) for x in (v, dt, w, B_BLGN, C_BLGN))
    dA, dh0 = torch.zeros_like(A_H1), None if h0 is None else torch.zeros_like(h0)
    for own in _few(len(v), v):
        spanned, dh = _spanned(dt[own]), None if dlast is None else dlast[own]
        for k, part in reversed([*enumerate(_chunks(v.shape[1]))]):
            at, h = (own, part), borders_KBHPN[k - 1, own] if k else starts(own, h0)
            dv[at], ddt[at], dw[at], dA_H1, dB[at], dC[at], dh = _chunk_back(
                dy[at], dh, v[at], dt[at], w[at], A_H1, B_BLGN[at], C_BLGN[at], h, spanned)
            dA += dA_H1
        if h0 is not None:
            gather(dh0, own, dh)
    return dv, ddt, dw, dA, dB, dC, dh0


def _chunk_back(dy, dlast, v, dt, w, A_H1, B_BTGN, C_BTGN, h, spanned):
    """The gradients of v, dt, w, A, B, C and of the state before the chunk, from those of y and of the state after it."""
    groups, kind = B_BTGN.shape[2], v.dtype
    x, dy = ((v * w[..., None]).unflatten(2, (groups, -1)), dy.unflatten(2, (groups, -1)))  # B T G R P
    B_, C_ = B_BTGN.transpose(1, 2), C_BTGN.transpose(1, 2)  # B G T N
    cum = _cumulated(dt, A_H1, groups)
    dx, dB, dC, ddtA = _inside_back(dy, x, B_, C_, spanned(cum, kind))
    before, dh = _before(len(cum[0]), x), None
    if h is not None:
        rest, h_ = cum.exp().to(kind)[..., None] * dy, h.unflatten(1, (groups, -1)).flatten(2, 3)  # B G (R P) N
        read = (C_ @ h_.transpose(2, 3)).transpose(1, 2).unflatten(3, x.shape[3:])  # B T G R P
        ddtA += (rest * read).sum(-1).permute(0, 2, 3, 1) @ (1 - before)
        rest = rest.flatten(3).transpose(1, 2)  # B G T (R P)
        dC += rest @ h_
        dh = (rest.transpose(2, 3) @ C_).reshape(h.shape)
    if dlast is not None:
        left, dlast_ = torch.exp(cum[:, -1:] - cum).to(kind)[..., None], dlast.unflatten(1, (groups, -1)).flatten(2, 3)
        written = (B_ @ dlast_.transpose(2, 3)).transpose(1, 2).unflatten(3, x.shape[3:]) * left
        ddtA += (written * x).sum(-1).permute(0, 2, 3, 1) @ before
        dx += written
        dB += (x * left).flatten(3).transpose(1, 2) @ dlast_
    if dlast is not None and h is not None:
        whole = cum[:, -1].exp().to(kind).flatten(1)[..., None, None]  # B H 1 1
        dh.addcmul_(whole, dlast)
        ddtA += (whole * (h * dlast).sum((2, 3), keepdim=True)).unflatten(1, (groups, -1))[..., 0]
    ddtA = ddtA.permute(0, 3, 1, 2).flatten(2).masked_fill(dt * A_H1[:, 0] < UNDERFLOW, 0)  # B T H
    dx = dx.flatten(2, 3)
    return (dx * w[..., None], ddtA * A_H1[:, 0], (dx * v).sum(-1), (ddtA * dt).sum((0, 1))[:, None],
            dB.transpose(1, 2), dC.transpose(1, 2), dh)


def _inside_back(dy, x, B_, C_, left):
    """Of what a chunk's tokens read of each other: the gradients of x (B T G R P), B, C (B G T N) and dt A (B G R T)."""
    x, dy = x.permute(0, 2, 3, 1, 4), dy.permute(0, 2, 3, 1, 4)  # B G R T P
    before = _before(x.shape[3], x)
    dM = dy @ x.transpose(3, 4)
    dCB = (dM * left).sum(2).tril_()  # B G T T
    M = left.mul_((C_ @ B_.transpose(2, 3)).tril_()[:, :, None])
    S = dM.mul_(M)
    ddtA = (S @ before).mul_(1 - before).sum(3)
    return (M.transpose(3, 4) @ dy).permute(0, 3, 1, 2, 4), dCB.transpose(2, 3) @ C_, dCB @ B_, ddtA


def _before(size, like):
    """1 where s < τ, 0 elsewhere, s × τ."""
    return torch.ones(size, size, dtype=like.dtype, device=like.device).triu(1)


def _by_token(v, dt, w, A_H1, B_BLGN, C_BLGN, h0):
    return reference.scan(v, dt, A_H1, B_BLGN, C_BLGN, h0=h0, dt_write=w)


def _few(rows: int, v_BLHP) -> Iterator[slice]:
    """The rows a few at a time: what a chunk of them makes stays in cache."""
    few = max(1, WORK // (v_BLHP[0, :CHUNK].numel()))
    return (slice(r, min(r + few, rows)) for r in range(0, rows, few))


def _chunks(length: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK))
