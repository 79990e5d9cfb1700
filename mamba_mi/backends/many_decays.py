"""The scan of Mamba-1, where every channel has many decays: a loop over tokens around a state that stays in cache.

Decays are powers of 2, A being taken times log2(e): torch's exp2 takes less than half of its exp's time (AVX2), and most of
a scan's time was exp.

Shape legend: B batch, L length, G groups, H heads, P head width, N state, E = H·P channels; b rows of the state before.
"""
from __future__ import annotations

import torch

from mamba_mi.backends.reference import LOG2E, joined, spread

WORK = 2**18  # numbers; four bytes each, some more than a core's second cache commonly holds
STEPS = 8  # tokens: of fewer at once, nothing is won


def mix(v, dt, w, A_HN, B_BLGN, C_BLGN, h0, keep_h):
    """Without gradients: the state B N E stays in cache while the tokens go by; no length × state tensor is ever made."""
    heads, width, groups = *v.shape[2:], B_BLGN.shape[2]
    v_BLE, (dt_BLE, w_BLE) = v.flatten(2), (x if width == 1 else x.repeat_interleave(width, dim=2) for x in (dt, w))
    A_NE = (A_HN * LOG2E).repeat_interleave(width, dim=0).T.contiguous()
    if v.shape[1] == 1 and h0 is not None and not keep_h:
        return _one_token_of_many(v_BLE * w_BLE, dt_BLE, A_NE, B_BLGN, C_BLGN, to_NE(h0)).unflatten(2, (heads, width)), None
    h_BNE = v.new_zeros(len(v), *A_NE.shape) if h0 is None else spread(to_NE(h0), len(v)).clone()
    ys, hs = zip(*(_one_group(*each) for each in zip(
        v_BLE.chunk(groups, 2), dt_BLE.chunk(groups, 2), w_BLE.chunk(groups, 2), A_NE.chunk(groups, 1), B_BLGN.unbind(2), C_BLGN.unbind(2),
        h_BNE.chunk(groups, 2))))
    y, h = joined(ys, 2), joined(hs, 2)
    return y.unflatten(2, (heads, width)), h.unflatten(2, (heads, width)).permute(0, 2, 3, 1)


def _one_token_of_many(x_B1E, dt_B1E, A_NE, B_B1GN, C_B1GN, h_bNE):
    """A token that goes on from a state which rows may share: C (exp(dt A) h) + (C B) x; the state after it is not made."""
    left_BNE = torch.mul(dt_B1E, A_NE).exp2()
    left_BNE = (left_BNE.unflatten(0, (-1, len(h_bNE))) * h_bNE).flatten(0, 1)
    groups = B_B1GN.shape[2]
    before = [C_B1N[:, None] @ left for C_B1N, left in zip(C_B1GN[:, 0].unbind(1), left_BNE.chunk(groups, 2))]
    own_B1E = (C_B1GN * B_B1GN).sum(-1).repeat_interleave(x_B1E.shape[2] // groups, dim=2)
    return torch.addcmul(joined(before, 2), own_B1E, x_B1E)


def _one_group(v_BLE, dt_BLE, w_BLE, A_NE, B_BLN, C_BLN, h_BNE):
    """y_BLE and the last state of channels that share B and C; the state is written over."""
    if (size := min(v_BLE.shape[1] // len(A_NE), WORK // h_BNE.numel())) >= STEPS:  # their states are no more than y
        return _some_at_once(size, v_BLE, dt_BLE, w_BLE, A_NE, B_BLN, C_BLN, h_BNE)
    y_BLE, left_BNE, x_B1E = torch.empty_like(v_BLE), torch.empty_like(h_BNE), torch.empty_like(v_BLE[:, :1])
    rows = (x[:, :, None].unbind(1) for x in (v_BLE, dt_BLE, w_BLE, C_BLN, y_BLE))
    for v, dt, w, C_, y, B_ in zip(*rows, B_BLN[..., None].unbind(1)):
        torch.mul(dt, A_NE, out=left_BNE).exp2_()
        h_BNE.mul_(left_BNE).addcmul_(B_, torch.mul(v, w, out=x_B1E))
        torch.bmm(C_, h_BNE, out=y)
    return y_BLE, h_BNE


def _some_at_once(size: int, v_BLE, dt_BLE, w_BLE, A_NE, B_BLN, C_BLN, h_BNE):
    """The same, the decays of `size` tokens at once, which one after another become their states, and are read at once."""
    y_BLE, h_TBNE, x_TB1E = torch.empty_like(v_BLE), h_BNE.new_empty(size, *h_BNE.shape), v_BLE.new_empty(size, *v_BLE[:, :1].shape)
    v, dt, w, C_ = (x.transpose(0, 1)[:, :, None] for x in (v_BLE, dt_BLE, w_BLE, C_BLN))
    each_h, each_x, each_B = h_TBNE.unbind(0), x_TB1E.unbind(0), B_BLN.transpose(0, 1)[..., None].unbind(0)
    for start in range(0, v_BLE.shape[1], size):
        part = slice(start, min(start + size, v_BLE.shape[1]))
        h, x = h_TBNE[:part.stop - start], x_TB1E[:part.stop - start]
        torch.mul(dt[part], A_NE, out=h).exp2_()
        torch.mul(v[part], w[part], out=x)
        last = h_BNE
        for own, x_B1E, B_BN1 in zip(each_h, each_x, each_B[part]):
            last = own.mul_(last).addcmul_(B_BN1, x_B1E)
        y_BLE[:, part] = (C_[part] @ h)[:, :, 0].transpose(0, 1)
        h_BNE.copy_(last)
    return y_BLE, h_BNE


def to_NE(h_BHPN):
    """B N E, channels last: what a loop over tokens reads in one run."""
    return h_BHPN.permute(0, 3, 1, 2).flatten(2)
