"""What the question-answering sets share: their knobs, how records come from a file or the hub, what a nested column holds.

A set is a module with `Knobs`, `load`, and a `Published` that says how one record becomes a Question. Records that cannot
be used are dropped with a reason. `datasets` writes a Sequence of records as a dict of lists; both are read.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from mamba_mi.config import UserError, stream
from mamba_mi.data import hub, local
from mamba_mi.data.pairing import shuffled
from mamba_mi.data.prompt import Dataset, Dropped
from mamba_mi.data.questions import Question, bare, prompts
from mamba_mi.data.reading import Unusable, checked, printable, require_columns, sift


@dataclass(frozen=True)
class Choices:
    """The knobs of every set. `path` (a file or folder) wins over `hub`; `samples` records of the split are read (null: all), and
    `n` (null: all) and `only_correct` choose among their prompts once a model ran. `longest` is in tokens."""

    name: str = ""
    path: str | None = None
    hub: str = ""
    config: str | None = None
    split: str = "validation"
    revision: str | None = None
    samples: int | None = 2000
    n: int | None = 200
    only_correct: bool = True
    bos: bool = False
    longest: int | None = 2048
    context: bool = True


class Published(NamedTuple):
    """One set: the columns without which a file is not of it, what a record is, and whether the hub's copy is too large to
    download, so that only its beginning is read."""

    name: str
    columns: tuple[str, ...]
    question: Callable[[Mapping], Question]
    streamed: bool = False


class Answered(NamedTuple):
    """The questions of a set, the records that are none, and where they came from."""

    questions: list[Question]
    dropped: list[Dropped]
    fingerprint: str
    origin: dict[str, str | None]


def dataset(of: Published, knobs: Choices, tokenizer, seed: int) -> Dataset:
    """The set's questions as prompts, in an order drawn from the seed."""
    found = questions(of, knobs, seed)
    asking, twice = (found.questions, []) if knobs.context else bare(found.questions)
    made, more = prompts(asking, tokenizer, bos=knobs.bos)
    dropped = tuple(sorted([*found.dropped, *twice, *more], key=lambda each: each.prompt_id))
    return Dataset(of.name, tuple(shuffled(made, seed, of.name)), found.fingerprint, dropped=dropped, origin=found.origin)


def questions(of: Published, knobs: Choices, seed: int, key: str = "dataset") -> Answered:
    """Up to `samples` records as questions; which ones the seed decides, but of a streamed set they are the first.

    A question's id is its set and its row in the split. `key` is what an error calls the place of the setting.
    """
    if knobs.samples is not None and knobs.samples < 1:
        raise UserError(f"{key}.samples={knobs.samples}: give at least 1, or null for every record")
    found, source = _found(of, knobs, seed, key)
    if not found.records:
        raise UserError(f"{source}: it holds no records")
    require_columns(found.records, of.columns, source)
    ids = [f"{of.name}-{row:06d}" for row in found.rows]
    seen: set[str] = set()
    made, dropped = sift(ids, [_shown(record) for record in found.records], zip(ids, found.records, strict=True),
                         lambda item: _question(of, *item, seen))
    return Answered(made, dropped, found.fingerprint, found.origin)


def _found(of: Published, knobs: Choices, seed: int, key: str) -> tuple[hub.Found, str]:
    def choose(count: int) -> Sequence[int]:
        if knobs.samples is None or knobs.samples >= count:
            return range(count)
        import torch

        return sorted(torch.randperm(count, generator=stream(seed, "samples", of.name))[:knobs.samples].tolist())

    where = {"split": knobs.split, "config": knobs.config}
    if knobs.path:
        path_key = f"{key}.path" if key == "dataset" else key
        return local.read(knobs.path, **where, choose=choose, key=path_key, otherwise=hub.download(knobs.hub, knobs.config, key)), f"{path_key}={knobs.path}"
    where |= {"revision": knobs.revision, "key": key}
    found = hub.beginning(knobs.hub, knobs.samples, **where) if of.streamed else hub.whole(knobs.hub, **where, choose=choose)
    return found, f"dataset.hub={knobs.hub}"


def _question(of: Published, question_id: str, record: Mapping, seen: set[str]) -> Question:
    made = replace(of.question(record), question_id=question_id, source=of.name)
    for name in ("context", "cluster", "kind"):  # titles among them: what no file can hold would be found when it is written
        checked(getattr(made, name), name, may_be_empty=True)
    if made.prompt in seen:
        raise Unusable("an earlier record has the same prompt")
    seen.add(made.prompt)
    return made


def _shown(record: Mapping) -> str:
    """What a dropped record is listed with."""
    found = record.get("question")
    return printable(str(found.get("text") or "") if isinstance(found, Mapping) else str(found or ""))


def column(record: Mapping, outer: str, inner: str) -> list:
    """The values of `inner` in the nested column `outer`: a dict of lists, or a list of dicts."""
    value = record.get(outer)
    if isinstance(value, Mapping) and isinstance(value.get(inner), list):
        return value[inner]
    if isinstance(value, list) and all(isinstance(each, Mapping) and inner in each for each in value):
        return [each[inner] for each in value]
    raise Unusable(f"{outer}.{inner} is missing")


def rows(record: Mapping, outer: str, *inner: str) -> list[tuple]:
    """Columns of `outer` side by side; a list of lists, as raw files have it, is read as well."""
    value = record.get(outer)
    if isinstance(value, list) and all(isinstance(each, list) and len(each) == len(inner) for each in value):
        return [tuple(each) for each in value]
    columns = [column(record, outer, name) for name in inner]
    if len({len(each) for each in columns}) > 1:
        raise Unusable(f"{outer}: {', '.join(inner)} differ in length")
    return list(zip(*columns, strict=True))


def answers(values: Sequence, name: str) -> tuple[str, tuple[str, ...]]:
    """The first answer, and the others that differ from it; Unusable where there is none."""
    found = list(dict.fromkeys(checked(value, name).strip() for value in values))
    if not found:
        raise Unusable("no answer is given: the question is unanswerable, or its answer is withheld")
    return found[0], tuple(found[1:])
