"""The batches of a run, one after another, or shared out over its processes: a part is the batch's, whoever makes it."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from mamba_mi.config import UserError
from mamba_mi.runs.store import keep, kept
from mamba_mi.together import BATCHES, Alone


def step_through(experiment, items: Sequence, folder: Path, *, progress: Callable[[int, int], None],
                 say: Callable[[str], None]) -> None:
    """Measure this process's share of the batches that the folder has no part of yet.

    Of several processes the first has cleared the folder before. Afterwards all parts are there, and its ledger holds
    what all have counted.
    """
    setting, batches = experiment.setting, experiment.batches(items)
    ranks = setting.ranks if experiment.shares == BATCHES else Alone()
    there = _agreed(ranks, batches, kept(folder))
    if there:
        say(f"going on: {len(there & {b.key for b in batches})} of {len(batches)} batches are kept")
    own = [b for b in batches if b.key not in there][ranks.rank::ranks.count] if ranks.count > 1 else batches
    for done, batch in enumerate(own, start=1):
        if batch.key not in there:
            keep(folder, batch.key, experiment.step(batch))
        progress(done, len(own))
        setting.log({"batches/left": len(own) - done}, done)
    if ranks.count > 1:
        _together(setting.ledger, ranks)
        _demand_all(batches, folder)


def _agreed(ranks, batches: Sequence, there: set[str]) -> set[str]:
    """What the first process found kept; raises in all of them unless they are about to measure the same prompts."""
    if ranks.count == 1:
        return there
    digest = hashlib.sha256(repr([(b.key, b.prompts, b.corrupt) for b in batches]).encode()).hexdigest()
    digests, found = zip(*ranks.gather((digest, there)), strict=True)
    if len(set(digests)) > 1:
        raise UserError(f"the {ranks.count} processes chose different prompts, and cannot share them out: are their machines, files "
                        "and versions the same? Without torchrun it runs in one process")
    return found[0]


def _together(ledger, ranks) -> None:
    """The first process's ledger counts for all; no other is needed after this."""
    ledgers = ranks.gather(ledger)
    if ranks.rank == 0:
        for other in ledgers[1:]:
            ledger.add(other)
    ranks.leave()


def _demand_all(batches: Sequence, folder: Path) -> None:
    if lost := {b.key for b in batches} - kept(folder):
        raise UserError(f"{folder}: {len(lost)} of {len(batches)} parts are not there: all processes must see one folder, which "
                        "paths.logs= names")
