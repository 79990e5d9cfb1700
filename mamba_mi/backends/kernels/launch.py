"""What every kernel's launch needs."""
from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from mamba_mi.backends.kernels import INTERPRETED


def on(x: Tensor) -> AbstractContextManager:
    """With x's device the current one: a kernel is launched there, wherever its arguments lie."""
    return torch.cuda.device_of(x)


def sums_in(x: Tensor) -> torch.dtype:
    """The type in which x is summed: at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def padded(size: int, least: int = 1) -> int:
    """The power of two that holds `size`."""
    return max(least, 1 << (size - 1).bit_length())


def inner(x: Tensor) -> Tensor:
    """x with what each token has in one run; rows and tokens may lie anywhere, rows all on one another too."""
    return x if x[:1, :1].is_contiguous() else x.contiguous()


def strides(*tensors: Tensor) -> list[int]:
    """Of each, those of rows and of tokens."""
    return [s for x in tensors for s in x.stride()[:2]]


def outputs(v: Tensor) -> Tensor:
    """Room for y, in v's type; interpreted, a cast to bfloat16 cuts instead of rounding, and y is in float32."""
    return torch.empty(v.shape, dtype=sums_in(v) if INTERPRETED else v.dtype, device=v.device)
