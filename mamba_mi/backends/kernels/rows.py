"""Some rows of the matrix M of y = M v, from the query back to the first token, and what is asked of them without holding M.

M[t, s] = C_t · (exp(A Σ_{s+1..t} dt) ∘ B_s) w_s. What is left of C_t at s is carried along, so a row costs what a scan costs,
and however many sets of sources are knocked out of it share its loads, its decays and its products.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, E = H·P channels, Q queries, J sets of sources.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_mi.backends.kernels.launch import inner, on, padded, strides, sums_in
from mamba_mi.backends.kernels.many_decays import tiles
from mamba_mi.backends.kernels.one_decay import PRECISION, SLICE, TILE, UNDERFLOW
from mamba_mi.backends.reference import LOG2E

SETS = 16  # sets of sources a program holds


@triton.jit
def back_from_queries(v, dt, w, A, B, C, h0, kept, at_Q, out, queries, length, starts, vb, vl, db, dl, wb, wl, Ah, An, Bb, Bl, Cb, Cl,
                      WIDTH: tl.constexpr, STATE: tl.constexpr, WIDE: tl.constexpr, GROUPS: tl.constexpr, SETS: tl.constexpr,
                      HAS_H0: tl.constexpr, MEAN: tl.constexpr, KIND: tl.constexpr, LOG2E: tl.constexpr, BE: tl.constexpr,
                      BN: tl.constexpr, BJ: tl.constexpr):
    """y of a query without each of some sets of sources (SETS of them in all; `kept` is 1 for what stays, B L J); where there are
    none its row of M, channel by channel, or (MEAN) the sum of |M| over these channels."""
    row, query = tl.program_id(0).to(tl.int64) // queries, tl.program_id(0).to(tl.int64) % queries
    blocks: tl.constexpr = (WIDE + BE - 1) // BE
    group, block, rows = tl.program_id(1) // blocks, tl.program_id(1) % blocks, tl.num_programs(0).to(tl.int64)
    own, n, j = block * BE + tl.arange(0, BE), tl.arange(0, BN), tl.program_id(2) * BJ + tl.arange(0, BJ)
    e, inner = group * WIDE + own, GROUPS * WIDE
    head, here, held, real = e // WIDTH, own < WIDE, n < STATE, j < SETS
    ok, last = here[:, None] & held[None, :], tl.load(at_Q + query).to(tl.int64)
    A_EN = tl.load(A + head[:, None] * Ah + n[None, :] * An, mask=ok, other=0.0).to(KIND) * LOG2E
    C_N = tl.load(C + row * Cb + last * Cl + group * STATE + n, mask=held, other=0.0).to(KIND)
    left_EN, y_JE = tl.zeros((BE, BN), dtype=KIND) + C_N[None, :], tl.zeros((BJ, BE), dtype=KIND)
    v, dt, w = v + row * vb + last * vl + e, dt + row * db + last * dl + head, w + row * wb + last * wl + head
    B, kept = B + row * Bb + last * Bl + group * STATE + n, kept + (row * length + last) * SETS + j
    for i in range(0, last + 1):
        w_E, dt_E = tl.load(w, mask=here, other=0.0).to(KIND), tl.load(dt, mask=here, other=0.0).to(KIND)
        m_E = tl.sum(left_EN * tl.load(B, mask=held, other=0.0).to(KIND)[None, :], axis=1) * w_E
        if SETS > 0:
            m_E *= tl.load(v, mask=here, other=0.0).to(KIND)
            y_JE += tl.load(kept, mask=real, other=0).to(KIND)[:, None] * m_E[None, :]
        elif MEAN:
            tl.store(out + (tl.program_id(1) * rows + tl.program_id(0)) * length + last - i, tl.sum(tl.abs(m_E), axis=0))
        else:
            tl.store(out + (tl.program_id(0).to(tl.int64) * length + last - i) * inner + e, m_E, mask=here)
        left_EN *= tl.exp2(dt_E[:, None] * A_EN)
        v, dt, w, B, kept = v - vl, dt - dl, w - wl, B - Bl, kept - SETS
    if SETS > 0:
        if HAS_H0:
            start = h0 + (row % starts) * inner * STATE
            h_EN = tl.load(start + e[:, None] * STATE + n[None, :], mask=ok, other=0.0).to(KIND)
            y_JE += tl.sum(left_EN * h_EN, axis=1)[None, :]
        at_JE = ((row * SETS + j[:, None]) * queries + query) * inner + e[None, :]
        tl.store(out + at_JE, y_JE, mask=real[:, None] & here[None, :])


@triton.jit
def kept_products(v, w, CB, c, kept, at_Q, out, queries, length, vb, vl, wb, wl, HEADS: tl.constexpr, WIDTH: tl.constexpr,
                  SHARED: tl.constexpr, SETS: tl.constexpr, PRECISION: tl.constexpr, SLICE: tl.constexpr, BJ: tl.constexpr,
                  BP: tl.constexpr):
    """For one decay a head, y of a query without each of some sets of sources: (kept ∘ M) v as a product of J × S and S × P."""
    row, query = tl.program_id(0).to(tl.int64) // queries, tl.program_id(0).to(tl.int64) % queries
    across: tl.constexpr = (WIDTH + BP - 1) // BP
    head, j = tl.program_id(1), tl.program_id(2) // across * BJ + tl.arange(0, BJ)
    p, last = tl.program_id(2) % across * BP + tl.arange(0, BP), tl.load(at_Q + query)
    CB += (tl.program_id(0).to(tl.int64) * (HEADS // SHARED) + head // SHARED) * length
    c_q, y_JP = tl.load(c + (row * length + last) * HEADS + head), tl.zeros((BJ, BP), dtype=tl.float32)
    for first in range(0, last + 1, SLICE):
        s = first + tl.arange(0, SLICE)
        seen = s <= last
        left_S = tl.exp2((c_q - tl.load(c + (row * length + s) * HEADS + head, mask=seen, other=float("inf"))).to(tl.float32))
        M_S = tl.load(CB + s, mask=seen, other=0.0) * left_S * tl.load(w + row * wb + s * wl + head, mask=seen, other=0.0)
        kept_JS = tl.load(kept + (row * length + s[None, :]) * SETS + j[:, None], mask=seen[None, :] & (j < SETS)[:, None], other=0)
        v_SP = tl.load(v + row * vb + s[:, None] * vl + head * WIDTH + p[None, :], mask=seen[:, None] & (p < WIDTH)[None, :], other=0.0)
        y_JP = tl.dot(kept_JS.to(tl.float32) * M_S[None, :], v_SP.to(tl.float32), y_JP, input_precision=PRECISION)
    at_JP = (((row * SETS + j[:, None]) * queries + query) * HEADS + head) * WIDTH + p[None, :]
    tl.store(out + at_JP, y_JP, mask=(j < SETS)[:, None] & (p < WIDTH)[None, :])


def knocked(v, dt, w, A_HN, B_BLGN, C_BLGN, h0, kept_BLJ: Tensor, at_Q: Tensor) -> Tensor:
    """y_BJQHP of many decays, in the type of the sums."""
    y = v.new_empty(len(v), kept_BLJ.shape[2], len(at_Q), *v.shape[2:], dtype=sums_in(v))
    _back(v, dt, w, A_HN, B_BLGN, C_BLGN, h0, kept_BLJ, at_Q, y)
    return y


def mixing(dt, w, A_HN, B_BLGN, C_BLGN, at_Q: Tensor, *, mean: bool) -> Tensor:
    """Rows of M, B Q L H; their mean |M| over heads, B Q L, without them being held."""
    rows, length, heads = dt.shape
    channels = tiles(heads // B_BLGN.shape[2], B_BLGN.shape[3])[0]
    parts = B_BLGN.shape[2] * triton.cdiv(heads // B_BLGN.shape[2], channels)
    shape = (parts, rows, len(at_Q), length) if mean else (rows, len(at_Q), length, heads)
    M = torch.zeros(shape, dtype=sums_in(dt), device=dt.device)
    _back(dt[..., None], dt, w, A_HN, B_BLGN, C_BLGN, None, dt[..., :0], at_Q, M, mean=mean)
    return M.sum(0) / heads if mean else M


def _back(v, dt, w, A_HN, B_BLGN, C_BLGN, h0, kept_BLJ, at_Q, out, *, mean: bool = False) -> None:
    v, dt, w, B_BLGN, C_BLGN = (inner(x) for x in (v, dt, w, B_BLGN, C_BLGN))
    (rows, length, heads, width), (groups, state), sets = v.shape, B_BLGN.shape[2:], kept_BLJ.shape[2]
    wide = heads * width // groups
    channels, held, warps = tiles(wide, state)
    several = min(SETS, padded(max(sets, 1)))
    with on(v):
        back_from_queries[(rows * len(at_Q), groups * triton.cdiv(wide, channels), triton.cdiv(max(sets, 1), several))](
            v, dt, w, A_HN, B_BLGN, C_BLGN, v if h0 is None else h0.contiguous(), kept_BLJ.contiguous() if sets else v, at_Q, out,
            len(at_Q), length, 1 if h0 is None else len(h0), *strides(v, dt, w), *A_HN.stride(), *strides(B_BLGN, C_BLGN),
            WIDTH=width, STATE=state, WIDE=wide, GROUPS=groups, SETS=sets, HAS_H0=h0 is not None, MEAN=mean, LOG2E=LOG2E,
            KIND=tl.float64 if sums_in(v) == torch.float64 else tl.float32, BE=channels, BN=held, BJ=several, num_warps=warps)


def knocked_one_decay(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, kept_BLJ: Tensor, at_Q: Tensor) -> Tensor:
    """y_BJQHP of one decay a head, in float32. The products C · B, shared by the heads of a group, are made once."""
    v, w = inner(v), inner(w)
    (rows, length, heads, width), groups, sets = v.shape, B_BLGN.shape[2], kept_BLJ.shape[2]
    c_BLH = (torch.clamp_min(dt.double() * A_H1[:, 0].double(), UNDERFLOW) * LOG2E).cumsum(1)
    C_BQGN = C_BLGN[:, at_Q].float()
    CB_BQGL = torch.einsum("bqgn,blgn->bqgl", C_BQGN, B_BLGN.float()).contiguous()
    y = torch.empty(rows, sets, len(at_Q), heads, width, device=v.device)
    wide, several = min(TILE, padded(width, SLICE)), min(TILE, padded(sets, SLICE))
    with on(v):
        kept_products[(rows * len(at_Q), heads, triton.cdiv(sets, several) * triton.cdiv(width, wide))](
            v, w, CB_BQGL, c_BLH, kept_BLJ.contiguous(), at_Q, y, len(at_Q), length, *strides(v, w), HEADS=heads, WIDTH=width,
            SHARED=heads // groups, SETS=sets, PRECISION=PRECISION, SLICE=SLICE, BJ=several, BP=wide, num_warps=4)
    if h0 is not None:
        h_BGRPN = h0.float().repeat(rows // len(h0), 1, 1, 1).unflatten(1, (groups, -1))
        read = torch.einsum("bqgn,bgrpn->bqgrp", C_BQGN, h_BGRPN).flatten(2, 3)
        y += (c_BLH[:, at_Q].exp2().float()[..., None] * read)[:, None]
    return y
