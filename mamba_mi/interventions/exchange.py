"""Exchanges between two runs of one shape: values of the source run put into the base run, cell by cell, in one cone.

Shape legend: S cells, B prompts, L length, D width, K positions read, V vocabulary, X axes of a site's value.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mamba_mi.interventions import patches
from mamba_mi.interventions.cone import contrast
from mamba_mi.interventions.jobs import Ledger
from mamba_mi.interventions.patches import Cell, Swap


@dataclass(frozen=True)
class Exchange:
    """How cells are exchanged: the `tail` positions read at the end, coordinates (`dims`) if not all, memory, ledger."""

    lm: object
    tail: int
    memory: int
    ledger: Ledger
    dims: tuple[int, ...] | None = None

    @torch.no_grad()
    def logits(self, embedded_BLD: Tensor) -> Tensor:
        """The logits of a run at the positions read, BKV."""
        return patches.watch(self.lm, embedded_BLD, (), tail=self.tail)[1]

    @torch.no_grad()
    def __call__(self, tokens_BL: Tensor, base_BLD: Tensor, source_BLD: Tensor, cells: Sequence[Cell],
                 read: Callable[[Tensor], Tensor], swaps: Mapping[Cell, Swap] | None = None):
        """What `read` makes of each cell and of its twin without it, S B …, and of the source run, B …; and with `swaps`
        the norm of what each cell put in, S B, else None."""
        swaps = swaps or {}
        jobs = {_job(cell): cell for cell in cells}  # a one-token subject fills several roles with one exchange
        done: dict[tuple, tuple] = {}
        for sites in patches.in_reach(dict.fromkeys(cell.site for cell in cells), self._bytes(tokens_BL), self.memory):
            source, logits_BKV = patches.watch(self.lm, source_BLD, sites, tail=self.tail)
            base = patches.watch(self.lm, base_BLD, sites, tail=self.tail)[0] if swaps else {}
            mine = [(job, cell) for job, cell in jobs.items() if cell.site in source]
            sets = [patches.edit(self.lm, cell, source[cell.site], swaps.get(cell), self.dims) for _, cell in mine]
            values, clean = contrast(self.lm, tokens_BL, sets, read, embedded_BLD=base_BLD, tail=self.tail,
                                     memory=self.memory, ledger=self.ledger)
            norms = [patches.length(source[cell.site] - base[cell.site], cell, swaps.get(cell)) if swaps else None
                     for _, cell in mine]
            done.update((job, row) for (job, _), row in zip(mine, zip(values, clean, norms, strict=True), strict=True))
        values, baselines, norms = zip(*(done[_job(cell)] for cell in cells), strict=True)
        full = read(logits_BKV[None])[0]
        return torch.stack(values), torch.stack(baselines), full, torch.stack(norms) if swaps else None

    def _bytes(self, tokens_BL: Tensor) -> dict[str, int]:
        return {name: math.prod(axes) * tokens_BL.numel() * 4 for name, axes in self.lm.widths.items()}


def _job(cell: Cell) -> tuple:
    """What makes two cells one exchange: a subspace belongs to its role, all else to its positions."""
    return cell if cell.subspace not in (None, "full") else cell._replace(role="")
