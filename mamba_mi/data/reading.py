"""Records from a file the user names, with an error of one line for each way such a file can be wrong.

A record that cannot be used raises Unusable and is dropped with that reason; a file that cannot be used is
a UserError. Reasons are the same words for every record with the same flaw, so that they can be counted.
"""
from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mamba_mi.config import UserError, did_you_mean
from mamba_mi.data.formats import READERS
from mamba_mi.data.prompt import Dropped


class Unusable(ValueError):
    """One record cannot be used; the message is the reason its reader is given."""


def sift(ids: Sequence[str], texts: Sequence[str], items: Iterable,
         make: Callable) -> tuple[list, list[Dropped]]:
    """`make(item)` for every item, and those it found Unusable under their id and text."""
    kept, dropped = [], []
    for prompt_id, text, item in zip(ids, texts, items, strict=True):
        try:
            kept.append(make(item))
        except Unusable as why:
            dropped.append(Dropped(prompt_id, printable(text), str(why)))
    return kept, dropped


def read_records(path: str, key: str = "dataset.path", otherwise: str = "") -> list[dict[str, Any]]:
    """The records of a .parquet, .jsonl, .json or .yaml (a list) or .csv (with a header, UTF-8) file.

    `key` is what the user set to the path, `otherwise` what else could be done where there is no such file.
    """
    file, asked = Path(path).expanduser(), f"{key}={path}"
    if file.is_dir():
        inside = sorted(str(f) for f in file.rglob("*") if f.suffix.lower() in READERS)
        such = ", ".join(inside[:5] or READERS)
        raise UserError(f"{asked}: a folder; give a file, such as {such}")
    if not file.is_file():
        raise no_such_file(path, key, otherwise)
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"{asked}: cannot read {file.suffix or 'a file without extension'}; "
                        f"give a file that ends in {', '.join(READERS)}")
    with readable(file, asked):
        records = reader(file)
    if not records:
        raise UserError(f"{asked}: the file holds no records")
    return records


def no_such_file(path: str, key: str, otherwise: str = "") -> UserError:
    """What to raise for a path that leads nowhere."""
    file = Path(path).expanduser()
    beside = [f.name for f in file.parent.glob("*")]
    return UserError(f"{key}={path}: no such file{did_you_mean(file.name, beside)}{'; ' * bool(otherwise)}{otherwise}")


@contextmanager
def readable(file: Path, asked: str) -> Iterator[None]:
    """What goes wrong in this block while the file is read becomes one line about what was `asked`."""
    try:
        yield
    except UnicodeDecodeError as e:
        bad = e.object[e.start]
        raise UserError(f"{asked}: not UTF-8 text (byte {bad:#04x}); save the file as UTF-8") from None
    except (OSError, ValueError, RecursionError, csv.Error) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(f"{asked}: not a readable {file.suffix} file ({reason[:200]})") from None


def columns_of(records: Iterable[dict]) -> list[str]:
    """Every column that some record has, in the order they are met."""
    return list(dict.fromkeys(str(column) for record in records for column in record))  # a YAML file may call one null


def require_columns(records: list[dict], needed: Iterable[str], source: str) -> None:
    """UserError for a column that no record has."""
    present = columns_of(records)
    if missing := [column for column in needed if column not in present]:
        hint = did_you_mean(missing[0], sorted(set(present) - set(needed)))
        raise UserError(f"{source}: no column {', '.join(missing)}; it has {', '.join(present)}{hint}")


def require_once(ids: Sequence[str], column: str, source: str) -> None:
    """UserError for an id that two records have."""
    twice = next((name for name, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{source}: {column} {twice!r} is there more than once; give every record its own")


def text_of(record: Mapping, column: str, *, may_be_empty: bool = False) -> str:
    """The text a record has in a column; Unusable where it has none that a tokenizer could take."""
    return checked(record.get(column), column, may_be_empty=may_be_empty)


def checked(value: object, name: str, *, may_be_empty: bool = False) -> str:
    """The value, if it is a text that a tokenizer could take; else Unusable says what is wrong with it under its `name`."""
    if value is None or (isinstance(value, str) and not value.strip() and not may_be_empty):
        raise Unusable(f"{name} is empty")
    if not isinstance(value, str):
        raise Unusable(f"{name} is not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unusable(f"{name} is not valid Unicode (half of a surrogate pair)") from None
    return value


def listed(record: Mapping, name: str) -> list:
    """The list in a column, an empty one where there is none; Unusable where it holds something else."""
    value = record.get(name)
    if value is not None and not isinstance(value, list):
        raise Unusable(f"{name} is not a list")
    return value or []


def printable(text: str) -> str:
    """The text with "?" for what no file can hold: half of a surrogate pair, escaped in a JSON file."""
    return text.encode(errors="replace").decode()


def fingerprint(path: str) -> str:
    """The sha256 of the file's bytes."""
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
