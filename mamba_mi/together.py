"""Several processes of one run, as torchrun starts them: they share out a training's rows or an experiment's batches.

`accelerate` brings them together (gloo between CPUs, NCCL between GPUs). All read the same data in the same order. A run's
folder is the first process's, who alone says anything; nothing in its results tells how many there were.
"""
from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta

import torch

from mamba_mi.config import UserError, processes

BATCHES, FIT = "batches", "fit"  # what the processes of an experiment may share; some share nothing


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return processes() == 1 or int(os.environ["RANK"]) == 0


class Alone:
    """One process: nothing to be shared out, summed or waited for."""

    rank, count = 0, 1

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def sum_gradients(self, parameters: Iterable) -> None:
        pass

    def gather(self, each: object) -> list:
        return [each]

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

    def gather(self, each: object) -> list:
        """What every process has of it, in their order; none goes on before all have come this far."""
        found = [None] * self.count
        torch.distributed.all_gather_object(found, each)
        return found

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()

    def leave(self) -> None:
        """The others are needed no longer."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def join(device: str, shares: str, what: str) -> Alone:
    """The processes of this run, brought together; call it before a model is put on a GPU, for it chooses which.

    `what` they do is done in one unless it `shares` something.
    """
    if processes() == 1:
        return Alone()
    if not shares:
        raise UserError(f"WORLD_SIZE={processes()}: {what} runs in one process; start it without torchrun, which is for experiments that "
                        "measure prompts and for experiment=train dataset=pile")
    _check_gpu(device)
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError:
        raise UserError(f"WORLD_SIZE={processes()}: several processes need accelerate (pip install '.[train]'); without torchrun it runs "
                        "in one") from None
    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))  # the others wait while the first examines, for longer than half an hour
    return Ranks(Accelerator(cpu=device == "cpu", kwargs_handlers=[patient]))


def demand_shareable(what: str, fits: int) -> None:
    """Raise where several processes would each have to fit on the same prompts before they share any."""
    if processes() > 1 and fits:
        raise UserError(f"WORLD_SIZE={processes()}: {what} fits on {fits} prompts first, which is done in one process; start it without torchrun")


def _check_gpu(device: str) -> None:
    """Each process takes the GPU of its number on this machine."""
    kind, _, number = device.partition(":")
    if number:
        raise UserError(f"device={device}: {processes()} processes take a GPU each; give device={kind}, or start it without torchrun")
    there, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK") or 0)
    if kind == "cuda" and local >= there:
        raise UserError(f"LOCAL_RANK={local}: this machine has {there} CUDA devices, one a process; torchrun --nproc-per-node={there}")
