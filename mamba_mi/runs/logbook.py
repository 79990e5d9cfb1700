"""Where a run reports itself while it happens, beside its own folder."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from ..config import UserError, did_you_mean


@dataclass(frozen=True)
class Card:
    """What a logbook files a run under. `group` is the sweep it belongs to, None for a run of its own.

    `name` is for people; None: the experiment and the run_id.
    """

    run_id: str
    experiment: str
    folder: Path
    group: str | None = None
    tags: tuple[str, ...] = ()
    name: str | None = None


class Logbook(Protocol):
    """What the runner tells of a run. A logbook never ends a run: its own troubles are its own.

    `facts`, for the manifest: which logbook it is, how and where it really logs, and what went wrong with it.
    """

    facts: Mapping[str, object]

    @staticmethod
    def check(knobs: Mapping) -> None:
        """A UserError for settings that cannot be met; called before anything is run or written."""

    def config(self, settings: Mapping) -> None:
        """The resolved configuration, once, before anything else."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at one step of a fit or after one batch; what comes before a key's `/` says of which."""

    def summary(self, rows: Sequence[Mapping], headline: Sequence[Mapping], measured: Mapping) -> None:
        """The rows of summary.json, those of them that answer the question, and what was measured of the run itself."""

    def figure(self, path: Path) -> None:
        """A figure that lies in the run folder."""

    def close(self, status: str) -> None:
        """The run ended: done, failed or interrupted."""


class Silent:
    """The logbook of a run that reports nowhere else."""

    facts = {"name": "none"}

    def __init__(self, knobs: Mapping, card: Card, say: Callable[[str], None]):
        pass

    @staticmethod
    def check(knobs: Mapping) -> None:
        pass

    def config(self, settings: Mapping) -> None:
        pass

    def log(self, values: Mapping[str, float], step: int) -> None:
        pass

    def summary(self, rows: Sequence[Mapping], headline: Sequence[Mapping], measured: Mapping) -> None:
        pass

    def figure(self, path: Path) -> None:
        pass

    def close(self, status: str) -> None:
        pass


KINDS = {"none": "logbook.Silent", "wandb": "wandb_logbook.WandbLogbook"}  # as text: only what is chosen is imported


def check_logbook(knobs: Mapping) -> None:
    """A UserError when this logbook cannot be had."""
    _kind(knobs["name"]).check(knobs)


@contextmanager
def open_logbook(knobs: Mapping, card: Card, say: Callable[[str], None] = print) -> Iterator[Logbook]:
    """The logbook `knobs["name"]`, a key of KINDS, made from the keys of conf/logger/<name>.yaml.

    It is closed as done, failed or interrupted. `say` is given the one line a user must read, if there is one.
    """
    logbook = _kind(knobs["name"])(knobs, card, say)
    try:
        yield logbook
    except BaseException as error:
        logbook.close("failed" if isinstance(error, Exception) else "interrupted")
        raise
    logbook.close("done")


def _kind(name: str) -> type[Logbook]:
    if name not in KINDS:
        known = ", ".join(KINDS)
        raise UserError(f"logger={name}: no such logbook; there is {known}{did_you_mean(name, KINDS)}")
    module, _, kind = KINDS[name].partition(".")
    return getattr(import_module(f".{module}", __package__), kind)
