"""The gradient of Mamba-1's scan by hand; states are kept at the borders of chunks only.

h_t = a_t ∘ h_{t-1} + B_t x_tᵀ,   y_t = h_tᵀ C_t   with   a_t = exp(dt_t A),   x_t = dt_t v_t.

Let g_t be the gradient of h_t by all later ways too, and r_t = a_t ∘ g_t what of it reaches h_{t-1}:
    g_t = C_t dy_tᵀ + r_{t+1}      (at the last token the last state's gradient stands for r_{t+1})
    dC_t = h_t dy_t,   dB_t = g_t x_t,   dx_t = g_tᵀ B_t,   hence dv_t = dt_t dx_t and, of what is written, d(dt_t) = v_t dx_t
    d(dt_t A) = r_t ∘ h_{t-1},   hence d(dt_t) = Σ_n A (r_t ∘ h_{t-1}),   dA = Σ_t dt_t (r_t ∘ h_{t-1})
The gradient of h_0 is r_1. Nothing here divides by a decay or by dt, which may be 0 or, edited, negative.

Shape legend: B batch, L length, G groups, N state, E channels, T chunk, K chunks; b rows of the state before.
"""
from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import Function

from mamba_mi.backends import reference
from mamba_mi.backends.many_decays import to_NE
from mamba_mi.backends.reference import LOG2E, again, gather, starts

CHUNK = 16  # as many tokens as a state commonly has numbers: borders then take what y takes
STATE = 2**13  # numbers of a state: more to a step of the loop costs cache, fewer cost calls


def mix(v, dt, w, A_HN, B_BLGN, C_BLGN, h0, keep_h):
    """The scan, open to gradients of all."""
    heads, width = v.shape[2:]
    if width > 1:
        dt, w = (x.repeat_interleave(width, dim=2) for x in (dt, w))
        A_HN = A_HN.repeat_interleave(width, dim=0)
    h0_bNE = v.new_zeros(1, A_HN.shape[1], heads * width) if h0 is None else to_NE(h0)
    y, h = ManyDecays.apply(v.flatten(2), dt, w, A_HN.T, B_BLGN, C_BLGN, h0_bNE)
    return y.unflatten(2, (heads, width)), h.unflatten(2, (heads, width)).permute(0, 2, 3, 1) if keep_h else None


class ManyDecays(Function):
    """y_BLE and the last state h_BNE, from v, dt and the dt of what is written (BLE each), A_NE, B, C (BLGN) and h0_bNE.

    Where its gradient is to have one itself (`create_graph`), that of the reference's token loop is taken, which holds
    every state.
    """

    @staticmethod
    def forward(ctx, v_BLE, dt_BLE, w_BLE, A_NE, B_BLGN, C_BLGN, h0_bNE):
        (rows, length, inner), states = v_BLE.shape, len(A_NE)
        y_BLE, last_BNE = torch.empty_like(v_BLE), v_BLE.new_empty(rows, states, inner)
        borders_KBNE = v_BLE.new_empty(-(-length // CHUNK), rows, states, inner)
        room = _room(v_BLE, A_NE)
        for own, group, at in _parts(v_BLE, B_BLGN.shape[2], states):
            part = _Part(room, v_BLE[own, :, at], dt_BLE[own, :, at], w_BLE[own, :, at], A_NE[:, at],
                         B_BLGN[own, :, group], C_BLGN[own, :, group])
            y_LBE, h = torch.empty_like(part.x), starts(own, h0_bNE)[:, :, at]
            for k, chunk in enumerate(_chunks(length)):
                borders_KBNE[k, own, :, at] = h
                h_TBNE = part.states(chunk, h)
                _product(part.C[chunk], h_TBNE, y_LBE[chunk])
                h = h_TBNE[-1]
            y_BLE[own, :, at], last_BNE[own, :, at] = y_LBE.transpose(0, 1), h
        ctx.save_for_backward(v_BLE, dt_BLE, w_BLE, A_NE, B_BLGN, C_BLGN, h0_bNE, borders_KBNE)
        ctx.set_materialize_grads(False)
        return y_BLE, last_BNE

    @staticmethod
    def backward(ctx, dy_BLE, dlast_BNE):
        *given, borders_KBNE = ctx.saved_tensors
        if torch.is_grad_enabled():
            return again(_by_token, given, (dy_BLE, dlast_BNE), ctx.needs_input_grad)
        return _back(dy_BLE, dlast_BNE, *given, borders_KBNE)  # under autocast, too: no product here is one that it shortens


def _back(dy_BLE, dlast_BNE, v_BLE, dt_BLE, w_BLE, A_NE, B_BLGN, C_BLGN, h0_bNE, borders_KBNE):
    """The gradients of what the scan took, the last chunk first."""
    dy_BLE = torch.zeros_like(v_BLE) if dy_BLE is None else dy_BLE
    dv, ddt, dw = (torch.empty_like(x) for x in (v_BLE, dt_BLE, w_BLE))
    dA, dB, dC, dh0 = (torch.zeros_like(x) for x in (A_NE, B_BLGN, C_BLGN, h0_bNE))
    length, states = v_BLE.shape[1], len(A_NE)
    room = _room(v_BLE, A_NE)
    for own, group, at in _parts(v_BLE, B_BLGN.shape[2], states):
        part = _Part(room, v_BLE[own, :, at], dt_BLE[own, :, at], w_BLE[own, :, at], A_NE[:, at],
                     B_BLGN[own, :, group], C_BLGN[own, :, group], dy_BLE[own, :, at])
        r = part.x.new_zeros(part.h.shape[1:]) if dlast_BNE is None else dlast_BNE[own, :, at]
        for k, chunk in reversed([*enumerate(_chunks(length))]):
            r = part.back(chunk, borders_KBNE[k, own, :, at], r)
        gather(dh0[:, :, at], own, r)
        dx_BLE = part.dx.transpose(0, 1)
        torch.mul(dx_BLE, w_BLE[own, :, at], out=dv[own, :, at])
        torch.mul(dx_BLE, v_BLE[own, :, at], out=dw[own, :, at])
        ddt[own, :, at] = part.ddt.transpose(0, 1)
        dA[:, at] += part.dA
        dB[own, :, group] += part.dB.transpose(0, 1)
        dC[own, :, group] += part.dC.transpose(0, 1)
    return dv, ddt, dw, dA, dB, dC, dh0


class _Part:
    """A few rows and channels that share B and C, tokens first; and, made once for all its chunks, what one of them needs."""

    def __init__(self, room, v_BLE, dt_BLE, w_BLE, A_NE, B_BLN, C_BLN, dy_BLE=None):
        self.x, self.dt, self.B, self.C = (x.transpose(0, 1).contiguous() for x in (v_BLE * w_BLE, dt_BLE, B_BLN, C_BLN))
        self.A, (length, rows, _) = A_NE.contiguous(), self.x.shape
        self.A_2 = self.A * LOG2E
        size = min(CHUNK, length)
        room = room[:(3 * size + 1) * rows * self.A.numel()].view(-1, rows, *self.A.shape)
        self.a, self.g, self.h = room.split([size, size, size + 1])
        self.each_a, self.each_g, self.each_h = (x.unbind(0) for x in (self.a, self.g, self.h))
        if dy_BLE is None:
            return
        self.dy = dy_BLE.transpose(0, 1).contiguous()
        self.dx, self.ddt, self.dB, self.dC = (torch.empty_like(x) for x in (self.x, self.dt, self.B, self.C))
        self.dA = torch.zeros_like(self.A)

    def states(self, chunk, h_BNE) -> Tensor:
        """h_TBNE of a chunk that starts from `h_BNE`; ours until the next chunk's are asked for."""
        dt, x, B_ = self.dt[chunk], self.x[chunk], self.B[chunk]
        a, h = self.a[:len(dt)], self.h[1:len(dt) + 1]
        self.each_h[0].copy_(h_BNE)  # first: it may be the last of the states that are now written over
        torch.mul(dt[:, :, None], self.A_2, out=a).exp2_()
        torch.mul(B_[..., None], x[:, :, None], out=h)
        for t in range(len(dt)):
            self.each_h[t + 1].addcmul_(self.each_a[t], self.each_h[t])
        return h

    def back(self, chunk, h_BNE, r_BNE) -> Tensor:
        """Go back through a chunk that starts from `h_BNE`, `r_BNE` coming from the next one; what reaches the one before."""
        h, dy, dt = self.states(chunk, h_BNE), self.dy[chunk], self.dt[chunk]
        size = len(dt)
        a, g = self.a[:size], self.g[:size]
        torch.mul(self.C[chunk][..., None], dy[:, :, None], out=g)
        self.each_g[size - 1].add_(r_BNE)
        for t in reversed(range(size - 1)):
            self.each_g[t].addcmul_(self.each_a[t + 1], self.each_g[t + 1])
        _product(dy, h.transpose(2, 3), self.dC[chunk])
        _product(self.x[chunk], g.transpose(2, 3), self.dB[chunk])
        _product(self.B[chunk], g, self.dx[chunk])
        r = a.mul_(g)
        before_BNE = r[0].clone()
        r.mul_(self.h[:size])  # the gradient of dt A
        torch.sum(torch.mul(r, self.A, out=g), 2, out=self.ddt[chunk])
        self.dA += r.mul_(dt[:, :, None]).sum((0, 1))
        return before_BNE


def _product(x_TBX, M_TBXY, out_TBY) -> None:
    """Σ_x M[x, y] x of every token and row."""
    torch.bmm(x_TBX.flatten(0, 1)[:, None], M_TBXY.flatten(0, 1), out=out_TBY.flatten(0, 1)[:, None])


def _room(v_BLE, A_NE) -> Tensor:
    """What a chunk of any part needs, asked of the allocator once."""
    rows, length, _ = v_BLE.shape
    return v_BLE.new_empty((3 * min(CHUNK, length) + 1) * min(rows * A_NE.numel(), max(_most(v_BLE), len(A_NE))))


def _parts(v_BLE, groups, states) -> Iterator[tuple[slice, int, slice]]:
    """A few rows and channels at a time, all of one group: what a chunk of them needs stays in cache."""
    rows, _, inner = v_BLE.shape
    wide, most = inner // groups, _most(v_BLE)
    channels = min(wide, max(1, most // states))
    few = max(1, most // (states * channels))
    for r in range(0, rows, few):
        for group in range(groups):
            for e in range(group * wide, (group + 1) * wide, channels):
                yield slice(r, min(r + few, rows)), group, slice(e, min(e + channels, (group + 1) * wide))


def _most(v_BLE) -> int:
    """Numbers of a state at once; elsewhere than on a CPU all, as calls are what costs there."""
    return STATE if v_BLE.device.type == "cpu" else sys.maxsize


def _chunks(length: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK))


def _by_token(v_BLE, dt_BLE, w_BLE, A_NE, B_BLGN, C_BLGN, h0_bNE):
    y_BLHP, h_BHPN = reference.scan(v_BLE[..., None], dt_BLE, A_NE.T, B_BLGN, C_BLGN,
                                    h0=h0_bNE.transpose(1, 2)[:, :, None], dt_write=w_BLE)
    return y_BLHP[..., 0], to_NE(h_BHPN)
