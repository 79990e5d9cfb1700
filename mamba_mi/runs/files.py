"""Files that are there whole or not at all, and a disk's refusals in words.

A file is written beside its place, flushed to the disk and moved there: whatever ends the process or the
machine, a reader finds the old file or the new one.
"""
from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..config import UserError

PARTIAL = ".partial"  # the end of an unfinished file's name; one that lies about while nobody writes is torn


def write_bytes(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}{PARTIAL}")
    with in_words(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_json(path: Path, obj: object) -> None:
    """A value as JSON every reader takes: NaN and infinity as null, arrays as lists, paths as text."""
    text = json.dumps(_jsonable(obj), indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def read_json(path: Path):
    """The value in a JSON file; a UserError that names the file where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read ({e}): run that job again with force=true") from None


@contextmanager
def in_words(path: Path, key: str = "paths.logs") -> Iterator[None]:
    """What the system refuses inside this block becomes one line about `path` for the user; `key` moves it."""
    try:
        yield
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}; {_advice(e)}, "
                        f"or choose another folder with {key}=") from None


def _advice(e: OSError) -> str:
    if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room and start again (what is kept stays kept)"
    if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"make {e.filename or 'it'} writable"
    if e.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return "a file lies where a folder should, or a folder where a file should: move it away"
    return "see to the disk"


def _sync_folder(folder: Path) -> None:
    # the move itself is safe from a power cut only once the folder is on the disk
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _jsonable(obj: object) -> object:
    if isinstance(obj, Mapping):
        return {str(key): _jsonable(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_jsonable(value) for value in obj]
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if hasattr(obj, "tolist"):  # numpy's scalars and arrays
        return _jsonable(obj.tolist())
    return str(obj) if isinstance(obj, Path) else obj
