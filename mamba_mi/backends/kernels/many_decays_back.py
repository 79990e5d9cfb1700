"""The gradient of Mamba-1's scan by hand, as one kernel: from the last chunk to the first, each one's states made anew.

The formulas are those of `backends.many_decays_gradients`; with g_t the gradient of h_t by all later ways, r_t = a_t ∘ g_t:
    g_t = C_t dy_t + r_{t+1},   dC_t = Σ_e h_t dy_t,   dB_t = Σ_e g_t x_t,   dx_t = g_t · B_t
    d(dt_t A) = r_t ∘ h_{t-1},   hence d(dt_t) = Σ_n A (r_t ∘ h_{t-1}),   dA = Σ_t dt_t (r_t ∘ h_{t-1})
Sums over channels are left in parts and taken afterwards, in one order: the same gradient, bit for bit, every time.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, E = H·P channels; b rows of the state before.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.autograd import Function

from mamba_mi.backends.kernels import many_decays
from mamba_mi.backends.kernels.launch import inner, on, padded, strides, sums_in
from mamba_mi.backends.reference import LOG2E, again, by_token


@triton.jit
def many_decays_back(v, dt, w, A, B, C, borders, dy, dlast, dx, ddt, dA, dB, dC, dh0, room, length, chunks, vb, vl, db, dl, wb, wl,
                     Ah, An, Bb, Bl, Cb, Cl, yb, yl, WIDTH: tl.constexpr, STATE: tl.constexpr, WIDE: tl.constexpr,
                     GROUPS: tl.constexpr, CHUNK: tl.constexpr, HAS_LAST: tl.constexpr, KIND: tl.constexpr, LOG2E: tl.constexpr,
                     BE: tl.constexpr, BN: tl.constexpr):
    """A row's channels of a group, BE of WIDE at a time. `room` holds the states of a chunk; what of dB and dC these channels
    make goes to a part of its own."""
    row, rows, group = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64), tl.program_id(1)
    own, n, part = tl.program_id(2) * BE + tl.arange(0, BE), tl.arange(0, BN), tl.program_id(2).to(tl.int64)
    e, inner = group * WIDE + own, GROUPS * WIDE
    head, here, held = e // WIDTH, own < WIDE, n < STATE
    tile, ok = e[:, None] * STATE + n[None, :], here[:, None] & held[None, :]
    room += ((row * GROUPS + group) * tl.num_programs(2) + part) * CHUNK * BE * BN
    room += tl.arange(0, BE)[:, None] * BN + n[None, :]
    A_EN = tl.load(A + head[:, None] * Ah + n[None, :] * An, mask=ok, other=0.0) * LOG2E
    r_EN, dA_EN = tl.zeros((BE, BN), dtype=KIND), tl.zeros((BE, BN), dtype=KIND)
    if HAS_LAST:
        r_EN = tl.load(dlast + row * inner * STATE + tile, mask=ok, other=0.0)
    v, dt, w, dy = v + row * vb + e, dt + row * db + head, w + row * wb + head, dy + row * yb + e
    B, C, out = B + row * Bb + group * STATE + n, C + row * Cb + group * STATE + n, row * length * inner + e
    out_N = (part * rows + row) * length * GROUPS * STATE + group * STATE + n
    for j in range(0, chunks):
        k = (chunks - 1 - j).to(tl.int64)
        first = k * CHUNK
        size = tl.minimum(CHUNK, length - first)
        h_EN = tl.load(borders + (k * rows + row) * inner * STATE + tile, mask=ok, other=0.0)
        for i in range(0, size):
            t = first + i
            tl.store(room + i * BE * BN, h_EN)
            x_E = tl.load(v + t * vl, mask=here, other=0.0) * tl.load(w + t * wl, mask=here, other=0.0)
            a_EN = tl.exp2(tl.load(dt + t * dl, mask=here, other=0.0)[:, None] * A_EN)
            h_EN = a_EN * h_EN + x_E[:, None] * tl.load(B + t * Bl, mask=held, other=0.0)[None, :]
        tl.debug_barrier()  # what one thread put down another may take up
        for i in range(0, size):
            t = first + size - 1 - i
            before_EN = tl.load(room + (size - 1 - i) * BE * BN)
            x_E = tl.load(v + t * vl, mask=here, other=0.0) * tl.load(w + t * wl, mask=here, other=0.0)
            dt_E, dy_E = tl.load(dt + t * dl, mask=here, other=0.0), tl.load(dy + t * yl, mask=here, other=0.0)
            B_N, C_N = tl.load(B + t * Bl, mask=held, other=0.0), tl.load(C + t * Cl, mask=held, other=0.0)
            g_EN = r_EN + dy_E[:, None] * C_N[None, :]
            tl.store(dC + out_N + t * GROUPS * STATE, tl.sum(h_EN * dy_E[:, None], axis=0), mask=held)
            tl.store(dB + out_N + t * GROUPS * STATE, tl.sum(g_EN * x_E[:, None], axis=0), mask=held)
            tl.store(dx + out + t * inner, tl.sum(g_EN * B_N[None, :], axis=1), mask=here)
            r_EN = tl.exp2(dt_E[:, None] * A_EN) * g_EN
            q_EN = r_EN * before_EN
            tl.store(ddt + out + t * inner, tl.sum(q_EN * A_EN, axis=1) * (1 / LOG2E), mask=here)
            dA_EN += q_EN * dt_E[:, None]
            h_EN = before_EN
        tl.debug_barrier()
    tl.store(dh0 + row * inner * STATE + tile, r_EN, mask=ok)
    tl.store(dA + row * inner * STATE + tile, dA_EN, mask=ok)


def mix(v, dt, w, A_HN, B_BLGN, C_BLGN, h0, keep_h):
    """The scan, open to gradients of all."""
    y, last = ManyDecays.apply(v, dt, w, A_HN, B_BLGN, C_BLGN, h0)
    return y, last if keep_h else None


class ManyDecays(Function):
    """y_BLHP and the last state h_BHPN of arguments in float32 or float64.

    Where its gradient is to have one itself (`create_graph`), that of the reference's token loop is taken, which holds
    every state.
    """

    @staticmethod
    def forward(ctx, v, dt, w, A_HN, B_BLGN, C_BLGN, h0):
        y, last, borders = many_decays.mix(v, dt, w, A_HN, B_BLGN, C_BLGN, h0, True, borders=True)
        ctx.save_for_backward(v, dt, w, A_HN, B_BLGN, C_BLGN, h0, borders)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    def backward(ctx, dy, dlast):
        *given, borders = ctx.saved_tensors
        if torch.is_grad_enabled():
            return again(by_token, given, (dy, dlast), ctx.needs_input_grad)
        return _back(dy, dlast, *given, borders)  # under autocast, too: no product here is one that it shortens


def _back(dy, dlast, v, dt, w, A_HN, B_BLGN, C_BLGN, h0, borders):
    """The gradients of what the scan takes."""
    dy = torch.zeros_like(v) if dy is None else dy
    v, dt, w, B_BLGN, C_BLGN, dy = (inner(x) for x in (v, dt, w, B_BLGN, C_BLGN, dy))
    (rows, length, heads, width), (groups, state) = v.shape, B_BLGN.shape[2:]
    wide = heads * width // groups
    channels, held, warps = tiles(wide, state)
    parts = triton.cdiv(wide, channels)
    dx, ddt = v.new_empty(v.shape), v.new_empty(v.shape)
    dA, dh0 = v.new_empty(rows, heads, width, state), v.new_empty(rows, heads, width, state)
    dB, dC = v.new_empty(parts, *B_BLGN.shape), v.new_empty(parts, *C_BLGN.shape)
    room = v.new_empty(rows * groups * parts * many_decays.CHUNK * channels * held)
    with on(v):
        many_decays_back[(rows, groups, parts)](
            v, dt, w, A_HN, B_BLGN, C_BLGN, borders, dy, v if dlast is None else dlast.contiguous(), dx, ddt, dA, dB, dC, dh0, room,
            length, len(borders), *strides(v, dt, w), *A_HN.stride(), *strides(B_BLGN, C_BLGN, dy), WIDTH=width, STATE=state,
            WIDE=wide, GROUPS=groups, CHUNK=many_decays.CHUNK, HAS_LAST=dlast is not None, LOG2E=LOG2E,
            KIND=tl.float64 if sums_in(v) == torch.float64 else tl.float32, BE=channels, BN=held, num_warps=warps)
    return (dx * w[..., None], ddt.sum(-1), (dx * v).sum(-1), dA.sum((0, 2)), dB.sum(0), dC.sum(0),
            None if h0 is None else dh0.unflatten(0, (-1, len(h0))).sum(0))


def tiles(wide: int, state: int) -> tuple[int, int, int]:
    """Channels and states a program holds, and its warps: four numbers of a state a thread, as there are six of its kind."""
    held = padded(state)
    channels = min(padded(wide), max(16, 512 // held))
    return channels, held, max(1, min(8, channels * held // 128))
