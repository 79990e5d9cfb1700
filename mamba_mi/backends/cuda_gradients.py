"""The gradients of a library's kernel: its own where it has them, those of another scan or conv where it has not.

A kernel's backward reads the gradient of y alone, or drops that of the last state without a word; and none can be differentiated
again: what a second derivative then finds is 0, not an error.
"""
from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function

from mamba_mi.backends.reference import again, needs_grad

told: set[str] = set()  # what was said already


def tell(what: str, why: str, by: str = "by chunked, on the same device") -> None:
    """Say, once a process, that a kernel is passed over and what runs for it."""
    if (said := f"backend=cuda: {what} {by}: {why}") not in told:
        told.add(said)
        warnings.warn(said, stacklevel=2)


def borrowed(kernel: Callable, other: Callable, given: tuple[Tensor | None, ...], *, states: bool) -> tuple[Tensor | None, ...]:
    """`kernel(*given)`, open to gradients of all that is given. `other` computes the same in torch; `states`: the kernel's
    backward reads the gradients of all it returns, not of the first alone."""
    if needs_grad(given):
        return Borrowed.apply(kernel, other, states, *given)
    return kernel(*given)


class Borrowed(Function):
    """A kernel with its graph kept aside until the first backward; a second one runs it again."""

    @staticmethod
    def forward(ctx, kernel, other, states, *given):
        ctx.set_materialize_grads(False)
        ctx.kernel, ctx.other, ctx.states = kernel, other, states
        ctx.save_for_backward(*given)
        ctx.graph = _run(kernel, given, ctx.needs_input_grad[3:])
        return tuple(None if y is None else y.detach() for y in ctx.graph[1])

    @staticmethod
    def backward(ctx, *into):
        given, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            tell("a second derivative is taken", "the library's gradients have none")
            return None, None, None, *again(ctx.other, given, into, needed)
        if not ctx.states and any(dy is not None for dy in into[1:]):
            tell("the gradient of a last state is taken", "the library's backward leaves it out")
            graph = _run(ctx.other, given, needed)
        else:
            graph = ctx.graph or _run(ctx.kernel, given, needed)
        ctx.graph = None  # and with it what the kernel kept
        return None, None, None, *_gradients(*graph, into)


def _run(kernel, given, needed):
    """Leaves for what is given, and what `kernel` makes of them."""
    own = [None if x is None else x.detach().requires_grad_(need) for x, need in zip(given, needed)]
    with torch.enable_grad():
        return own, kernel(*own)


def _gradients(own, made, into):
    pairs = [(y, dy) for y, dy in zip(made, into) if dy is not None]
    asked = [x for x in own if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad([y for y, _ in pairs], asked, [dy for _, dy in pairs], allow_unused=True))
    return [next(found) if x is not None and x.requires_grad else None for x in own]


def dense(x: Tensor) -> Tensor:
    """`x` with the strides of its shape. Of an axis of length 1 torch holds any stride to be right; the kernels ask for it."""
    rest = math.prod(x.shape)
    for size, stride in zip(x.shape, x.stride()):
        rest //= size
        if stride != rest:
            return x.clone(memory_format=torch.contiguous_format)
    return x
