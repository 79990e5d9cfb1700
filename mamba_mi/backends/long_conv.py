"""A causal convolution as long as the text, by FFT or, of a few positions, tap by tap; or as the matrix it is.

What was seen before the pass may be shared by many rows of the batch: its part is made once a prompt.
Shape legend: B batch, b rows of the past (row r goes on from row r % b), L length of the pass, P tokens before it, T = P + L
taps, D channels.
"""
from __future__ import annotations

import torch
from torch import Tensor

from mamba_mi.backends.reference import spread

SHORT = 32  # positions that are summed tap by tap: an FFT of the whole text costs more
WORK = 1 << 20  # entries of the matrix made at once


def long_conv(w_BLD, k_TD, *, past_bPD=None) -> Tensor:
    """The contract of `mamba_mi.backends`, by FFT."""
    w, k, past = _widened(w_BLD, k_TD, past_bPD)
    length = w.shape[1]
    y_BLD = _by_tap(w, k) if length <= SHORT else _by_fft(w, k[..., :length, :], length)
    if past is not None:
        past = spread(past, len(w)) if k.ndim == 3 else past
        y_BLD = y_BLD + spread(_of_the_past(past, k, length), len(w))
    return y_BLD.to(w_BLD.dtype)


def whole(w_BLD, k_TD, *, past_bPD=None) -> Tensor:
    """The same, with the matrix M[t, s] = k_{t-s} written out, some channels at a time."""
    w, k, past = _widened(w_BLD, k_TD, past_bPD)
    length = w.shape[1]
    if past is not None:
        w = torch.cat([spread(past, len(w)), w], dim=1)
    rows, ys = len(w) if k.ndim == 3 else 1, []
    size = max(1, WORK // (rows * length * w.shape[1]))
    at_L = torch.arange(w.shape[1] - length, w.shape[1])
    for at in range(0, w.shape[2], size):
        part = slice(at, at + size)
        M = toeplitz(k[..., part], at_L, w.shape[1])
        ys.append(torch.einsum("lsd,bsd->bld" if k.ndim == 2 else "blsd,bsd->bld", M, w[..., part]))
    return torch.cat(ys, dim=-1).to(w_BLD.dtype)


def toeplitz(k_TD, at_Q, tokens: int) -> Tensor:
    """k_{t-s} for the rows t = at_Q and s of so many tokens, 0 for s > t: Q T D, after the rows of k if it has any."""
    lag_QT = at_Q[:, None] - torch.arange(tokens)
    k_QTD = k_TD[..., lag_QT.clamp(min=0), :]
    return k_QTD.masked_fill((lag_QT < 0)[..., None].to(k_TD.device), 0)


def _widened(w_BLD, k_TD, past_bPD):
    kind = torch.promote_types(w_BLD.dtype, torch.float32)
    return w_BLD.to(kind), k_TD.to(kind), None if past_bPD is None else past_bPD.to(kind)


def _by_tap(w_BLD, k_TD):
    length = w_BLD.shape[1]
    y_BLD = w_BLD * k_TD[..., :1, :]
    for lag in range(1, length):
        y_BLD = y_BLD + torch.nn.functional.pad(w_BLD[:, :-lag], (0, 0, lag, 0)) * k_TD[..., lag:lag + 1, :]
    return y_BLD


def _by_fft(w_BXD, k_TD, length):
    """The first `length` positions of the convolution; zeros to twice the length, or it would come round."""
    size = w_BXD.shape[1] + k_TD.shape[-2]
    spectrum = torch.fft.rfft(w_BXD, n=size, dim=1) * torch.fft.rfft(k_TD, n=size, dim=-2)
    return torch.fft.irfft(spectrum, n=size, dim=1)[:, :length]


def _of_the_past(past_bPD, k_TD, length):
    """What the tokens before the pass bring to each of its positions."""
    before = past_bPD.shape[1]
    if length > SHORT:
        return _by_fft(past_bPD, k_TD, before + length)[:, before:]
    back = k_TD[..., :before + length, :].flip(-2)  # of the last position, the taps of the past come first
    return torch.stack([(past_bPD * back[..., length - 1 - t:length - 1 - t + before, :]).sum(dim=1) for t in range(length)], dim=1)
