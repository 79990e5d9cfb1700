"""What a device can do, measured, and the least time a scan could take by it: what it must move, exponentiate and multiply.

Shape legend: B batch, L length, E inner, H heads, P head width, N state, G groups, T chunk.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from forward import seconds as cpu_seconds

CHUNK = 64


class Work(NamedTuple):
    """What a scan cannot do without: bytes in and out, exponentials, multiply-adds within matrix products."""

    bytes: float
    exponentials: float
    products: float


class Limits(NamedTuple):
    """A device's rates, each of Work's in a second."""

    bytes: float
    exponentials: float
    products: float

    def least_seconds(self, work: Work) -> float:
        """By whichever binds."""
        return max(asked / rate for asked, rate in zip(work, self))

    def binding(self, work: Work) -> str:
        """Which binds."""
        return max(zip(work, self, Work._fields), key=lambda each: each[0] / each[1])[2]


def of_many_decays(rows: int, length: int, inner: int, states: int, groups: int = 1) -> Work:
    """Mamba-1's scan in float32: v, dt, y and B, C once each, an exponential for every token, channel and state."""
    moved = 3 * inner + 2 * groups * states
    return Work(4.0 * rows * length * moved, float(rows * length * inner * states), 0.0)


def of_one_decay(rows: int, length: int, heads: int, width: int, states: int, groups: int = 1) -> Work:
    """Mamba-2's in chunks: C Bᵀ by group, M x, the read and the write of the state by head; an exponential a pair of a
    chunk's tokens and head."""
    moved = 2 * heads * width + heads + 2 * groups * states
    products = CHUNK * (groups * states + heads * width) + 2 * heads * width * states
    return Work(4.0 * rows * length * moved, float(rows * length * CHUNK * heads), float(rows * length * products))


def limits(device: str, size: int = 1 << 28, side: int = 8192) -> Limits:
    """What is measured on this device in float32, the best of some tries: a copy of `size` numbers, exp over a tensor that fits
    into a cache, a product of matrices of this side (TF32 where the process allows it)."""
    wide, near = torch.zeros(size, device=device), torch.zeros(min(size, 1 << 20), device=device)
    into, square = torch.empty_like(wide), torch.zeros(side, side, device=device)
    copied, raised = torch.empty_like(square), torch.empty_like(near)
    return Limits(8.0 * size / _best(lambda: into.copy_(wide), device),
                  16.0 * len(near) / _best(lambda: [torch.exp(near, out=raised) for _ in range(16)], device),
                  float(side) ** 3 / _best(lambda: torch.mm(square, square, out=copied), device))


def _best(call: Callable, device: str, tries: int = 7) -> float:
    return min(seconds(call, device) for _ in range(tries))


def seconds(call: Callable, device: str) -> float:
    """CPU seconds of this process; on a CUDA device, wall seconds until all of it is done."""
    if torch.device(device).type == "cpu":
        return cpu_seconds(call)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start
