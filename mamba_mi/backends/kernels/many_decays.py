"""The scan of many decays (Mamba-1) as one kernel: a token after another around a state that stays in registers.

h_t = exp(dt_t A) h_{t-1} + w_t B_t v_t,   y_t = h_t · C_t.   Sums in float32, or in float64 where v is; no matrix product.
A program takes a row and a few channels that share B and C. What the next token needs is asked for before this one is summed.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, E = H·P channels, K chunks, S positions.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mamba_mi.backends.kernels.launch import inner, on, outputs, padded, strides, sums_in
from mamba_mi.backends.reference import LOG2E

CHUNK = 32  # tokens between the states that are kept for the gradients


@triton.jit
def many_decays(v, dt, w, A, B, C, h0, y, last, borders, at, slot_L, length, starts, vb, vl, db, dl, wb, wl, Ah, An, Bb, Bl, Cb, Cl,
                WIDTH: tl.constexpr, STATE: tl.constexpr, WIDE: tl.constexpr, GROUPS: tl.constexpr, CHUNK: tl.constexpr,
                SLOTS: tl.constexpr, HAS_H0: tl.constexpr, READ: tl.constexpr, LAST: tl.constexpr, BORDERS: tl.constexpr,
                KIND: tl.constexpr, LOG2E: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr):
    """A row's channels of a group, BE of WIDE at a time. What is written: y (READ), the last state (LAST), the states before
    each chunk (BORDERS), those after the tokens whose `slot_L` is not negative (SLOTS)."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    own, n = tl.program_id(2) * BE + tl.arange(0, BE), tl.arange(0, BN)
    e, inner = group * WIDE + own, GROUPS * WIDE
    head, here, held = e // WIDTH, own < WIDE, n < STATE
    tile, ok = e[:, None] * STATE + n[None, :], here[:, None] & held[None, :]
    A_EN = tl.load(A + head[:, None] * Ah + n[None, :] * An, mask=ok, other=0.0).to(KIND) * LOG2E
    h_EN = tl.zeros((BE, BN), dtype=KIND)
    if HAS_H0:
        h_EN = tl.load(h0 + (row % starts) * inner * STATE + tile, mask=ok, other=0.0).to(KIND)
    v, dt, w, y = v + row * vb + e, dt + row * db + head, w + row * wb + head, y + row * length * inner + e
    B, C = B + row * Bb + group * STATE + n, C + row * Cb + group * STATE + n
    borders, rows = borders + row * inner * STATE + tile, tl.num_programs(0).to(tl.int64)
    v_E, dt_E, w_E = tl.load(v, mask=here, other=0.0), tl.load(dt, mask=here, other=0.0), tl.load(w, mask=here, other=0.0)
    B_N, C_N = tl.load(B, mask=held, other=0.0), tl.load(C, mask=held, other=0.0)
    for t in range(0, length):
        more = tl.minimum(1, length - 1 - t)  # the last token asks for itself again
        v, dt, w, B, C = v + more * vl, dt + more * dl, w + more * wl, B + more * Bl, C + more * Cl
        v_next, dt_next, w_next = (tl.load(v, mask=here, other=0.0), tl.load(dt, mask=here, other=0.0),
                                   tl.load(w, mask=here, other=0.0))
        B_next, C_next = tl.load(B, mask=held, other=0.0), tl.load(C, mask=held, other=0.0)
        if BORDERS:
            if t % CHUNK == 0:
                tl.store(borders, h_EN, mask=ok)
                borders += rows * inner * STATE
        h_EN = tl.exp2(dt_E.to(KIND)[:, None] * A_EN) * h_EN + (w_E.to(KIND) * v_E.to(KIND))[:, None] * B_N.to(KIND)[None, :]
        if READ:
            tl.store(y, tl.sum(h_EN * C_N.to(KIND)[None, :], axis=1), mask=here)
            y += inner
        if SLOTS > 0:
            slot = tl.load(slot_L + t).to(tl.int64)
            if slot >= 0:
                tl.store(at + (row * SLOTS + slot) * inner * STATE + tile, h_EN, mask=ok)
        v_E, dt_E, w_E, B_N, C_N = v_next, dt_next, w_next, B_next, C_next
    if LAST:
        tl.store(last + row * inner * STATE + tile, h_EN, mask=ok)


def mix(v, dt, w, A_HN, B_BLGN, C_BLGN, h0, keep_h, *, borders: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y_BLHP in v's type, the last state h_BHPN unless not `keep_h`, and with `borders` those before each chunk, KBHPN."""
    kind, state = sums_in(v), (*v.shape[2:], B_BLGN.shape[3])
    y, last = outputs(v), None
    if keep_h:
        last = v.new_empty(len(v), *state, dtype=kind)
    kept = v.new_empty(-(-v.shape[1] // CHUNK), len(v), *state, dtype=kind) if borders else None
    _run(v, dt, w, A_HN, B_BLGN, C_BLGN, h0, y=y, last=last, borders=kept)
    return y.to(v.dtype), last, kept


def states(v, dt, w, A_HN, B_BLGN, h0, positions: Tensor) -> Tensor:
    """The states h_BSHPN after the tokens at `positions`, each of which is asked for once."""
    slot_L = torch.full((v.shape[1],), -1, dtype=torch.int32, device=v.device)
    slot_L[positions] = torch.arange(len(positions), dtype=torch.int32, device=v.device)
    at = v.new_empty(len(v), len(positions), *v.shape[2:], B_BLGN.shape[3], dtype=sums_in(v))
    _run(v, dt, w, A_HN, B_BLGN, B_BLGN, h0, at=at, slot_L=slot_L)
    return at


def _run(v, dt, w, A_HN, B_BLGN, C_BLGN, h0, *, y=None, last=None, borders=None, at=None, slot_L=None) -> None:
    v, dt, w, B_BLGN, C_BLGN = (inner(x) for x in (v, dt, w, B_BLGN, C_BLGN))
    rows, length, heads, width = v.shape
    groups, state = B_BLGN.shape[2:]
    wide, start = heads * width // groups, None if h0 is None else h0.contiguous()
    channels, held, warps = tiles(wide, state)
    with on(v):
        many_decays[(rows, groups, triton.cdiv(wide, channels))](
            v, dt, w, A_HN, B_BLGN, C_BLGN, *(v if x is None else x for x in (start, y, last, borders, at, slot_L)),
            length, 1 if h0 is None else len(h0), *strides(v, dt, w), *A_HN.stride(), *strides(B_BLGN, C_BLGN),
            WIDTH=width, STATE=state, WIDE=wide, GROUPS=groups, CHUNK=CHUNK, SLOTS=0 if at is None else at.shape[1],
            HAS_H0=h0 is not None, READ=y is not None, LAST=last is not None, BORDERS=borders is not None,
            KIND=tl.float64 if sums_in(v) == torch.float64 else tl.float32, LOG2E=LOG2E, BE=channels, BN=held, num_warps=warps)


def tiles(wide: int, state: int) -> tuple[int, int, int]:
    """Channels and states a program holds, and its warps: eight numbers of the state a thread, so that its registers do."""
    held = padded(state)
    channels = min(padded(wide), max(16, 256 // held))
    return channels, held, max(1, min(8, channels * held // 256))
