"""sweep.json: which jobs a sweep was to run, and how each of them ended.

It is written before the first job starts, so that a job that never did is listed too. Every job notes its own start
and end, in whatever process it runs; of one that died without a word its run's manifest tells. `python -m
mamba_mi.runs.aggregate DIR` does that again for a sweep's folder, with statistics and report.

The statuses of a job: planned, running, done, failed, interrupted, and skipped: done by an earlier command.
"""
from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ..config import UserError
from . import files, identity
from .manifest import read_manifest

SCHEMA_VERSION = 1
RECORD = "sweep.json"
GOOD = ("done", "skipped")
NOT_STARTED = "not started"


def unique_folder(wanted: Path) -> Path:
    """A new folder of that name, or with -2, -3 … after it where a sweep began in the same second."""
    with files.in_words(wanted, "paths.sweeps"):
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder


def begin(folder: Path, jobs: Sequence[Mapping], *, experiment: str, argv: Sequence[str], command: str) -> None:
    """Write the plan. A job has `label`, `overrides`, `swept` (its values of the swept keys) and `settings`, resolved."""
    _write(folder, {
        "schema_version": SCHEMA_VERSION, "status": "running", "experiment": experiment, "command": command,
        "argv": list(argv), "cwd": os.getcwd(), "started": _now(), "ended": None,
        "jobs": [{"number": number, "label": job["label"], "overrides": list(job["overrides"]), "swept": dict(job["swept"]),
                  "run_id": identity.run_id(job["settings"]), "path": str(identity.folder(job["settings"])),
                  "status": "planned", "error": None, "started": None, "ended": None}
                 for number, job in enumerate(jobs)],
    })


def read(folder: Path) -> dict:
    """The record in a sweep's folder."""
    path = folder / RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the folder of a sweep, such as multirun/patching/2026-01-31_12-00-00"
                        ) from None
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read: {e}") from None


def note(folder: Path, number: int, status: str, error: str | None = None) -> None:
    """What a job says of itself: it is running, or how it ended."""
    with _changing(folder) as record:
        job = record["jobs"][number]
        if status == "running":
            job.update(status=status, error=None, started=_now(), ended=None)
            return
        if status == "done" and _done_before(job):
            status = "skipped"
        job.update(status=status, error=error, ended=_now())


def settle(folder: Path, over: bool = False) -> dict:
    """Bring the record up to what the manifests say; `over`: the sweep's own process has ended or is about to."""
    with _changing(folder) as record:
        for job in record["jobs"]:
            _settle(job, record["started"])
        statuses = {job["status"] for job in record["jobs"]}
        record["status"] = _overall(statuses)
        if over or record["status"] != "running":
            record["ended"] = record["ended"] or _now()
    return record


def _settle(job: dict, since: str) -> None:
    manifest = _manifest(job)
    ended, known = manifest.get("ended"), job["ended"] or job["started"] or since
    # a run's end counts from the job's start on; after the job's own last word only a later one does
    if ended and (ended >= known if job["status"] == "running" else ended > known):
        job.update(status=manifest["status"], error=manifest.get("error"), ended=ended)
    elif job["status"] == "running" and not _is_written(Path(job["path"])):
        job.update(status="interrupted", error="its process ended without a word; the same command goes on with it",
                   ended=_now())
    elif job["status"] == "planned":
        job["error"] = NOT_STARTED


def _overall(statuses: set[str]) -> str:
    if "running" in statuses:
        return "running"
    if statuses <= {*GOOD}:
        return "done"
    return "failed" if "failed" in statuses else "interrupted"


def _manifest(job: Mapping) -> dict:
    try:
        return read_manifest(Path(job["path"])) or {}
    except UserError:
        return {}  # torn by hand: the job's own word stands


def _done_before(job: Mapping) -> bool:
    ended = _manifest(job).get("ended")
    return bool(ended and job["started"]) and ended < job["started"]


def _is_written(folder: Path) -> bool:
    """Whether a process holds the run folder's lock."""
    try:
        lock = os.open(folder / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


@contextmanager
def _changing(folder: Path) -> Iterator[dict]:
    """The record, to be changed by one process at a time."""
    read(folder)  # a folder that is no sweep's is refused before anything is written into it
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = read(folder)
        yield record
        _write(folder, record)


def _write(folder: Path, record: dict) -> None:
    files.write_json(folder / RECORD, record)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    from runpy import run_module

    # statistics and report of a sweep are made in rooms above this one: they are started here, never imported
    run_module("mamba_mi.cli.sweeping", run_name="__main__")
