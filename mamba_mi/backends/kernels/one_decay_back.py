"""The gradient of Mamba-2's scan by hand, in the kernels of the scan and one more.

The formulas are those of `backends.one_decay_gradients`; with dh' the gradient of the state after a chunk by all later ways:
    dx_s = Σ_t M[t, s] dy_t + f_s,  f_s = exp(c_T - c_s) dh' B_s        `read`, going back
    dh = exp(c_T) dh' + Σ_t exp(c_t) dy_t C_tᵀ                          `written` and `passed`, going back
    d(C_t · B_s) = Σ_heads Λ[t, s] dy_t · x_s, and of the decays Σ_{s<τ<=t} M[t, s] dy_t · x_s      `across`
States are kept before each chunk, their gradients made after each; only spans themselves are summed, never differences.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, T chunk, K chunks, M = K·T tokens; b rows of the state before.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.autograd import Function

from mamba_mi.backends.kernels import one_decay
from mamba_mi.backends.kernels.launch import inner, on, strides
from mamba_mi.backends.kernels.one_decay import Launch, decays, filled
from mamba_mi.backends.reference import again, by_token, own_types

TOGETHER = 8  # heads a program sums over, at most: more are fewer programs, fewer are more partial sums


@triton.jit
def across(dy, v, w, CB, c, dCB, spans, length, chunks, yb, yl, vb, vl, wb, wl, HEADS: tl.constexpr, WIDTH: tl.constexpr,
           STATE: tl.constexpr, SHARED: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, SLICE: tl.constexpr,
           TOGETHER: tl.constexpr):
    """Of some heads that share B and C: the gradient of C_t · B_s, T × T, and what of each decay's lies inside the chunk."""
    row, k, group = tl.program_id(0).to(tl.int64) // chunks, tl.program_id(0).to(tl.int64) % chunks, tl.program_id(1)
    i = tl.arange(0, CHUNK)
    t, square = k * CHUNK + i, i[:, None] * CHUNK + i[None, :]
    inside = t < length
    pair = tl.program_id(0).to(tl.int64) * (HEADS // SHARED) + group
    CB_TT, dCB_TT = tl.load(CB + pair * CHUNK * CHUNK + square), tl.zeros((CHUNK, CHUNK), dtype=tl.float32)
    w_at, first = w + row * wb + t * wl, group * SHARED + tl.program_id(2) * TOGETHER
    for head in range(first, first + TOGETHER):
        dM_TT = tl.zeros((CHUNK, CHUNK), dtype=tl.float32)
        w_T = tl.load(w_at + head, mask=inside, other=0.0)
        for start in range(0, WIDTH, SLICE):
            p = start + tl.arange(0, SLICE)
            ok = inside[:, None] & (p < WIDTH)[None, :]
            dy_TP = tl.load(dy + row * yb + t[:, None] * yl + head * WIDTH + p[None, :], mask=ok, other=0.0)
            v_TP = tl.load(v + row * vb + t[:, None] * vl + head * WIDTH + p[None, :], mask=ok, other=0.0)
            dM_TT = tl.dot(dy_TP, tl.trans(v_TP * w_T[:, None]), dM_TT, input_precision=PRECISION)
        at_T = (row * chunks * CHUNK + t) * HEADS + head
        c_T = tl.load(c + at_T)
        span_TT = tl.where(i[:, None] >= i[None, :], c_T[:, None] - c_T[None, :], float("-inf"))
        dM_TT *= tl.exp2(span_TT.to(tl.float32))
        dCB_TT += dM_TT
        # the sum over s < τ is that over s <= τ - 1: nothing is taken away again
        upto_TT = tl.cumsum(dM_TT * CB_TT, axis=1)
        over_T = tl.sum(tl.where(i[:, None] > i[None, :], upto_TT, 0.0), axis=0)
        tl.store(spans + at_T + HEADS, over_T, mask=i < CHUNK - 1)
    tl.store(dCB + (tl.program_id(2) * tl.num_programs(0).to(tl.int64) * (HEADS // SHARED) + pair) * CHUNK * CHUNK + square, dCB_TT)


def mix(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h):
    """The scan, open to gradients of all."""
    return OneDecay.apply(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h)


class OneDecay(Function):
    """y_BLHP and the last state h_BHPN (None unless `keep_h`) of float32 arguments.

    Where its gradient is to have one itself (`create_graph`), that of the reference's token loop is taken, which holds
    every state.
    """

    @staticmethod
    def forward(ctx, v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h):
        y, last, kept = one_decay.mix(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h)
        ctx.save_for_backward(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, kept)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    def backward(ctx, dy, dlast):
        *given, kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *again(by_token, given, (dy, dlast), ctx.needs_input_grad), None
        with own_types(kept), on(kept):
            return *_back(dy, dlast, *given, kept), None


def _back(dy, dlast, v, dt, w, A_H1, B_BLGN, C_BLGN, h0, h_KBHPN):
    """The gradients of what the scan takes."""
    dy = torch.zeros_like(v) if dy is None else dy
    dy, v, w, B_BLGN, C_BLGN = (inner(x) for x in (dy, v, w, B_BLGN, C_BLGN))
    run, left, length = Launch(v, *B_BLGN.shape[2:]), decays(dt, A_H1), v.shape[1]
    CB = run.products(C_BLGN, B_BLGN)
    dh_KBHPN, dh0 = run.states(dy, left.since_BMH, C_BLGN, left.whole_BKH, dlast, last=h0 is not None, back=True)
    dx = torch.empty_like(v, memory_format=torch.contiguous_format)
    later = run.read(B_BLGN, dh_KBHPN, left.until_BMH, CB=CB, c_BMH=left.c_BMH, x=dy, y=dx, other=v * w[..., None], back=True)
    earlier = run.read(C_BLGN, h_KBHPN, left.since_BMH, other=dy)
    dCB, spans_BMH = _across(run, dy, v, w, CB, left.c_BMH)
    ddtA = spans_BMH + _spanned(earlier.sum(0), later.sum(0))
    ddtA += (left.whole_BKH * torch.einsum("kbhpn,kbhpn->bkh", h_KBHPN, dh_KBHPN)).repeat_interleave(one_decay.CHUNK, dim=1)
    ddtA = ddtA[:, :length]
    dC = _of_chunks(dCB, B_BLGN) + _of_states(run, dy, left.since_BMH, h_KBHPN)
    dB = _of_chunks(dCB.transpose(3, 4), C_BLGN) + _of_states(run, v, filled(w) * left.until_BMH, dh_KBHPN)
    return (dx * w[..., None], ddtA * A_H1[:, 0], (dx * v).sum(-1), (ddtA * dt).sum((0, 1))[:, None], dB[:, :length], dC[:, :length],
            None if h0 is None else dh0.unflatten(0, (-1, len(h0))).sum(0))


def _across(run, dy, v, w, CB, c_BMH):
    """The gradients of the products, B K G T T, and of the decays what of them lies inside a chunk."""
    shared = run.heads // run.groups
    together = max(n for n in range(1, TOGETHER + 1) if shared % n == 0)
    dCB, spans = run.empty(shared // together, *CB.shape), torch.zeros_like(c_BMH, dtype=torch.float32)
    across[(run.rows * run.chunks, run.groups, shared // together)](
        dy, v, w, CB, c_BMH, dCB, spans, run.length, run.chunks, *strides(dy, v, w), **run.sizes, TOGETHER=together, num_warps=8)
    return dCB.sum(0), spans


def _spanned(earlier_BMH, later_BMH):
    """Of a decay, what reads the state before the chunk from its token on, and what was written before it for the one after."""
    earlier, later = (x.unflatten(1, (-1, one_decay.CHUNK)) for x in (earlier_BMH, later_BMH))
    before = torch.nn.functional.pad(later.cumsum(2)[:, :, :-1], (0, 0, 1, 0))
    return (earlier.flip(2).cumsum(2).flip(2) + before).flatten(1, 2)


def _of_chunks(M_BKGTT, x_BLGN):
    """M x, chunk by chunk: B M G N."""
    x_BMGN = torch.nn.functional.pad(x_BLGN, (0, 0, 0, 0, 0, -x_BLGN.shape[1] % one_decay.CHUNK))
    x_BKGTN = x_BMGN.unflatten(1, (-1, one_decay.CHUNK)).transpose(2, 3)
    return (M_BKGTT @ x_BKGTN).transpose(2, 3).flatten(1, 2)


def _of_states(run, x_BLHP, scale_BMH, h_KBHPN):
    """Σ_heads scale_t hᵀ x_t of the heads that share B and C: B M G N."""
    x = torch.nn.functional.pad(x_BLHP, (0, 0, 0, 0, 0, -run.length % one_decay.CHUNK)) * scale_BMH[..., None]
    x_BKGTE = x.unflatten(1, (-1, one_decay.CHUNK)).unflatten(3, (run.groups, -1)).flatten(4).transpose(2, 3)
    h_BKGEN = h_KBHPN.transpose(0, 1).unflatten(2, (run.groups, -1)).flatten(3, 4)
    return (x_BKGTE @ h_BKGEN).transpose(2, 3).flatten(1, 2)
