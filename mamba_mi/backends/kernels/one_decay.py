"""The scan of one decay a head (Mamba-2) as one kernel, in matrix products inside chunks.

With c_t = Σ_{1..t} dt A inside a chunk, x_t = w_t v_t, h the state before the chunk and h' the one after it (N × P):
    y_t = Σ_{s<=t} exp(c_t - c_s) (C_t · B_s) x_s + exp(c_t) C_t h,   h' = exp(c_T) h + Σ_s exp(c_T - c_s) B_sᵀ x_s
Products and sums in float32, in full (`PRECISION`); c in float64, because differences of a long float32 sum are off by
1e-2 in logits at L = 300. Arguments in float64 are `many_decays`' to scan.
A program takes a row, a head and some of its width, chunk after chunk; the state stays in registers.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, T chunk, K chunks, S positions.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_mi.backends.kernels.launch import LOG2E, inner, on, outputs, padded, strides

CHUNK = 64
PRECISION = "ieee"  # of products of float32: never TF32, whose ten bits lose what float32 promises
LEAST = 16  # of each side of a product
UNDERFLOW = -800.0  # exp(-800) is 0: the clamp keeps cumulated decays small enough to subtract


@triton.jit
def cumulated(dt_T, A, UNDERFLOW: tl.constexpr, LOG2E: tl.constexpr):
    """log2 of what is left of the state before a chunk after each of its tokens, and after the last; in float64."""
    step_T = tl.maximum(dt_T.to(tl.float64) * A.to(tl.float64), UNDERFLOW) * LOG2E
    return tl.cumsum(step_T, axis=0), tl.sum(step_T, axis=0)


@triton.jit
def left_between(c_T):
    """What is left at t of what was written at s, T × T; 0 where s is after t."""
    t = tl.arange(0, c_T.shape[0])
    span_TT = tl.where(t[:, None] >= t[None, :], c_T[:, None] - c_T[None, :], float("-inf"))
    return tl.exp2(span_TT.to(tl.float32))


@triton.jit
def one_decay(v, dt, w, A, B, C, h0, y, last, borders, length, starts, vb, vl, db, dl, wb, wl, Bb, Bl, Cb, Cl,
              HEADS: tl.constexpr, WIDTH: tl.constexpr, STATE: tl.constexpr, SHARED: tl.constexpr, GROUPS: tl.constexpr,
              HAS_H0: tl.constexpr, LAST: tl.constexpr, BORDERS: tl.constexpr, UNDERFLOW: tl.constexpr,
              LOG2E: tl.constexpr, PRECISION: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr):
    """y, the last state (LAST) and the states before each chunk (BORDERS) of a head; SHARED heads read the same B and C."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p, n, i = tl.program_id(2) * BP + tl.arange(0, BP), tl.arange(0, BN), tl.arange(0, BT)
    wide, held, size = p < WIDTH, n < STATE, HEADS * WIDTH * STATE
    tile, ok = (head * WIDTH + p)[None, :] * STATE + n[:, None], held[:, None] & wide[None, :]
    h_NP = tl.zeros((BN, BP), dtype=tl.float32)
    if HAS_H0:
        h_NP = tl.load(h0 + (row % starts) * size + tile, mask=ok, other=0.0).to(tl.float32)
    A_1 = tl.load(A + head)
    v, dt, w = v + row * vb + head * WIDTH + p, dt + row * db + head, w + row * wb + head
    B, C = B + row * Bb + (head // SHARED) * STATE + n, C + row * Cb + (head // SHARED) * STATE + n
    y, borders = y + (row * length * HEADS + head) * WIDTH + p, borders + row * size + tile
    for start in range(0, length, BT):
        t = start + i
        inside = t < length
        t = t.to(tl.int64)
        if BORDERS:
            tl.store(borders, h_NP, mask=ok)
            borders += tl.num_programs(0).to(tl.int64) * size
        dt_T, w_T = tl.load(dt + t * dl, mask=inside, other=0.0), tl.load(w + t * wl, mask=inside, other=0.0)
        rows_P, rows_N = inside[:, None] & wide[None, :], inside[:, None] & held[None, :]
        x_TP = tl.load(v + t[:, None] * vl, mask=rows_P, other=0.0).to(tl.float32) * w_T.to(tl.float32)[:, None]
        B_TN = tl.load(B[None, :] + t[:, None] * Bl, mask=rows_N, other=0.0).to(tl.float32)
        C_TN = tl.load(C[None, :] + t[:, None] * Cl, mask=rows_N, other=0.0).to(tl.float32)
        c_T, whole = cumulated(dt_T, A_1, UNDERFLOW, LOG2E)
        M_TT = tl.dot(C_TN, tl.trans(B_TN), input_precision=PRECISION) * left_between(c_T)
        y_TP = tl.dot(C_TN, h_NP, input_precision=PRECISION) * tl.exp2(c_T.to(tl.float32))[:, None]
        y_TP += tl.dot(M_TT, x_TP, input_precision=PRECISION)
        tl.store(y[None, :] + t[:, None] * (HEADS * WIDTH), y_TP, mask=rows_P)
        x_TP *= tl.exp2((whole - c_T).to(tl.float32))[:, None]
        h_NP = h_NP * tl.exp2(whole.to(tl.float32)) + tl.dot(tl.trans(B_TN), x_TP, input_precision=PRECISION)
    if LAST:
        tl.store(last + row * size + tile, h_NP, mask=ok)


def mix(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h, *, borders: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y_BLHP in v's type, the last state h_BHPN unless not `keep_h`, and with `borders` those before each chunk, KBHPN."""
    v, dt, w, B_BLGN, C_BLGN = (inner(x) for x in (v, dt, w, B_BLGN, C_BLGN))
    rows, length, heads, width = v.shape
    groups, state = B_BLGN.shape[2:]
    y, wide = outputs(v), min(64, padded(width, LEAST))
    last = torch.empty(rows, heads, width, state, device=v.device) if keep_h else None
    kept = torch.empty(-(-length // CHUNK), rows, heads, width, state, device=v.device) if borders else None
    start = None if h0 is None else h0.contiguous()
    with on(v):
        one_decay[(rows, heads, triton.cdiv(width, wide))](
            v, dt, w, A_H1.contiguous(), B_BLGN, C_BLGN, *(v if x is None else x for x in (start, y, last, kept)), length,
            1 if h0 is None else len(h0), *strides(v, dt, w, B_BLGN, C_BLGN), HEADS=heads, WIDTH=width, STATE=state,
            SHARED=heads // groups, GROUPS=groups, HAS_H0=h0 is not None, LAST=keep_h, BORDERS=borders, UNDERFLOW=UNDERFLOW,
            LOG2E=LOG2E, PRECISION=PRECISION, BT=CHUNK, BP=wide, BN=padded(state, LEAST), num_warps=8)
    return y.to(v.dtype), last, kept
