"""Several processes of one training, as torchrun starts them: each computes its rows, gradients are summed.

`accelerate` brings them together (gloo between CPUs, NCCL between GPUs). All read the same text in the same order; the first
process alone writes, so a run's folder knows nothing of how many there were.
"""
from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta

import torch

from mamba_mi.config import UserError


def count() -> int:
    """How many processes this training has: what torchrun says in WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE") or 1)


class Alone:
    """One process: nothing to be shared out, summed or waited for."""

    rank, count = 0, 1

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def sum_gradients(self, parameters: Iterable) -> None:
        pass

    def wait(self) -> None:
        pass

    def leave(self) -> None:
        pass


class Ranks(Alone):
    """This process among others. What it sums is the same to the bit in each of them."""

    def __init__(self, accelerator):
        self._accelerator, self.rank, self.count = accelerator, accelerator.process_index, accelerator.num_processes

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return self._accelerator.reduce(x, reduction="sum")

    def sum_gradients(self, parameters: Iterable) -> None:
        """In one message a number type: many small ones take as many round trips."""
        held = [p for p in parameters if p.requires_grad]
        for dtype in dict.fromkeys(p.dtype for p in held):  # not a set, whose order is each process's own
            own = [p for p in held if p.dtype == dtype]
            flat = self.sum(torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in own]))
            for p, part in zip(own, flat.split([p.numel() for p in own]), strict=True):
                p.grad = part.view_as(p).clone()

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()

    def leave(self) -> None:
        """The others are needed no longer."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def join(device: str, parallel: bool, what: str) -> Alone:
    """The processes of this run, brought together; call it before a model is put on a GPU, for it chooses which.

    Unless `what` they do is `parallel` it is done in one.
    """
    if count() == 1:
        return Alone()
    if not parallel:
        raise UserError(f"WORLD_SIZE={count()}: {what} runs in one process; start it without torchrun, which is for "
                        "experiment=train dataset=pile")
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError:
        raise UserError(f"WORLD_SIZE={count()}: training in several processes needs accelerate (pip install '.[train]'); without "
                        "torchrun it runs in one") from None
    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))  # the others wait while the first examines, for longer than half an hour
    return Ranks(Accelerator(cpu=device == "cpu", kwargs_handlers=[patient]))
