"""The user's own pairs: a .jsonl, .csv or .parquet file with columns clean, corrupt, answer and wrong_answer.

Optional columns: `spans`, a dict of name -> [start, end] in characters of the clean text (in a csv as
JSON); `corrupt_spans`, the same for the corrupt text; `id`; `cluster` or `subject`, what the statistics
resample together; `template`. Without a span "subject", the tokens from the first to the last that differ
between the two texts are it. An answer that begins with a letter or a digit gets the space that follows a
word.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mamba_mi.config import UserError
from mamba_mi.data import written
from mamba_mi.data.encoding import following
from mamba_mi.data.pairing import shuffled
from mamba_mi.data.prompt import Dataset
from mamba_mi.data.reading import (
    Unusable,
    columns_of,
    fingerprint,
    printable,
    read_records,
    require_columns,
    require_once,
    sift,
    text_of,
)
from mamba_mi.data.spans import is_role
from mamba_mi.data.written import Written

COLUMNS = ("clean", "corrupt", "answer", "wrong_answer")
OPTIONAL = ("spans", "corrupt_spans", "id", "cluster", "subject", "template")


@dataclass(frozen=True)
class Knobs:
    """`n` (null: all) and `only_correct` choose among the pairs once a model has run."""

    name: str = "pairs"
    path: str | None = None
    n: int | None = None
    only_correct: bool = True
    bos: bool = False


def load(knobs: Knobs, tokenizer, seed: int) -> Dataset:
    """Every usable pair, in an order drawn from the seed; `prompts` are the clean sides in that order."""
    if not knobs.path:
        raise UserError("dataset=pairs needs dataset.path=FILE, a .jsonl, .csv or .parquet file with the "
                        f"columns {', '.join(COLUMNS)}")
    rows = [_renamed(row) for row in read_records(knobs.path)]
    _check_columns(rows, f"dataset.path={knobs.path}")
    ids = _ids(rows, f"dataset.path={knobs.path}")
    seen: set[tuple] = set()
    records, dropped = sift(ids, [str(row.get("clean") or "") for row in rows], zip(ids, rows, strict=True),
                            lambda item: _record(*item, seen))
    made, more = written.pairs(records, tokenizer, knobs.bos)
    pairs = tuple(shuffled(made, seed, "pairs of the file"))
    where = {prompt_id: row for row, prompt_id in enumerate(ids)}
    dropped = tuple(sorted([*dropped, *more], key=lambda d: where[d.prompt_id]))
    return Dataset("pairs", tuple(pair.clean for pair in pairs), fingerprint(knobs.path), pairs, dropped)


def _renamed(row: dict) -> dict:
    return {"wrong_answer" if column == "wrong answer" else column: value for column, value in row.items()}


def _check_columns(rows: list[dict], source: str) -> None:
    """UserError for a missing column, and for a misspelt optional one, which would be ignored."""
    require_columns(rows, COLUMNS, source)
    for column in columns_of(rows):
        meant = [c for c in OPTIONAL if _bare(c) == _bare(column)]
        if meant and column not in OPTIONAL:
            raise UserError(f"{source}: column {column!r} would be ignored; did you mean {meant[0]!r}?")


def _bare(column: str) -> str:
    return column.strip().lower().replace(" ", "_").rstrip("s")


def _ids(rows: list[dict], source: str) -> list[str]:
    ids = [f"pair-{number:05d}" if row.get("id") in (None, "") else printable(str(row["id"]))
           for number, row in enumerate(rows)]
    require_once(ids, "id", source)
    return ids


def _record(prompt_id: str, row: dict, seen: set[tuple]) -> Written:
    clean, corrupt, answer, wrong = texts = tuple(text_of(row, column) for column in COLUMNS)
    if texts in seen:
        raise Unusable("an earlier record is the same")
    seen.add(texts)
    return Written(prompt_id, clean, corrupt, following(clean, answer), following(corrupt, wrong),
                   _char_spans(row, "spans", clean), _char_spans(row, "corrupt_spans", corrupt),
                   str(row.get("cluster") or row.get("subject") or ""), str(row.get("template") or ""))


def _char_spans(row: dict, column: str, text: str) -> dict[str, tuple[int, int]]:
    value: Any = row.get(column)
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise Unusable(f"{column} is not JSON") from None
    if not isinstance(value, dict):
        raise Unusable(f"{column} is not a dict of name: [start, end]")
    # parquet gives every record the names of all records, with None where a record has none
    return {name: _char_span(name, span, column, text) for name, span in value.items() if span is not None}


def _char_span(name: str, span: Any, column: str, text: str) -> tuple[int, int]:
    if is_role(name):
        raise Unusable(f"{column}: {name!r} is a role's own name; name the span differently")
    whole = isinstance(span, list) and len(span) == 2 and all(type(x) is int for x in span)
    if not whole or not 0 <= span[0] < span[1] <= len(text):
        raise Unusable(f"{column}: {name!r} is not [start, end] within the text's characters")
    return span[0], span[1]
