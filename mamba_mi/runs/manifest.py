"""manifest.json: what a run is, where and with what it was made, and how it ended.

The statuses are running, done, failed and interrupted; `done` is the last thing a run writes. A manifest that
says running in a folder whose lock can be had is that of a killed process: the run goes on from its parts.
"""
from __future__ import annotations

import json
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from ..config import UserError
from .identity import SCHEMA_VERSION
from .provenance import git, machine, versions
from .store import Store

COMPARED = ("fingerprints", "device", "backend", "threads", "versions")


class Refused(UserError):
    """This run was begun under other conditions. Its folder is left exactly as it was found."""


class Manifest:
    """A run's manifest while the run lives. As a context it ends as done, failed or interrupted."""

    def __init__(self, store: Store, **fields: object):
        self._store, self._clock = store, time.monotonic()
        self.old = read_manifest(store.folder)
        # a run that failed before it kept anything binds nobody
        before = self._before = self.old if self.old and store.begun else {}
        self._seconds = before.get("seconds") or 0.0
        self.fields: dict = {
            "status": "running", "schema_version": SCHEMA_VERSION, "started": before.get("started") or _now(),
            "ended": None, "seconds": self._seconds, "resumed": before["resumed"] + 1 if before else 0,
            "argv": sys.argv, "command": command_line(sys.argv), "git": git(), "platform": machine(),
            # until this process has found out for itself, what holds is what the kept parts were made with
            **{key: before[key] for key in COMPARED if key in before},
        }
        self.record(versions=versions(), **fields)

    def record(self, **fields: object) -> None:
        """Add to the manifest, on disk too; Refused where it contradicts what kept parts were made with."""
        demand_same(self._store.folder, self._before, fields)
        self.fields.update(fields)
        self._write()

    def read_from(self, sources: Mapping[str, Mapping]) -> None:
        """Add by name what data were read from, if anything, and their fingerprints to those known before they were read."""
        if sources:
            own = {name: source["fingerprint"] for name, source in sources.items()}
            self.record(data=dict(sources), fingerprints={**self.fields["fingerprints"], **own})

    def end(self, status: str, error: BaseException | None = None) -> None:
        """The last word on this run: its status, and the error that ended it."""
        self.fields.update(status=status, ended=_now())
        if error is not None:
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.fields.update(error=said, traceback="".join(traceback.format_exception(error)))
        self._write()

    def _write(self) -> None:
        self.fields["seconds"] = round(self._seconds + time.monotonic() - self._clock, 3)
        self._store.write_json("manifest.json", self.fields)

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            return self.end("done")
        try:
            if isinstance(error, Refused):
                self._store.write_json("manifest.json", self.old)
            else:
                self.end("failed" if isinstance(error, Exception) else "interrupted", error)
        except UserError as e:  # a full disk can be what ended the run: that error is the one to be seen
            error.add_note(f"and the manifest could not say so: {e}")


def open_manifest(store: Store, *, run_id: str, seed: int, **fields: object) -> Manifest:
    """The manifest of the run in this store, written as running; later fields are added with `record`.

    Use it as a context. A run begun earlier is gone on with only where the two agree (see `compare`); for
    force=true, clear the store first.
    """
    return Manifest(store, run_id=run_id, seed=seed, **fields)


def read_manifest(folder: Path) -> dict | None:
    """The manifest in this run folder, or None."""
    path = folder / "manifest.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read ({e}): run again from the start with force=true") from None


def compare(old: Mapping, new: Mapping) -> list[str]:
    """In words, with both values, where `new` contradicts `old` in what is COMPARED.

    What only one of them knows is no contradiction. Of the backend, the one really used counts; the git
    commit does not, for the code's fingerprint says it better.
    """
    then, now = dict(_conditions(old)), dict(_conditions(new))
    return [f"{what} was {_said(then[what])} and is {_said(now[what])}"
            for what in then if what in now and then[what] != now[what]]


def demand_same(folder: Path, old: Mapping, new: Mapping) -> None:
    """Refused, naming both values and force=true, where `compare` finds a difference."""
    if differences := compare(old, new):
        raise Refused(f"{folder} was made under other conditions: {'; '.join(differences)}. "
                      "Go back to those, or run it again from the start with force=true")


def _conditions(manifest: Mapping) -> Iterator[tuple[str, object]]:
    for key in COMPARED:
        value = manifest.get(key)
        if value is None:
            continue
        if key == "backend" and isinstance(value, Mapping):
            yield key, value.get("used")
        elif isinstance(value, Mapping):
            named = "the {}'s fingerprint" if key == "fingerprints" else "{}"
            yield from ((named.format(name), item) for name, item in value.items())
        else:
            yield key, value


def _said(value: object) -> str:
    return "missing" if value is None else str(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_line(argv: list[str]) -> str:
    """The command as one would type it again."""
    program = [Path(sys.executable).name, argv[0]] if argv[0].endswith(".py") else [Path(argv[0]).name]
    return shlex.join([*program, *argv[1:]])
