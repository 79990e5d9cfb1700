"""Where a run reports itself while it happens, beside its own folder."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..config import UserError, did_you_mean


@dataclass(frozen=True)
class Card:
    """What a logbook files a run under. `group` is the sweep it belongs to, None for a run of its own."""

    run_id: str
    experiment: str
    folder: Path
    group: str | None = None
    tags: tuple[str, ...] = ()


class Logbook(Protocol):
    """What the runner tells of a run. A logbook never ends a run: its own troubles are its own."""

    def config(self, settings: Mapping) -> None:
        """The resolved configuration, once, before anything else."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at one step of a fit or after one batch."""

    def summary(self, rows: Sequence[Mapping]) -> None:
        """The rows of summary.json."""

    def figure(self, path: Path) -> None:
        """A figure that lies in the run folder."""

    def close(self, status: str) -> None:
        """The run ended: done, failed or interrupted."""


class Silent:
    """The logbook of a run that reports nowhere else."""

    def __init__(self, knobs: Mapping, card: Card):
        pass

    def config(self, settings: Mapping) -> None:
        pass

    def log(self, values: Mapping[str, float], step: int) -> None:
        pass

    def summary(self, rows: Sequence[Mapping]) -> None:
        pass

    def figure(self, path: Path) -> None:
        pass

    def close(self, status: str) -> None:
        pass


KINDS: dict[str, type[Logbook]] = {"none": Silent}


def open_logbook(knobs: Mapping, card: Card) -> Logbook:
    """The logbook `knobs["name"]`, a key of KINDS, made from the keys of conf/logger/<name>.yaml."""
    kind = knobs["name"]
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise UserError(f"logger={kind}: no such logbook; there is {known}{did_you_mean(kind, KINDS)}")
    return KINDS[kind](knobs, card)
