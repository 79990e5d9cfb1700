"""The light cone: many interventions on one batch, each run only where it can change anything.

An edit at (layer, position) changes later layers at positions >= it, nothing else. So jobs that start at one position
share the clean state before it, the clean run is the batch's first job, and each job joins at its first layer by
taking over the clean residual stream. Positions are visited in order: the clean state advances once and only the
current one is held. A knockout's sources may lie before its first query: what the knocked layers took in there is
held too, and a job still runs from its query on. Exact: the same numbers as one full forward a job, to rounding.

Shape legend: S jobs (intervention sets), B prompts, L length, D width, K positions read, V padded vocabulary.
"""
from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mamba_mi.config import UserError
from mamba_mi.interventions.jobs import Job, Jobs, Ledger
from mamba_mi.trace import BLIND, Site, Trace

Sets = Sequence[Sequence]  # each a set of interventions applied together; the empty set is the clean run
MEMORY = 1 << 30  # bytes of activations a chunk of jobs may take
READ = 1 << 22  # logits made at once


def evaluate(lm, batch, sets: Sets, read: Callable[[Tensor], Tensor], *, memory: int = MEMORY,
             ledger: Ledger | None = None) -> Tensor:
    """What `read` makes of the last position's logits, one row a set: `read(logits_SBV) -> SB…`.

    `batch` is a Batch or tokens_BL of equal length. Every edit of every set must be met, at every position it names,
    exactly where it says; else NeverReached. Runs out of memory: half as many jobs at a time, noted in the ledger.
    """
    return contrast(lm, batch, sets, read, memory=memory, ledger=ledger)[0]


@torch.no_grad()
def contrast(lm, batch, sets: Sets, read: Callable[[Tensor], Tensor], *, embedded_BLD: Tensor | None = None,
             tail: int | None = None, only_BX: Tensor | None = None, memory: int = MEMORY,
             ledger: Ledger | None = None) -> tuple[Tensor, Tensor]:
    """`evaluate`, and beside each set what the clean run gave in the very batch that set ran in.

    Batching changes a float32 sum's last bits; a set that changes nothing differs from its own twin by exactly 0.
    `embedded_BLD` stands in for the embedded tokens, in every job and in the clean run (noise on a subject). With
    `tail` the last so many positions are read, `read(logits_SBKV)`. `only_BX` names for each prompt the few tokens whose
    logits are made at all: `read` then sees these, in their order.
    """
    if not sets:
        raise UserError("no intervention sets: nothing to evaluate")
    jobs = [Job(interventions) for interventions in sets]
    tokens_BL = batch if isinstance(batch, Tensor) else batch.tokens_BL
    ledger = Ledger() if ledger is None else ledger
    embedded_BLD = lm.embed(tokens_BL) if embedded_BLD is None else embedded_BLD
    groups: dict[int, list[int]] = defaultdict(list)
    length, (prefix, late) = tokens_BL.shape[1], _prefix(lm, embedded_BLD, jobs, memory)
    for number, job in enumerate(jobs):
        groups[min(job.first_position(length, late), length - (tail or 1))].append(number)
    out: dict[int, tuple[Tensor, Tensor]] = {}
    starts = [job.first_layer(lm) for job in jobs]
    past, reached = [None] * lm.config.n_layer, 0
    for position in sorted(groups):
        if position > reached:
            _advance(lm, embedded_BLD[:, reached:position], prefix, reached, past)
            reached = position
        numbers = sorted(groups[position], key=lambda n: (starts[n], n))
        size = _jobs_at_once(lm, embedded_BLD, position, [jobs[n] for n in numbers], memory)
        while numbers:
            chunk = numbers[:size]
            try:
                values, clean = _run(lm, embedded_BLD[:, position:], position, past, prefix, [jobs[n] for n in chunk],
                                     [starts[n] for n in chunk], lambda logits_SBKV: read(logits_SBKV if tail else logits_SBKV[:, :, 0]),
                                     tail or 1, only_BX, ledger)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise UserError(f"out of memory with one job of {len(tokens_BL)} prompts; "
                                    "lower method.batch or cone.memory") from None
                size, ledger.halvings = max(1, size // 2), ledger.halvings + 1
                continue
            out.update((n, (value, clean)) for n, value in zip(chunk, values))
            numbers = numbers[size:]
    return tuple(torch.stack([out[n][side] for n in range(len(sets))]) for side in (0, 1))


def _advance(lm, embedded_BLD: Tensor, trace: Trace, position: int, past: list) -> None:
    """The clean state of every layer after these tokens, put into `past`; of two whole states only a layer's lives at once."""
    trace.join(position, embedded_BLD.shape[1])
    resid = embedded_BLD
    for layer in lm.layers:
        resid, past[layer.layer] = layer(resid, trace, past[layer.layer], True)


def _run(lm, embedded_BLD, position, past, prefix, jobs, starts, read, tail, only_BX, ledger) -> tuple[Tensor, Tensor]:
    """One chunk of jobs that start at `position`, sorted by `starts`, their first layers; row 0 of every layer is the clean run."""
    rows, depth, end = len(embedded_BLD), lm.config.n_layer, position + embedded_BLD.shape[1]
    trace = Jobs(jobs, rows, position, end, prefix)
    resid = embedded_BLD
    joined = 0
    for layer in range(-1, depth):
        joining = bisect_right(starts, layer) - joined
        if joining:  # all at once: one after another would copy the batch as often as there are jobs
            resid = torch.cat([resid] + [resid[:rows]] * joining)
            joined += joining
        trace.active = joined
        if layer < 0:
            resid = trace(Site(-1, "embed"), resid) if joined else resid
            continue
        resid, _ = lm.layers[layer](resid, trace, past[layer], False)
        trace.ledger.token_layers += resid.shape[0] * resid.shape[1]
    resid = torch.cat([resid] + [resid[:rows]] * (len(jobs) - joined))
    trace.active = len(jobs)
    # only what is read is unembedded: its place in the pass is kept for edits at final_norm
    x = lm.normed(resid[:, -tail:], trace.last_only(tail))
    trace.close()
    ledger.add(trace.ledger)
    # some jobs at a time, so that their logits are read while they are in cache
    wide = lm.config.padded_vocab if only_BX is None else only_BX.shape[1]
    size = max(1, READ // (rows * tail * wide))
    parts = (lm.logits(part, only_BX).unflatten(0, (-1, rows)) for part in x.split(size * rows))
    values = torch.cat([read(logits_SBKV) for logits_SBKV in parts])
    return values[1:], values[0]


def _prefix(lm, embedded_BLD, jobs: Sequence[Job], memory: int) -> tuple[Trace, bool]:
    """Keeps of the clean prefix what knockouts read of it, and says whether a job may start at its query.

    It starts at its source instead where the prefix would not fit into `memory`, or a layer can't do without.
    """
    knocked = {layer for job in jobs for layer in job.knocked}
    layers = [layer for layer in lm.layers if layer.layer in knocked]
    dense = any(i.dense for job in jobs for i in job.knockouts)
    if not layers or dense or any(layer.BEFORE is None for layer in layers):
        return BLIND, False
    sites = [Site(layer.layer, name) for layer in layers for name in layer.BEFORE]
    rows, length, _ = embedded_BLD.shape
    if 4 * rows * length * sum(math.prod(lm.widths[site.name]) for site in sites) > memory:
        return BLIND, False
    return Trace(keep=sites) if sites else BLIND, True


def _jobs_at_once(lm, embedded_BLD, position: int, jobs: Sequence[Job], memory: int) -> int:
    """How many jobs fit into `memory`: a function of the configuration alone, never of what happens to be free."""
    prompts, whole, _ = embedded_BLD.shape
    length = whole - position
    watched = any(site.name in ("write", "state") for job in jobs for site in job.sites)
    again = max(max(job.knocked.values(), default=0) for job in jobs)  # scans beside the first, a layer
    row = (1 + again) * length * lm.config.floats(length, watched) * 4
    return max(1, memory // (row * prompts) - 1)
