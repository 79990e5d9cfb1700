"""What a reference's numbers are measured under: nothing, or a window of layers in which queries cannot read sources.

Shape legend: H heads or channels, N states.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from mamba_mi.config import UserError
from mamba_mi.data import Batch
from mamba_mi.data.sources import NONE, positions
from mamba_mi.interventions.knockout import Knockout
from mamba_mi.references import Reference


class Cell(NamedTuple):
    """One condition of a reference, by the names of the effects' columns."""

    query: str | None = None
    source: str | None = NONE
    timescale: str | None = None
    window_size: int | None = None
    window_start: int | None = None

    def columns(self) -> dict:
        """The condition as the effects have it; the published knockouts are all of the scan alone."""
        return {**self._asdict(), "conv": None if self == NOTHING else "scan"}


NOTHING = Cell()


def cells(reference: Reference, prompt_ids: set[str]) -> list[Cell]:
    """The knockouts that some number states of one of these prompts, each once."""
    return list(dict.fromkeys(Cell(*n.blocked) for n in reference.numbers if n.blocked and prompt_ids & n.values.keys()))


def check_windows(reference: Reference, depth: int) -> None:
    """Raise where a window does not fit into the model."""
    for n in reference.numbers:
        if n.blocked and n.window_start + n.window_size > depth:
            raise UserError(f"{reference.asked} has a window of {n.window_size} layers that starts in layer {n.window_start}; "
                            f"this model has layers 0-{depth - 1}")


def knockouts(lm, batch: Batch, cell: Cell) -> Sequence[Knockout]:
    """The interventions of a cell; none where the prompts have no such source (published: nothing blocked, no change)."""
    queries, sources = (positions(name, batch.length, batch.spans) for name in (cell.query, cell.source))
    if not queries or not sources:
        return ()
    layers = tuple(range(cell.window_start, cell.window_start + cell.window_size))
    if cell.timescale is None:
        return (Knockout(layers, queries, sources),)
    which, _ = lm.config.mixes_by
    return tuple(Knockout(layer, queries, sources, **{which: blocked(lm, layer, cell.timescale)}) for layer in layers)


def blocked(lm, layer: int, timescale: str) -> tuple[int, ...]:
    """The heads or channels that lose the sources: all but the third whose states decay slowest, or fastest.

    As published, by the sum over states of exp(A), with no dt in it, and a third is H // 3.
    """
    rate_H = torch.exp(-lm.layers[layer].A_log.float().exp()).reshape(len(lm.layers[layer].A_log), -1).sum(dim=1)
    order_H = rate_H.argsort(descending=timescale == "all_but_slow", stable=True)
    return tuple(sorted(order_H[len(order_H) // 3:].tolist()))
