"""The Pile, or any text in its shape: a JSON record a line, `text` and, where it is known, `meta.pile_set_name`.

A corpus to train on, not prompts. The hub's files are read as they come, local ones line by line; `meta` may be missing, a
record, or a record written as text.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mamba_mi.config import UserError
from mamba_mi.data import shards
from mamba_mi.data.corpus import Corpus, Document
from mamba_mi.data.prompt import Dataset
from mamba_mi.data.reading import Unusable, checked, text_of

IS_CORPUS = True
UNKNOWN = "unknown"  # the source of a document that does not say


@dataclass(frozen=True)
class Knobs:
    """`path` wins over `hub`. `sets` and `weights` are by pile_set_name."""

    name: str = "pile"
    path: str | None = None
    hub: str = "monology/pile-uncopyrighted"
    revision: str | None = None
    validation: str | None = None
    heldout: float = 0.01
    sets: Any = None
    weights: Any = None
    buffer: int = 1000
    n: int | None = None
    only_correct: bool = False


def load(knobs: Knobs, tokenizer, seed: int) -> Dataset:
    """The corpus; none of its text is read yet."""
    _check(knobs)
    train, validation = (shards.local(knobs.path, "dataset.path"), []) if knobs.path else shards.hub(knobs.hub, knobs.revision)
    if knobs.validation:
        validation = shards.local(knobs.validation, "dataset.validation")
        if both := shards.same(validation, train):
            raise UserError(f"dataset.validation={knobs.validation}: {both[0]} is also among what is trained on")
    corpus = Corpus("pile", seed, document, train, validation, knobs.heldout, _sets(knobs.sets), _weights(knobs.weights),
                    knobs.buffer, knobs.n)
    return Dataset("pile", (), shards.fingerprint([*train, *validation]), corpus=corpus)


def document(line: bytes) -> Document:
    """A line's text and its pile_set_name."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise Unusable("the line is not JSON") from None
    if type(record) is not dict:
        raise Unusable("the line is not a record in braces")
    return Document(text_of(record, "text"), _set_name(record.get("meta")))


def _set_name(meta: Any) -> str:
    if isinstance(meta, str):
        try:
            meta = json.loads(meta)
        except (ValueError, RecursionError):
            return UNKNOWN
    try:
        return checked(meta.get("pile_set_name") if isinstance(meta, dict) else None, "pile_set_name")
    except Unusable:
        return UNKNOWN


def _check(knobs: Knobs) -> None:
    if knobs.only_correct:
        raise UserError("dataset.only_correct=true: running text has no right answers; leave it false")
    if not 0 < knobs.heldout < 1:
        raise UserError(f"dataset.heldout={knobs.heldout}: give a share between 0 and 1; a file of its own is dataset.validation=")
    if knobs.buffer < 1:
        raise UserError(f"dataset.buffer={knobs.buffer}: give at least 1, which shuffles nothing")


def _sets(asked: Any) -> frozenset[str] | None:
    if asked is None:
        return None
    names = [asked] if isinstance(asked, str) else asked
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"dataset.sets={asked}: give a list of pile_set_names: dataset.sets=[Pile-CC,Github]")
    return frozenset(names)


def _weights(asked: Any) -> dict[str, float]:
    if asked is None:
        return {}
    right = isinstance(asked, dict) and all(type(x) in (int, float) and 0 <= x < float("inf") for x in asked.values())
    if not right:
        raise UserError(f"dataset.weights={asked}: give numbers of 0 or more by pile_set_name: dataset.weights={{Pile-CC:2.0}}")
    return {str(name): float(x) for name, x in asked.items()}
