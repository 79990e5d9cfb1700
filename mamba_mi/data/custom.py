"""Prompts of the user's own, with their answers: a .json, .yaml, .csv, .jsonl or .parquet file; without one the generator's.

A record has `prompt` (the text the model goes on with) or `question`, if need be with `context`; `expected`; and, if you
like, `alternatives` that are as right (a list, or a text with | between them), `category`, `id`, and `cluster`, what the
statistics resample together. A category may be any words; one that is nearly one of the seven is taken for a slip. A file of
experiment=prompts or experiment=classify is one too: its `question_id` is the id.
"""
from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence

from mamba_mi.config import UserError
from mamba_mi.data import classified, generated
from mamba_mi.data.generation import lexicon_of
from mamba_mi.data.pairing import shuffled
from mamba_mi.data.prompt import Dataset, Dropped, Prompt
from mamba_mi.data.questions import CATEGORIES, Question, prompts
from mamba_mi.data.reading import (
    Unusable,
    columns_of,
    fingerprint,
    printable,
    require_columns,
    sift,
    text_of,
)

KEY = "method.path"
COLUMNS = ("prompt", "question", "context", "expected", "alternatives", "category", "id", "question_id", "cluster")
NAMELESS = "without a category"


def of_file(path: str, tokenizer, seed: int, bos: bool | None = None) -> Dataset:
    """The usable records of a file as prompts, in an order drawn from the seed. `bos` None: as the model was trained."""
    asked = f"{KEY}={path}"
    rows = classified.records_of(path, KEY)
    _check(rows, asked)
    ids, texts = _ids(rows, asked), [str(row.get("prompt") or row.get("question") or "") for row in rows]
    seen: set[str] = set()
    questions, dropped = sift(ids, texts, zip(ids, rows, strict=True), lambda item: _question(*item, seen))
    made, more = _prompts(questions, tokenizer, bos)
    where = {name: row for row, name in enumerate(ids)}
    return Dataset("custom", tuple(shuffled(made, seed, "custom")), fingerprint(path),
                   dropped=tuple(sorted([*dropped, *more], key=lambda each: where[each.prompt_id])))


def shipped(tokenizer, seed: int, bos: bool | None = None) -> Dataset:
    """The generator's prompts, every level in the words that the model reads."""
    if bos and lexicon_of(tokenizer) == "world":
        raise UserError("method.bos=true: the prompts made for the embedded models bring their mark themselves; leave method.bos out")
    return generated.load(generated.Knobs(bos=bool(bos)), tokenizer, seed)


def _check(rows: list[dict], asked: str) -> None:
    """UserError for a missing column, for one that is nearly one of ours and would be ignored, and for a category like that."""
    present = columns_of(rows)
    require_columns(rows, ["expected", *(["prompt"] if "question" not in present else [])], asked)
    for column in present:
        _refuse_slip(column, COLUMNS, f"{asked}: column {column!r} would be ignored")
    for name, row in ((row.get("category"), number) for number, row in enumerate(rows, 1)):
        if isinstance(name, str):
            _refuse_slip(name.strip(), CATEGORIES, f"{asked}: record {row} has the category {name!r}")


def _refuse_slip(name: str, known: Sequence[str], what: str) -> None:
    bare = {each.lower().rstrip("s"): each for each in known}
    near = difflib.get_close_matches(name.lower().rstrip("s"), list(bare), n=1, cutoff=0.8)
    if near and name not in known:
        raise UserError(f"{what}; did you mean {bare[near[0]]!r}?")


def _ids(rows: list[dict], asked: str) -> list[str]:
    own = (row.get("id", row.get("question_id")) for row in rows)
    ids = [f"custom-{number:05d}" if name in (None, "") else f"custom-{printable(str(name))}" for number, name in enumerate(own)]
    twice = next((name for name, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{asked}: id {twice.removeprefix('custom-')!r} is there more than once; give every record its own")
    return ids


def _question(name: str, row: Mapping, seen: set[str]) -> Question:
    row = {key: str(value) if type(value) in (int, float) else value for key, value in row.items()}
    prompt = text_of(row, "prompt") if row.get("prompt") else ""
    question = text_of(row, "question") if row.get("question") or not prompt else ""
    context, category, cluster = (_optional(row, column) for column in ("context", "category", "cluster"))
    if prompt and context and context not in prompt:
        raise Unusable("a context beside a prompt that does not hold it (give question instead of prompt)")
    made = Question(name, question, text_of(row, "expected").strip(), _alternatives(row.get("alternatives")), context, "custom",
                    category=category or NAMELESS, cluster=cluster, prompt=prompt)
    if made.prompt in seen:
        raise Unusable("an earlier record has the same prompt")
    seen.add(made.prompt)
    return made


def _optional(row: Mapping, column: str) -> str:
    return "" if row.get(column) is None else text_of(row, column, may_be_empty=True).strip()


def _alternatives(value: object) -> tuple[str, ...]:
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise Unusable("alternatives begin with [ and are no JSON list") from None
    several = value.split("|") if isinstance(value, str) else [] if value is None else value
    if not isinstance(several, list) or not all(type(each) in (str, int, float) for each in several):
        raise Unusable("alternatives are neither a text nor a list of texts")
    return tuple(dict.fromkeys(printable(str(each).strip()) for each in several if str(each).strip()))


def _prompts(questions: Sequence[Question], tokenizer, bos: bool | None) -> tuple[list[Prompt], list[Dropped]]:
    """A prompt that opens with a special token, as the embedded models' in-context tasks do, gets no other before it."""
    bos = lexicon_of(tokenizer) == "world" if bos is None else bos
    specials = tuple(t.content for t in tokenizer.added_tokens_decoder.values() if t.special) if tokenizer is not None else ()
    opened = [each for each in questions if specials and each.prompt.startswith(specials)]
    bare = [each for each in questions if each not in opened]
    parts = [prompts(bare, tokenizer, bos=bos), prompts(opened, tokenizer)]
    return [p for made, _ in parts for p in made], [d for _, dropped in parts for d in dropped]
