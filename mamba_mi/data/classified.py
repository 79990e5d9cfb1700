"""The questions that experiment=classify put into seven categories, from the file it keeps them in.

A .parquet, .jsonl or .json list of the same records is read as well.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mamba_mi.config import UserError, did_you_mean
from mamba_mi.data.pairing import shuffled
from mamba_mi.data.prompt import Dataset
from mamba_mi.data.questions import CATEGORIES, Question, bare, of_record, prompts
from mamba_mi.data.reading import (
    Unusable,
    checked,
    fingerprint,
    listed,
    printable,
    read_records,
    readable,
    require_columns,
    require_once,
    sift,
    text_of,
)

MAKE = "`python launch.py experiment=classify` makes it (with force=true where an earlier run did and it is gone)"
COLUMNS = ("question", "expected", "category")
WHOLE = {"settings": dict, "sources": dict, "judged": list, "records": list}


@dataclass(frozen=True)
class Knobs:
    """`categories` (null: all) are those used; `n` and `only_correct` choose among their prompts once a model ran."""

    name: str = "classified"
    path: str = "experiment_logs/classified_questions.json"
    categories: list[str] | None = None
    n: int | None = 200
    only_correct: bool = True
    bos: bool = False
    longest: int | None = 2048
    context: bool = True


def load(knobs: Knobs, tokenizer, seed: int) -> Dataset:
    """Every usable question of the categories asked for, in an order drawn from the seed."""
    _check_categories(knobs.categories)
    records = records_of(knobs.path, otherwise=MAKE)
    require_columns(records, COLUMNS, f"dataset.path={knobs.path}")
    wanted = [(row, record) for row, record in enumerate(records) if not knobs.categories or record.get("category") in knobs.categories]
    ids = [printable(str(record.get("question_id") or f"classified-{row:06d}")) for row, record in wanted]
    require_once(ids, "question_id", f"dataset.path={knobs.path}")
    texts = [str(record.get("question") or "") for _, record in wanted]
    questions, dropped = sift(ids, texts, zip(ids, (record for _, record in wanted), strict=True), lambda item: _question(*item))
    asking, twice = (questions, []) if knobs.context else bare(questions)
    made, more = prompts(asking, tokenizer, bos=knobs.bos)
    return Dataset("classified", tuple(shuffled(made, seed, "classified")), fingerprint(knobs.path), dropped=(*dropped, *twice, *more))


def _check_categories(asked: Sequence[str] | None) -> None:
    if asked is not None and not asked:
        raise UserError("dataset.categories=[]: at least one, or null for all seven")
    for category in asked or ():
        if category not in CATEGORIES:
            raise UserError(f"dataset.categories={category}: there are {', '.join(CATEGORIES)}{did_you_mean(category, CATEGORIES)}")


def read(path: str, key: str) -> dict | None:
    """All that the file of experiment=classify says; None for a file that is something else."""
    with readable(Path(path).expanduser(), f"{key}={path}"):
        said = json.loads(Path(path).expanduser().read_text(encoding="utf-8-sig") or "[]")
    return said if isinstance(said, dict) and all(isinstance(said.get(key), kind) for key, kind in WHOLE.items()) else None


def records_of(path: str, key: str = "dataset.path", otherwise: str = "") -> list[dict]:
    """The records of a file, that of experiment=classify or another."""
    file = Path(path).expanduser()
    whole = read(path, key) if file.suffix == ".json" and file.is_file() and file.stat().st_size else None
    return whole["records"] if whole else read_records(path, key, otherwise)


def _question(question_id: str, record: Mapping) -> Question:
    for name in COLUMNS:
        text_of(record, name)
    if record["category"] not in CATEGORIES:
        raise Unusable("category is none of the seven")
    told = {key: value for key, value in record.items() if value is not None}
    for name in (name for name in ("context", "prompt", "source", "cluster", "rule", "kind") if name in told):
        text_of(told, name, may_be_empty=True)
    for name in ("alternatives", "supporting_facts"):
        for each in listed(told, name):
            checked(each, name)
    for name in ("num_facts", "num_hops"):
        if type(told.get(name, 0)) is not int:
            raise Unusable(f"{name} is not a number")
    return of_record(told | {"question_id": question_id})
