"""Generated prompts as a data set: six levels of what a prompt tells and asks, each prompt with a partner of one changed fact.

Made anew from the seed, or read from the file that experiment=prompts wrote. The span `subject` is the words that differ
between the two sides, `facts` what is told, `question` the question where it is asked last.
"""
from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from mamba_mi.config import UserError, did_you_mean, several
from mamba_mi.data import written
from mamba_mi.data.encoding import following
from mamba_mi.data.facts.vocabulary import BOS
from mamba_mi.data.generation import LEVELS, MAKERS, generate, left_out, lexicon_of
from mamba_mi.data.generation.draft import Generated, read
from mamba_mi.data.prompt import Dataset, Dropped
from mamba_mi.data.questions import Question, characters
from mamba_mi.data.reading import Unusable, fingerprint, printable, read_records, require_once, sift
from mamba_mi.data.written import Written

LEXICONS = ("auto", *MAKERS)


@dataclass(frozen=True)
class Knobs:
    """`level` is "all", one of LEVELS, or a list; with a `path` it chooses among the file's records, and `lexicon` and
    `per_level` are the file's own."""

    name: str = "generated"
    path: str | None = None
    level: Any = "all"
    per_level: int = 100
    lexicon: str = "auto"
    n: int | None = 200
    only_correct: bool = True
    bos: bool = False


def load(knobs: Knobs, tokenizer, seed: int) -> Dataset:
    """Pairs of one layout, and as prompts also those whose partner has another number of tokens."""
    levels, dropped = several(knobs.level, list(LEVELS), "dataset.level"), []
    if knobs.path:
        made, dropped = _of_file(knobs.path, levels)
        digest = fingerprint(knobs.path)
    else:
        lexicon = lexicon_for(knobs.lexicon, tokenizer, "dataset.lexicon")
        made = made_of(lexicon, levels, knobs.per_level, seed, "dataset")
        dropped = [Dropped(f"{lexicon}-{level}", "", f"levels left out ({level}, as {why})")
                   for level, why in left_out(lexicon, levels).items()]
        digest = digest_of(made)
    _check(made, tokenizer, knobs.bos)
    return written.dataset("generated", [_written(item) for item in made], tokenizer, bos=knobs.bos, seed=seed,
                           fingerprint=digest, dropped=dropped)


def lexicon_for(asked: str, tokenizer, key: str) -> str:
    """The lexicon a knob asks for; "auto" is what the tokenizer's model reads."""
    if asked not in LEXICONS:
        raise UserError(f"{key}={asked}: there are {', '.join(LEXICONS)}{did_you_mean(asked, LEXICONS)}")
    return lexicon_of(tokenizer) if asked == "auto" else asked


def made_of(lexicon: str, levels: list[str], per_level: int, seed: int, group: str) -> list[Generated]:
    """`generate`, or a UserError where that leaves nothing."""
    if per_level < 1:
        raise UserError(f"{group}.per_level={per_level}: give at least 1")
    unsayable = left_out(lexicon, levels)
    if len(unsayable) == len(levels):
        raise UserError(f"{group}.level={','.join(levels)}: lexicon={lexicon} cannot say it ({'; '.join(unsayable.values())}); "
                        f"there are {', '.join(MAKERS[lexicon])}")
    return generate(lexicon, levels, per_level, seed, f"{group}.per_level")


def digest_of(made: list[Generated]) -> str:
    """The sha256 of the records."""
    return hashlib.sha256(json.dumps([item.record() for item in made], sort_keys=True).encode()).hexdigest()


def _of_file(path: str, levels: list[str]) -> tuple[list[Generated], list[Dropped]]:
    records = read_records(path)
    ids = [printable(str(record.get("question_id") or f"row-{row}")) for row, record in enumerate(records)]
    require_once(ids, "question_id", f"dataset.path={path}")
    wanted = [LEVELS[level] for level in levels]

    def make(record) -> Generated:
        if record.get("category") not in wanted:
            raise Unusable("of a level that was not asked for")
        return read(record)

    return sift(ids, [str(record.get("prompt") or "") for record in records], records, make)


def _check(made: list[Generated], tokenizer, bos: bool) -> None:
    """The world's words are for the models that know the world, and bring the mark they begin with."""
    if not any(item.lexicon == "world" for item in made):
        return
    if lexicon_of(tokenizer) != "world":
        raise UserError("dataset.lexicon=world is about made-up people whom only the embedded models know; give model=tiny, or "
                        "dataset.lexicon=english")
    if bos:
        raise UserError("dataset.bos=true: prompts of lexicon=world begin with the mark that the models were trained on; use "
                        "dataset.bos=false")


def _written(item: Generated) -> Written:
    clean, corrupt = item.question, item.corrupt
    return Written(clean.question_id, clean.prompt, corrupt.prompt, following(clean.prompt, clean.expected),
                   following(corrupt.prompt, corrupt.expected), _spans(clean, item.subject), _spans(corrupt, item.corrupt_subject),
                   clean.cluster, f"{clean.category}: {item.pattern}", item.record(), corrupt.record(), corrupt.cluster)


def _spans(question: Question, subject: tuple[int, int]) -> dict[str, tuple[int, int]]:
    mark = {"bos": (0, len(BOS))} if question.prompt.startswith(BOS) else {}
    return {**mark, "subject": subject, **characters(question)}
