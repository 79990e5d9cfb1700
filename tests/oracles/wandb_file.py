"""What a run's .wandb file says, read without wandb's own reader.

The file is LevelDB's log: blocks of 32 KiB, in them chunks of checksum, length and kind (1 whole, 2 first, 3 middle,
4 last), after a header of 7 bytes. Each record is a message of the protocol that wandb publishes.
"""
import json
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

HEADER, BLOCK, CHUNK = b":W&B" + struct.pack("<HB", 0xBEE1, 0), 1 << 15, struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class Told:
    """What one file holds of its run."""

    run: object = None
    config: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    axes: dict = field(default_factory=dict)
    files: list = field(default_factory=list)
    exit_code: int | None = None


def read(path: Path, patience: float = 10.0) -> Told:
    """Everything in the file of a run that has ended; a torn or changed one fails."""
    until = time.monotonic() + patience
    while time.monotonic() < until:  # wandb's process writes the last of it after `finish` has returned
        with suppress(AssertionError):
            if (told := parsed(path.read_bytes())).exit_code is not None:
                return told
        time.sleep(0.01)
    told = parsed(path.read_bytes())
    assert told.exit_code is not None, f"{path}: the run has no end"
    return told


def parsed(data: bytes) -> Told:
    from wandb.proto.wandb_internal_pb2 import Record

    told = Told()
    for message in messages(data):
        record = Record.FromString(message)
        _TAKE.get(record.WhichOneof("record_type"), lambda told, record: None)(told, record)
    return told


def files(run_folder: Path) -> list[Path]:
    """The .wandb files of a run folder, the oldest first."""
    return sorted(run_folder.glob("wandb/*run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def only(run_folder: Path) -> Told:
    """What is told by the one file of this run folder."""
    (path,) = files(run_folder)
    return read(path)


def messages(data: bytes) -> Iterator[bytes]:
    assert data[:len(HEADER)] == HEADER, data[:len(HEADER)]
    at, parts = len(HEADER), []
    while at < len(data):
        if (room := BLOCK - at % BLOCK) < CHUNK.size:
            at += room  # no chunk starts in a block's last six bytes
            continue
        checksum, length, kind = CHUNK.unpack_from(data, at)
        body = data[at + CHUNK.size:at + CHUNK.size + length]
        assert zlib.crc32(bytes([kind]) + body) == checksum, f"changed or torn at byte {at}"
        at += CHUNK.size + length
        assert (kind in (WHOLE, FIRST)) == (not parts), f"chunk of kind {kind} out of order"
        parts.append(body)
        if kind in (WHOLE, LAST):
            yield b"".join(parts)
            parts = []
    assert not parts, "the last record has no end"


def _items(items) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _take_run(told, record):
    told.run = record.run
    told.config |= _items(record.run.config.update)


def _take_metric(told, record):
    told.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric


def _take_exit(told, record):
    told.exit_code = record.exit.exit_code


_TAKE = {
    "run": _take_run,
    "metric": _take_metric,
    "exit": _take_exit,
    "config": lambda told, record: told.config.update(_items(record.config.update)),
    "summary": lambda told, record: told.summary.update(_items(record.summary.update)),
    "history": lambda told, record: told.history.append(_items(record.history.item)),
    "files": lambda told, record: told.files.extend(file.path for file in record.files.files),
}
