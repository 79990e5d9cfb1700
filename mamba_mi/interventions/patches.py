"""Exchanges between two runs: which cells there are, and the edit that makes each.

Shape legend: B prompts, L length, V vocabulary, K positions of a cell, X axes of a site's value beyond them, R rank, D width.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from mamba_mi.config import UserError
from mamba_mi.interventions.edits import Edit
from mamba_mi.interventions.ops import Op, Part, Replace, Scale, SwapSubspace
from mamba_mi.trace import Site, Trace


class Cell(NamedTuple):
    """One exchange: at a site, at the positions of a role; of one head, or in one subspace, or of all there is."""

    site: Site
    role: str
    positions: tuple[int, ...]
    head: int | None = None
    subspace: str | None = None
    rank: int | None = None
    draw: int | None = None


class Swap(NamedTuple):
    """The directions that a cell's exchange is confined to, and those it is rescaled to match."""

    directions_RD: Tensor
    as_long_as: Tensor | None = None


def watch(lm, embedded_BLD: Tensor, sites: Iterable[Site], *, tail: int = 1,
          interventions=()) -> tuple[dict[Site, Tensor], Tensor]:
    """A run's values at the sites, and its logits at the last `tail` positions, BKV: the others are never made."""
    with Trace(keep=sites, interventions=interventions) as trace:
        trace.begin(0, embedded_BLD.shape[1])
        resid_BLD = trace(Site(-1, "embed"), embedded_BLD)
        resid_BLD, _ = lm.through(resid_BLD, trace=trace, keep=False)
        if Site(-1, "final_norm") in trace.keep:  # it is kept at every position
            logits_BLV = lm.unembed(resid_BLD, trace)
        else:
            logits_BLV = lm.unembed(resid_BLD[:, -tail:])
    return trace.values, logits_BLV[:, -tail:]


def head_dims(lm, name: str, head: int) -> range:
    """The coordinates of one head at a site, of the flattened value."""
    parts, heads = lm.config.mixes_by
    if parts != "heads":
        raise UserError(f"method.heads: {lm.name} is a {lm.config.variant} and has no heads; method.dims=[…] takes channels")
    if name not in (apart := lm.layers[lm.mixing[0]].BY_HEAD):
        raise UserError(f"method.heads with site {name}: heads are apart at {', '.join(apart)}; name these in method.sites")
    if not 0 <= head < heads:
        raise UserError(f"method.heads={head}: out of range; {lm.name} has heads 0-{heads - 1}")
    size = math.prod(lm.widths[name]) // heads
    return range(head * size, (head + 1) * size)


def edit(lm, cell: Cell, source_BLX: Tensor, swap: Swap | None, dims: tuple[int, ...] | None) -> tuple:
    """The interventions that put the other run's value, or the part of it that the cell says, in place."""
    values_BKX = source_BLX[:, list(cell.positions)]
    op: Op = Replace(values_BKX)
    if swap is not None:  # a part of a subspace can be empty: then nothing is exchanged
        op = SwapSubspace(values_BKX, *swap) if len(swap.directions_RD) else Scale(1.0)
    elif cell.head is not None:
        op = Part(op, head_dims(lm, cell.site.name, cell.head))
    elif dims is not None:
        op = Part(op, dims)
    return (Edit(cell.site, cell.positions, op),)


def length(difference_BLX: Tensor, cell: Cell, swap: Swap | None) -> Tensor:
    """The norm of what an exchange puts in, one number a prompt, in units of the site."""
    difference_BKX = difference_BLX[:, list(cell.positions)].double()
    if swap is not None:
        directions = swap.directions_RD if swap.as_long_as is None else swap.as_long_as
        difference_BKX = difference_BKX @ directions.to(difference_BKX).T
    return difference_BKX.flatten(1).norm(dim=1)


def in_reach(sites: Iterable[Site], bytes_of: Mapping[str, int], memory: int) -> Iterator[list[Site]]:
    """The sites in groups whose values fit in `memory`, so that one pass keeps one group's."""
    group, taken = [], 0
    for site in sites:
        if group and taken + bytes_of[site.name] > memory:
            yield group
            group, taken = [], 0
        group.append(site)
        taken += bytes_of[site.name]
    if group:
        yield group
