"""What a CPU does one number after another, compiled by numba: Mamba-1's scan, the conv, and the passes over channels.

In float32 and float64, without gradients. All else is `chunked`'s: the scan of one decay a head is matrix products there,
and gradients, other types and an edited dt that lets the state grow are rare enough to be left to it.
Shape legend: B batch, L length, H heads, P head width, N state, G groups, C channels, K conv width, E = H·P channels,
J blocks of W channels; b rows of the state before.
"""
from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from mamba_mi.backends import chunked, reference
from mamba_mi.backends.chunked import long_conv, mixing, mixing_over_heads, retain
from mamba_mi.backends.reference import needs_grad, norm, widened
from mamba_mi.backends.states import by_scan

__all__ = ["conv", "gate", "gated_norm", "long_conv", "missing", "mixing", "mixing_over_heads", "norm", "retain", "scan",
           "softplus", "states_at"]
DEVICES = ("cpu",)
ALONE = 2**16  # numbers a loop goes over that are not worth a second thread


@cache
def missing() -> str:
    """Why this backend cannot run here; empty when it can. numba is imported for it: one that is there may still not load."""
    if not find_spec("numba"):
        return "numba is not installed (pip install numba)"
    try:
        _loops()
    except Exception as error:  # an older or newer numpy, a broken build: whatever an import raises
        return f"numba is installed, but its import fails: {type(error).__name__}: {error}".partition("\n")[0]
    return ""


def scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, *, h0=None, keep_h=True,
         dt_write=None) -> tuple[Tensor, Tensor | None]:
    """The contract of `mamba_mi.backends`; one decay a head as `chunked` does it."""
    v, dt, A, B_, C_, start, w = widened(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0, dt_write)
    # the loops' exp2 is for decays: a dt < 0 (or NaN) is for one that knows all numbers
    if A.shape[1] == 1 or not _ours(v, dt, A, B_, C_, start, w) or not dt.min() >= 0 or not A.max() <= 0:
        return chunked.scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0=h0, keep_h=keep_h, dt_write=dt_write)
    rows, length, heads, width = v.shape
    blocks = _blocks(heads * width, B_.shape[2])
    given = [x.flatten(2) if x.ndim == 4 else x.repeat_interleave(width, dim=2) if width > 1 else x for x in (v, dt, w)]
    A_JNW = blocks.split((A * _loops().LOG2E).repeat_interleave(width, dim=0)[None])[0]
    h0_bJNW = v.new_empty(0, *A_JNW.shape) if start is None else blocks.split(start.flatten(1, 2))
    y_BLE, h_BJNW = v.new_empty(rows, length, heads * width), v.new_empty(rows if keep_h else 0, *A_JNW.shape)
    _run("scan", rows * len(A_JNW), y_BLE.numel() * A.shape[1], *map(_flat, given), A_JNW, B_.contiguous(), C_.contiguous(),
         blocks.J3, h0_bJNW, y_BLE, h_BJNW)
    y = y_BLE.unflatten(2, (heads, width)).to(v_BLHP.dtype)
    return y, blocks.join(h_BJNW).unflatten(1, (heads, width)) if keep_h else None


states_at = by_scan(scan)


def conv(u_BLC, weight_CK, bias_C, *, tail=None, keep_tail=True, silu=False) -> tuple[Tensor, Tensor | None]:
    """The causal depthwise convolution, a token's taps and its SiLU at once."""
    if not _ours(u_BLC, weight_CK, bias_C, tail):
        return chunked.conv(u_BLC, weight_CK, bias_C, tail=tail, keep_tail=keep_tail, silu=silu)
    before = weight_CK.shape[1] - 1
    tail = u_BLC.new_zeros(1, before, u_BLC.shape[2]) if tail is None else tail
    y_BLC = u_BLC.new_empty(u_BLC.shape)
    _run("conv", len(y_BLC) * y_BLC.shape[1], y_BLC.numel(), _flat(u_BLC), weight_CK.T.contiguous(), bias_C.contiguous(),
         tail.contiguous(), y_BLC, silu)
    return y_BLC, chunked.last_inputs(u_BLC, tail) if keep_tail else None


def softplus(z_BLE, bias_E) -> Tensor:
    """log(1 + exp(z + bias)), in the bias's type."""
    if not _ours(z_BLE, bias_E):
        return reference.softplus(z_BLE, bias_E)
    out_BLE = z_BLE.new_empty(z_BLE.shape)
    _run("step_sizes", len(z_BLE) * z_BLE.shape[1], z_BLE.numel(), _flat(z_BLE), bias_E.contiguous(), out_BLE)
    return out_BLE


def gate(y_BLE, z_BLE) -> Tensor:
    """y ∘ silu(z)."""
    if not _ours(y_BLE, z_BLE):
        return reference.gate(y_BLE, z_BLE)
    out_BLE = z_BLE.new_empty(z_BLE.shape)
    _run("gate", len(z_BLE) * z_BLE.shape[1], z_BLE.numel(), _flat(y_BLE.expand_as(z_BLE)), _flat(z_BLE), out_BLE)
    return out_BLE


def gated_norm(y_BLE, z_BLE, weight_E, eps, *, groups=1) -> Tensor:
    """The norm of what is gated, in y's type."""
    return norm(gate(y_BLE, z_BLE), weight_E, eps, groups=groups).to(y_BLE.dtype)


def _ours(*given: Tensor | None) -> bool:
    """Whether the loops can take them: numbers of one type, and no gradient to be had."""
    kinds = {x.dtype for x in given if x is not None}
    return len(kinds) == 1 and kinds <= {torch.float32, torch.float64} and not needs_grad(given)


def _flat(x_BLE: Tensor) -> tuple[np.ndarray, tuple[int, int]]:
    """Its numbers as one flat array, not copied where channels lie side by side, and the strides of rows and tokens."""
    x = x_BLE.detach() if x_BLE.stride(2) == 1 or x_BLE.shape[2] == 1 else x_BLE.detach().contiguous()
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape[:2], x.stride())) + x.shape[2] - 1
    return x.as_strided((span,), (1,)).numpy(), x.stride()[:2]


@cache
def _loops():
    from mamba_mi.backends.kernels import cpu  # numba takes a while to import

    return cpu


def _run(name: str, count: int, numbers: int, *given) -> None:
    """The loop of this name over `count` parts of `numbers` in all, shared out over torch's threads."""
    loop = getattr(_loops(), name)
    args = [part for x in given for part in (x if isinstance(x, tuple) else (x,))]
    args = [x.detach().numpy() if isinstance(x, Tensor) else x for x in args]
    threads = min(torch.get_num_threads(), 1 + numbers // ALONE, count)
    if threads == 1:
        return loop(0, count, *args)
    ends = [count * i // threads for i in range(threads + 1)]
    jobs = [_pool(os.getpid(), threads).submit(loop, start, stop, *args) for start, stop in zip(ends, ends[1:])]
    for job in jobs:
        job.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="scan")


@cache
def _blocks(channels: int, groups: int) -> _Blocks:
    return _Blocks(channels, groups)


class _Blocks:
    """Channels E as J blocks of W, no block in two groups; the last of a group may have fewer."""

    def __init__(self, channels: int, groups: int):
        wide, own = _loops().W, channels // groups
        self._even = own % wide == 0
        self.J3 = np.array([(g * own + e, min(wide, own - e), g) for g in range(groups) for e in range(0, own, wide)])
        self._wide = wide
        place_JW = np.arange(len(self.J3) * wide).reshape(-1, wide)
        self._at_E = torch.from_numpy(np.concatenate([at[:size] for at, (_, size, _) in zip(place_JW, self.J3)]))

    def split(self, x_BEN: Tensor) -> Tensor:
        """B J N W; 0 where a block has fewer channels."""
        if self._even:
            return x_BEN.unflatten(1, (-1, self._wide)).transpose(2, 3).contiguous()
        padded = x_BEN.new_zeros(len(x_BEN), len(self.J3) * self._wide, x_BEN.shape[2])
        padded[:, self._at_E] = x_BEN
        return padded.unflatten(1, (-1, self._wide)).transpose(2, 3).contiguous()

    def join(self, x_BJNW: Tensor) -> Tensor:
        """B E N, of what `split` gave."""
        x_BEN = x_BJNW.transpose(2, 3).flatten(1, 2)
        return x_BEN if self._even else x_BEN[:, self._at_E]
