"""The gradient of Mamba-2's scan by hand, in matrix products inside chunks; states are kept at the borders of chunks only.

In the symbols of `one_decay`, let dh' be the gradient of h' by all later ways, and dM[t, s] = dy_t · x_s, 0 for s > t:
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
from torch.autograd import Function

from mamba_mi.backends.one_decay import CHUNK, chunks, cumulated, spans_of, walk
from mamba_mi.backends.reference import again, by_token, gather, own_types, starts

WORK = 2**18  # numbers; four bytes each, half of what a core's second cache commonly holds


def mix(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h):
    """The scan, open to gradients of all."""
    return OneDecay.apply(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h)


class OneDecay(Function):
    """y_BLHP and the last state h_BHPN (None unless `keep_h`), from what `one_decay.mix` takes; any dt, h0 or none.

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
            done = walk(v[own], dt[own], w[own], A_H1, B_BLGN[own], C_BLGN[own], starts(own, h0), keep_h)
            for k, (part, y, h) in enumerate(done):
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
            return *again(by_token, given, (dy, dlast), ctx.needs_input_grad), None
        with own_types(borders_KBHPN):
            return *_back(dy, dlast, *given, borders_KBHPN), None


def _back(dy, dlast, v, dt, w, A_H1, B_BLGN, C_BLGN, h0, borders_KBHPN):
    """The gradients of what the scan takes, the last chunk first."""
    dy = torch.zeros_like(v) if dy is None else dy
    dv, ddt, dw, dB, dC = (torch.empty_like(x) for x in (v, dt, w, B_BLGN, C_BLGN))
    dA, dh0 = torch.zeros_like(A_H1), None if h0 is None else torch.zeros_like(h0)
    for own in _few(len(v), v):
        spanned, dh = spans_of(dt[own]), None if dlast is None else dlast[own]
        for k, part in reversed([*enumerate(chunks(v.shape[1]))]):
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
    x, dy = (v * w[..., None]).unflatten(2, (groups, -1)), dy.unflatten(2, (groups, -1))  # B T G R P
    B_, C_ = B_BTGN.transpose(1, 2), C_BTGN.transpose(1, 2)  # B G T N
    cum = cumulated(dt, A_H1, groups)
    dx, dB, dC, ddtA = _inside_back(dy, x, B_, C_, spanned(cum, kind))
    before, dh = _before(len(cum[0]), x), None
    if h is not None:
        rest, h_ = cum.exp2().to(kind)[..., None] * dy, h.unflatten(1, (groups, -1)).flatten(2, 3)  # B G (R P) N
        read = (C_ @ h_.transpose(2, 3)).transpose(1, 2).unflatten(3, x.shape[3:])  # B T G R P
        ddtA += (rest * read).sum(-1).permute(0, 2, 3, 1) @ (1 - before)
        rest = rest.flatten(3).transpose(1, 2)  # B G T (R P)
        dC += rest @ h_
        dh = (rest.transpose(2, 3) @ C_).reshape(h.shape)
    if dlast is not None:
        left, dlast_ = torch.exp2(cum[:, -1:] - cum).to(kind)[..., None], dlast.unflatten(1, (groups, -1)).flatten(2, 3)
        written = (B_ @ dlast_.transpose(2, 3)).transpose(1, 2).unflatten(3, x.shape[3:]) * left
        ddtA += (written * x).sum(-1).permute(0, 2, 3, 1) @ before
        dx += written
        dB += (x * left).flatten(3).transpose(1, 2) @ dlast_
    if dlast is not None and h is not None:
        whole = cum[:, -1].exp2().to(kind).flatten(1)[..., None, None]  # B H 1 1
        dh.addcmul_(whole, dlast)
        ddtA += (whole * (h * dlast).sum((2, 3), keepdim=True)).unflatten(1, (groups, -1))[..., 0]
    ddtA = ddtA.permute(0, 3, 1, 2).flatten(2)  # B T H; where the clamp held, nothing that spans it is left
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


def _few(rows: int, v_BLHP) -> Iterator[slice]:
    """The rows a few at a time on a CPU, where what a chunk of them makes stays in cache; all at once elsewhere."""
    few = max(1, WORK // v_BLHP[0, :CHUNK].numel()) if v_BLHP.device.type == "cpu" else rows
    return (slice(r, min(r + few, rows)) for r in range(0, rows, few))
