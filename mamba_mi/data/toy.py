"""Toy tasks in single tokens of whatever tokenizer the model has: what only the prompt tells, in words without sense.

Words are drawn from the tokenizer's vocabulary. `copying` goes on with the second copy of a list; `delayed_match` picks of two
words the one that was shown before the delay; `counting` says a word as often as a list holds it, then stops; `brackets`
closes what was opened last; `mqar` asks keys for their values, the second time without giving it.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from mamba_mi.config import UserError, several, stream
from mamba_mi.data import written
from mamba_mi.data.facts.tasks import Draw
from mamba_mi.data.prompt import Dataset, Dropped
from mamba_mi.data.questions import Question
from mamba_mi.data.single_tokens import drawn, enough, single
from mamba_mi.data.written import Written

DRAWN, POOL = 256, 64  # prompts of a task; words they are made of
STOP = "."
BRACKETS = ("()", "[]", "{}", "<>")


@dataclass(frozen=True)
class Knobs:
    """`task` is "all", one of TASKS, or a list. `length` counts the words of the list, of the delay or of the brackets,
    `pairs` those of mqar."""

    name: str = "toy"
    task: Any = "all"
    length: int = 12
    pairs: int = 6
    n: int | None = 200
    only_correct: bool = True
    bos: bool = False


class Puzzle(NamedTuple):
    """Words up to the answer; `other` in place of the word at `at` makes it `wrong`. Spans are ranges of words."""

    words: list[str]
    at: int
    other: str
    answer: str
    wrong: str
    spans: dict[str, tuple[int, int]]


def copying(draw: Draw, pool: Sequence[str], size: int) -> Puzzle:
    *words, new = draw.some_of(pool, size + 1)
    at = draw.between(1, size - 1)
    return Puzzle([*words, STOP, *words[:at]], at, new, words[at], new, {"list": (0, size), "copy": (size + 1, size + 1 + at)})


def delayed_match(draw: Draw, pool: Sequence[str], size: int) -> Puzzle:
    sample, other, *delay = draw.some_of(pool, size + 2)
    words = [sample, STOP, *delay, STOP, *draw.some_of([sample, other], 2), STOP]
    return Puzzle(words, 0, other, sample, other, {"delay": (2, size + 2), "choices": (size + 3, size + 5)})


def counting(draw: Draw, pool: Sequence[str], size: int) -> Puzzle:
    counted, new, *others = draw.some_of(pool, size + 2)
    times, ends = draw.between(2, size - 1), draw.below(2) == 1
    words = draw.some_of([*[counted] * times, *others[:size - times]], size)
    said = [counted] * (times if ends else times - 1)
    at = draw.one_of([i for i, word in enumerate(words) if (word == counted) != ends])
    answer, wrong = (STOP, counted) if ends else (counted, STOP)
    return Puzzle([*words, STOP, *said], at, counted if ends else new, answer, wrong,
                  {"list": (0, size), "said": (size + 1, size + 1 + len(said))})


def brackets(draw: Draw, pool: Sequence[str], size: int) -> Puzzle:
    words: list[str] = []
    open_at: list[int] = []
    for i in range(size):
        least = 1 if i < size - 1 else 2  # something must be left open at the end
        if len(open_at) >= least and draw.below(2):
            words.append(_closing(words[open_at.pop()]))
        else:
            open_at.append(i)
            words.append(draw.one_of(pool)[0])
    at = open_at[-1]
    other = draw.one_of([kind for kind in pool if kind[0] != words[at]])
    return Puzzle(words, at, other[0], _closing(words[at]), other[1], {})


def mqar(draw: Draw, pool: Sequence[str], size: int) -> Puzzle:
    new, *words = draw.some_of(pool, 2 * size + 1)
    asked, before = draw.some_of(range(size), 2)
    told = [*words, STOP, *words[2 * before:2 * before + 2], words[2 * asked]]
    return Puzzle(told, 2 * asked + 1, new, words[2 * asked + 1], new, {"pairs": (0, 2 * size), "key": (2 * asked, 2 * asked + 1)})


TASKS: dict[str, Callable[[Draw, Sequence[str], int], Puzzle]] = {
    "copying": copying, "delayed_match": delayed_match, "counting": counting, "brackets": brackets, "mqar": mqar}


def load(knobs: Knobs, tokenizer, seed: int) -> Dataset:
    """Pairs of every task asked for; of "all", those that the tokenizer has the tokens for."""
    for key, least in (("length", 3), ("pairs", 2)):
        if getattr(knobs, key) < least:
            raise UserError(f"dataset.{key}={getattr(knobs, key)}: give at least {least}")
    tasks, dropped = several(knobs.task, list(TASKS), "dataset.task"), []
    kinds = _bracket_kinds(tokenizer)
    if len(kinds) < 2 and knobs.task == "all":
        tasks.remove("brackets")
        dropped.append(Dropped("toy-brackets", "", "brackets: the tokenizer has not two kinds of them as single tokens"))
    records = [record for task in tasks for record in _records(task, knobs, kinds, tokenizer, seed)]
    return written.dataset("toy", records, tokenizer, bos=knobs.bos, seed=seed, dropped=dropped)


def _bracket_kinds(tokenizer) -> list[str]:
    known = single([bracket for kind in BRACKETS for bracket in kind], tokenizer)
    return [kind for kind in BRACKETS if set(kind) <= set(known)]


def _records(task: str, knobs: Knobs, kinds: list[str], tokenizer, seed: int) -> list[Written]:
    size = knobs.pairs if task == "mqar" else knobs.length
    what = f"dataset.task={task}"
    if task == "brackets":
        pool = enough(kinds, 2, tokenizer, what)
    else:
        needed = 2 * size + 1 if task == "mqar" else size + 2
        pool = drawn(needed, max(needed, POOL), tokenizer, seed, what)
    draw, found = Draw(stream(seed, "toy", task, size)), {}
    for _ in range(DRAWN):
        puzzle = TASKS[task](draw, pool, size)
        found.setdefault(_text(puzzle.words), puzzle)
    return [_written(f"{task}-{size}-s{seed}-{number:03d}", task, puzzle) for number, puzzle in enumerate(found.values())]


def _written(name: str, task: str, puzzle: Puzzle) -> Written:
    words, (clean, corrupt) = puzzle.words, _both(puzzle)
    question = Question(name, "", puzzle.answer, source="toy", category=task, rule="made for it", cluster=name, prompt=_text(clean))
    partner = Question(f"{name}-corrupt", "", puzzle.wrong, source="toy", category=task, rule="made for it", cluster=name, prompt=_text(corrupt))
    spans = puzzle.spans | {"subject": (puzzle.at, puzzle.at + 1), "asked": (len(words) - 1, len(words))}
    return Written(name, question.prompt, partner.prompt, f" {puzzle.answer}", f" {puzzle.wrong}",
                   *({key: _characters(side, *span) for key, span in spans.items()} for side in (clean, corrupt)),
                   cluster=name, template=f"toy: {task}", source=question.record(), corrupt_source=partner.record())


def _both(puzzle: Puzzle) -> tuple[list[str], list[str]]:
    corrupt = [*puzzle.words]
    corrupt[puzzle.at] = puzzle.other
    return puzzle.words, corrupt


def _text(words: Sequence[str]) -> str:
    """With a space before each word, the first too: there too it is the token that it is elsewhere."""
    return "".join(f" {word}" for word in words)


def _characters(words: Sequence[str], first: int, end: int) -> tuple[int, int]:
    """The characters of a range of words, without the space before it."""
    ends = [0, *accumulate(len(word) + 1 for word in words)]
    return ends[first] + 1, ends[end]


def _closing(opening: str) -> str:
    return next(kind[1] for kind in BRACKETS if kind[0] == opening)
