"""The scan of one decay a head (Mamba-2) in matrix products inside chunks, all chunks at once but for passing the state on.

With c_t = Σ_{1..t} dt A inside a chunk, x_t = w_t v_t, h the state before the chunk and h' the one after it:
    y_t = Σ_{s<=t} exp(c_t - c_s) (C_t · B_s) x_s + exp(c_t) h C_t,   h' = exp(c_T) h + Σ_s exp(c_T - c_s) x_s B_sᵀ
`products` makes C_t · B_s once for all heads that share them, `written` each chunk's own part of h', `passed` the states
before the chunks, `read` y. Products and sums are taken in full float32 (PRECISION), a few columns at a time: such a product
holds what it multiplies in registers. c is in float64, as differences of a long float32 sum are off by 1e-2 in logits at L = 300.
Arguments in float64 are `many_decays`' to scan.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, T chunk, K chunks, S some tokens of a chunk.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_mi.backends.kernels import PRECISION
from mamba_mi.backends.kernels.launch import inner, on, outputs, padded, strides
from mamba_mi.backends.reference import LOG2E

CHUNK = 64
SLICE = 16  # columns of a product at a time, and the least that a side of one has
TILE = 64  # rows and columns of what a program makes
UNDERFLOW = -800.0  # exp(-800) is 0: the clamp keeps cumulated decays small enough to subtract


@triton.jit
def products(C, B, CB, length, chunks, Cb, Cl, Bb, Bl, STATE: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
             SLICE: tl.constexpr):
    """C_t · B_s of a chunk and a group, T × T."""
    row, k, group = tl.program_id(0).to(tl.int64) // chunks, tl.program_id(0).to(tl.int64) % chunks, tl.program_id(1)
    i = tl.arange(0, CHUNK)
    t = k * CHUNK + i
    CB_TT = tl.zeros((CHUNK, CHUNK), dtype=tl.float32)
    for first in range(0, STATE, SLICE):
        n = first + tl.arange(0, SLICE)
        ok = (t < length)[:, None] & (n < STATE)[None, :]
        C_TN = tl.load(C + row * Cb + t[:, None] * Cl + group * STATE + n[None, :], mask=ok, other=0.0).to(tl.float32)
        B_TN = tl.load(B + row * Bb + t[:, None] * Bl + group * STATE + n[None, :], mask=ok, other=0.0).to(tl.float32)
        CB_TT = tl.dot(C_TN, tl.trans(B_TN), CB_TT, input_precision=PRECISION)
    CB += (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + group) * CHUNK * CHUNK
    tl.store(CB + i[:, None] * CHUNK + i[None, :], CB_TT)


@triton.jit
def written(x, scale, B, out, length, chunks, xb, xl, Bb, Bl, HEADS: tl.constexpr, WIDTH: tl.constexpr, STATE: tl.constexpr,
            SHARED: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, SLICE: tl.constexpr, BP: tl.constexpr,
            BN: tl.constexpr):
    """Σ_s scale_s x_s B_sᵀ of a chunk and a head, BP × BN of P × N."""
    row, k, head = tl.program_id(0).to(tl.int64) // chunks, tl.program_id(0).to(tl.int64) % chunks, tl.program_id(1)
    across: tl.constexpr = (STATE + BN - 1) // BN
    p, n = tl.program_id(2) // across * BP + tl.arange(0, BP), tl.program_id(2) % across * BN + tl.arange(0, BN)
    wide, held = p < WIDTH, n < STATE
    h_PN = tl.zeros((BP, BN), dtype=tl.float32)
    for first in range(0, CHUNK, SLICE):
        s = k * CHUNK + first + tl.arange(0, SLICE)
        inside = s < length
        scale_S = tl.load(scale + (row * chunks * CHUNK + s) * HEADS + head)
        x_SP = tl.load(x + row * xb + s[:, None] * xl + head * WIDTH + p[None, :], mask=inside[:, None] & wide[None, :], other=0.0)
        B_SN = tl.load(B + row * Bb + s[:, None] * Bl + head // SHARED * STATE + n[None, :],
                       mask=inside[:, None] & held[None, :], other=0.0).to(tl.float32)
        h_PN = tl.dot(tl.trans(x_SP.to(tl.float32) * scale_S[:, None]), B_SN, h_PN, input_precision=PRECISION)
    out += ((k * (tl.num_programs(0) // chunks) + row) * HEADS + head) * WIDTH * STATE
    tl.store(out + p[:, None] * STATE + n[None, :], h_PN, mask=wide[:, None] & held[None, :])


@triton.jit
def passed(states, left, start, last, chunks, starts, HEADS: tl.constexpr, EACH: tl.constexpr, HAS_START: tl.constexpr,
           LAST: tl.constexpr, BACK: tl.constexpr, BLOCK: tl.constexpr):
    """Each chunk's own part is replaced by the state before the chunk; from the last to the first (BACK), by the one after."""
    row, rows, i = tl.program_id(0).to(tl.int64), tl.num_programs(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok, head = i < HEADS * EACH, i // EACH
    h = tl.zeros((BLOCK,), dtype=tl.float32)
    if HAS_START:
        h = tl.load(start + (row % starts) * HEADS * EACH + i, mask=ok, other=0.0).to(tl.float32)
    for j in range(0, chunks):
        k = chunks - 1 - j if BACK else j
        at = states + (k * rows + row) * HEADS * EACH + i
        own = tl.load(at, mask=ok, other=0.0)
        tl.store(at, h, mask=ok)
        h = tl.load(left + (row * chunks + k) * HEADS + head, mask=ok, other=0.0) * h + own
    if LAST:
        tl.store(last + row * HEADS * EACH + i, h, mask=ok)


@triton.jit
def read(Q, h, scale, CB, c, x, w, y, other, along, length, chunks, Qb, Ql, xb, xl, wb, wl, ob, ol, HEADS: tl.constexpr,
         WIDTH: tl.constexpr, STATE: tl.constexpr, SHARED: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
         SLICE: tl.constexpr, BP: tl.constexpr, INSIDE: tl.constexpr, HAS_W: tl.constexpr, BACK: tl.constexpr,
         ALONG: tl.constexpr):
    """scale_t h Q_t and what a chunk's tokens read of each other (INSIDE), M x or Mᵀ x (BACK); BP columns of a head's width.

    Of the first summand alone, its product with `other`, part by part of the width (ALONG)."""
    row, k, head = tl.program_id(0).to(tl.int64) // chunks, tl.program_id(0).to(tl.int64) % chunks, tl.program_id(1)
    i, p, group = tl.arange(0, CHUNK), tl.program_id(2) * BP + tl.arange(0, BP), head // SHARED
    t, wide = k * CHUNK + i, p < WIDTH
    rows, inside = tl.num_programs(0) // chunks, t < length
    h += ((k * rows + row) * HEADS + head) * WIDTH * STATE
    y_TP = tl.zeros((CHUNK, BP), dtype=tl.float32)
    for first in range(0, STATE, SLICE):
        n = first + tl.arange(0, SLICE)
        held = n < STATE
        Q_TN = tl.load(Q + row * Qb + t[:, None] * Ql + group * STATE + n[None, :], mask=inside[:, None] & held[None, :], other=0.0)
        h_PN = tl.load(h + p[:, None] * STATE + n[None, :], mask=wide[:, None] & held[None, :], other=0.0)
        y_TP = tl.dot(Q_TN.to(tl.float32), tl.trans(h_PN), y_TP, input_precision=PRECISION)
    at_T, ok = (row * chunks * CHUNK + t) * HEADS + head, inside[:, None] & wide[None, :]
    y_TP *= tl.load(scale + at_T)[:, None]
    if ALONG:
        other_TP = tl.load(other + row * ob + t[:, None] * ol + head * WIDTH + p[None, :], mask=ok, other=0.0)
        along += tl.program_id(2).to(tl.int64) * rows * chunks * CHUNK * HEADS
        tl.store(along + at_T, tl.sum(y_TP * other_TP, axis=1))
    if INSIDE:
        c_T, CB = tl.load(c + at_T), CB + (tl.program_id(0).to(tl.int64) * (HEADS // SHARED) + group) * CHUNK * CHUNK
        for first in range(0, CHUNK, SLICE):
            j = first + tl.arange(0, SLICE)
            s = k * CHUNK + j
            c_S = tl.load(c + (row * chunks * CHUNK + s) * HEADS + head)
            if BACK:
                M_TS = tl.load(CB + j[None, :] * CHUNK + i[:, None])
                span_TS = tl.where(j[None, :] >= i[:, None], c_S[None, :] - c_T[:, None], float("-inf"))
            else:
                M_TS = tl.load(CB + i[:, None] * CHUNK + j[None, :])
                span_TS = tl.where(j[None, :] <= i[:, None], c_T[:, None] - c_S[None, :], float("-inf"))
            x_SP = tl.load(x + row * xb + s[:, None] * xl + head * WIDTH + p[None, :],
                           mask=(s < length)[:, None] & wide[None, :], other=0.0).to(tl.float32)
            if HAS_W:
                x_SP *= tl.load(w + row * wb + s * wl + head, mask=s < length, other=0.0).to(tl.float32)[:, None]
            y_TP = tl.dot(M_TS * tl.exp2(span_TS.to(tl.float32)), x_SP, y_TP, input_precision=PRECISION)
        tl.store(y + ((row * length + t) * HEADS + head)[:, None] * WIDTH + p[None, :], y_TP, mask=ok)


class Decays(NamedTuple):
    """log2 of what is left, after each token, of the state before its chunk, float64; and what is left: of that state, of
    what a token wrote when its chunk ends, of the state over a whole chunk. Filled up to whole chunks."""

    c_BMH: Tensor
    since_BMH: Tensor
    until_BMH: Tensor
    whole_BKH: Tensor


def decays(dt_BLH: Tensor, A_H1: Tensor) -> Decays:
    """What all the kernels here decay by."""
    step_BLH = torch.clamp_min(dt_BLH.double() * A_H1[:, 0].double(), UNDERFLOW) * LOG2E
    c_BKTH = filled(step_BLH).unflatten(1, (-1, CHUNK)).cumsum(2)
    whole_BK1H = c_BKTH[:, :, -1:]
    made = c_BKTH, c_BKTH.exp2().float(), (whole_BK1H - c_BKTH).exp2().float()
    return Decays(*(x.flatten(1, 2) for x in made), whole_BK1H[:, :, 0].exp2().float())


def filled(x_BLH: Tensor) -> Tensor:
    """Zeros after the last token, up to whole chunks."""
    return torch.nn.functional.pad(x_BLH, (0, 0, 0, -x_BLH.shape[1] % CHUNK))


class Launch:
    """The kernels above on arguments of one shape."""

    def __init__(self, v_BLHP: Tensor, groups: int, state: int):
        self.rows, self.length, self.heads, self.width = v_BLHP.shape
        self.groups, self.state, self.chunks = groups, state, -(-self.length // CHUNK)
        self.sizes = {"HEADS": self.heads, "WIDTH": self.width, "STATE": state, "SHARED": self.heads // groups, "CHUNK": CHUNK,
                      "PRECISION": PRECISION, "SLICE": SLICE}
        self.wide, self.device = min(TILE, padded(self.width, SLICE)), v_BLHP.device
        self.parts = triton.cdiv(self.width, self.wide)

    def empty(self, *sizes: int) -> Tensor:
        return torch.empty(sizes, device=self.device)

    def products(self, C_BLGN: Tensor, B_BLGN: Tensor) -> Tensor:
        """C_t · B_s, B K G T T."""
        CB = self.empty(self.rows, self.chunks, self.groups, CHUNK, CHUNK)
        products[(self.rows * self.chunks, self.groups)](
            C_BLGN, B_BLGN, CB, self.length, self.chunks, *strides(C_BLGN, B_BLGN), STATE=self.state, PRECISION=PRECISION,
            CHUNK=CHUNK, SLICE=SLICE, num_warps=4)
        return CB

    def states(self, x_BLHP, scale_BMH, B_BLGN, left_BKH, start, *, last: bool, back: bool) -> tuple[Tensor, Tensor | None]:
        """The state before each chunk, KBHPN, and the last one; going `back`, its gradient after each, and the first one."""
        each, held = self.width * self.state, min(TILE, padded(self.state, SLICE))
        kept = self.empty(self.chunks, self.rows, self.heads, self.width, self.state)
        written[(self.rows * self.chunks, self.heads, self.parts * triton.cdiv(self.state, held))](
            x_BLHP, scale_BMH, B_BLGN, kept, self.length, self.chunks, *strides(x_BLHP, B_BLGN), **self.sizes, BP=self.wide, BN=held,
            num_warps=4)
        end = self.empty(*kept.shape[1:]) if last else None
        passed[(self.rows, triton.cdiv(self.heads * each, 1024))](
            kept, left_BKH, kept if start is None else start.contiguous(), kept if end is None else end, self.chunks,
            1 if start is None else len(start), HEADS=self.heads, EACH=each, HAS_START=start is not None, LAST=last, BACK=back,
            BLOCK=1024, num_warps=4)
        return kept, end

    def read(self, Q_BLGN, h_KBHPN, scale_BMH, *, CB=None, c_BMH=None, x=None, w=None, y=None, other=None, back=False) -> Tensor:
        """Write y where it is given; the sums along `other` of what is read from the states, part by part of the width."""
        along = self.empty(self.parts, *scale_BMH.shape) if other is not None else None
        given = CB, c_BMH, x, w, y, other, along
        CB, c_BMH, x, w_, y_, other, along_ = (Q_BLGN if each is None else each for each in given)  # a place for each
        read[(self.rows * self.chunks, self.heads, self.parts)](
            Q_BLGN, h_KBHPN, scale_BMH, CB, c_BMH, x, w_, y_, other, along_, self.length, self.chunks, *strides(Q_BLGN, x, w_, other),
            **self.sizes, BP=self.wide, INSIDE=y is not None, HAS_W=w is not None, BACK=back, ALONG=along is not None, num_warps=8)
        return along


def mix(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h) -> tuple[Tensor, Tensor | None, Tensor]:
    """y_BLHP in v's type, the last state h_BHPN unless not `keep_h`, and the states before each chunk, KBHPN."""
    v, w, B_BLGN, C_BLGN = (inner(x) for x in (v, w, B_BLGN, C_BLGN))
    y, run, left = outputs(v), Launch(v, *B_BLGN.shape[2:]), decays(dt, A_H1)
    with on(v):
        kept, last = run.states(v, filled(w) * left.until_BMH, B_BLGN, left.whole_BKH, h0, last=keep_h, back=False)
        run.read(C_BLGN, kept, left.since_BMH, CB=run.products(C_BLGN, B_BLGN), c_BMH=left.c_BMH, x=v, w=w, y=y)
    return y.to(v.dtype), last, kept


def states(v, dt, w, A_H1, B_BLGN, h0, positions: Tensor) -> Tensor:
    """The states h_BSHPN after the tokens at `positions`, each from the state before its chunk and the chunk's tokens up to it."""
    _, _, kept = mix(v, dt, w, A_H1, B_BLGN, B_BLGN, h0, False)
    c_BMH, found = decays(dt, A_H1).c_BMH, []
    for t in positions.tolist():
        part, k = slice(t // CHUNK * CHUNK, t + 1), t // CHUNK
        left_BTH = (c_BMH[:, t:t + 1] - c_BMH[:, part]).exp2().float() * w[:, part]
        x_BTGRP = (v[:, part] * left_BTH[..., None]).unflatten(2, (B_BLGN.shape[2], -1))
        own = torch.einsum("btgrp,btgn->bgrpn", x_BTGRP, B_BLGN[:, part].float()).flatten(1, 2)
        found.append(c_BMH[:, t].exp2().float()[..., None, None] * kept[k] + own)
    return torch.stack(found, dim=1)
