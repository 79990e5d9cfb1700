"""Passages a model can only complete from what stands before: key-value recall, boxes, repeats; and filler.

Every passage is drawn from one torch.Generator, is exactly `length` tokens long and comes with the weight
that predicting each token has in training.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

import torch

from mamba_mi.config import stream
from mamba_mi.data.facts import words as W
from mamba_mi.data.facts.vocabulary import BOS, PAIRS, REPEAT, STOP, vocabulary
from mamba_mi.data.facts.words import BOX, COLOUR, FEELING, KEYS, OBJECT, SEEING, VALUES
from mamba_mi.data.prompt import Prompt

ANSWER, OTHER = 1.0, 0.25  # weights in the loss; what cannot be known has 0
T = TypeVar("T")


class Passage(NamedTuple):
    """Tokens as words, the weight of predicting each, and where a word follows from the words before it."""

    words: list[str]
    weights: list[float]
    known: list[int]


class Draw:
    """Choices made by one torch.Generator."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def below(self, n: int) -> int:
        return int(torch.randint(n, (), generator=self.generator))

    def between(self, low: int, high: int) -> int:
        """low … high, both included."""
        return low + self.below(high - low + 1)

    def one_of(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def some_of(self, items: Sequence[T], n: int) -> list[T]:
        """n different ones, in a drawn order."""
        return [items[i] for i in torch.randperm(len(items), generator=self.generator)[:n].tolist()]

    def share_of(self, shares: dict[str, float]) -> str:
        """A key, drawn in proportion to its share."""
        at = torch.rand((), generator=self.generator) * sum(shares.values())
        for name, share in shares.items():
            at -= share
            if at < 0:
                return name
        return name


def mqar(draw: Draw, length: int, pairs: int | None = None) -> Passage:
    """Multi-query associative recall: pairs of key and value (2 to 8 unless given), then keys asked again."""
    keys = draw.some_of(KEYS, pairs or draw.between(2, 8))
    value = {key: draw.one_of(VALUES) for key in keys}
    words = [PAIRS, *(word for key in keys for word in (key, value[key]))]
    told = len(words)
    while len(words) < length:
        key = draw.one_of(keys)
        words += [key, value[key]]
    known = list(range(told + 1, length, 2))
    return Passage(words[:length], _only(known, length), known)


def box(draw: Draw, length: int) -> Passage:
    """Which thing is in which box (2 to 4 boxes), told once and then said again and again."""
    colours = draw.some_of(COLOUR, draw.between(2, 4))
    things = draw.some_of(OBJECT, len(colours))
    told = [said(BOX.format(C=c, A=thing).split()) for c, thing in zip(colours, things, strict=True)]
    first = [(word, OTHER) for sentence in told for word, _ in sentence]
    words = [(BOS, 0.0), *first]
    while len(words) < length:
        words += draw.one_of(told)
    weights = [weight for _, weight in words[:length]]
    known = [i for i, weight in enumerate(weights) if weight == ANSWER]
    return Passage([word for word, _ in words[:length]], weights, known)


def repeat(draw: Draw, length: int) -> Passage:
    """8 to 20 different words, of few, over and over: a word is known from its place in the copy before."""
    copy = draw.some_of([*OBJECT, *COLOUR], draw.between(8, 20))
    words = [REPEAT, *copy * (length // len(copy) + 1)]
    known = list(range(len(copy) + 2, length))  # that a second copy begins is known from its first word only
    return Passage(words[:length], _only(known, length), known)


def _only(known: Sequence[int], length: int) -> list[float]:
    weights = [0.0] * length
    for i in known:
        weights[i] = ANSWER
    return weights


def filler(draw: Draw) -> list[str]:
    """A sentence of no consequence that still agrees in number or in mood."""
    if draw.below(2):
        good = draw.below(2)
        return FEELING.format(thing=draw.one_of(W.THING), how=draw.one_of(W.GOOD if good else W.BAD),
                              so=draw.one_of(W.GLAD if good else W.SAD)).split()
    who, does = (W.NOUNS, W.VERBS) if draw.below(2) else (W.NOUN, W.VERB)
    return SEEING.format(adjective=draw.one_of(W.ADJECTIVE), who=draw.one_of(who), does=draw.one_of(does),
                         other=draw.one_of(W.ADJECTIVE), whom=draw.one_of(W.NOUN)).split()


def said(words: Sequence[str], answer: float = ANSWER) -> list[tuple[str, float]]:
    """A sentence that ends in its answer, with its full stop and the weight of each token."""
    return [*((word, OTHER) for word in words[:-1]), (words[-1], answer), (STOP, OTHER)]


IN_CONTEXT = {"mqar4": partial(mqar, pairs=4), "mqar8": partial(mqar, pairs=8), "box": box, "repeat": repeat}


def asked(task: str, n: int, generator: torch.Generator, length: int = 64) -> tuple[Prompt, ...]:
    """n prompts of an in-context task: each a passage that breaks off before a word that is known from it."""
    draw, ids = Draw(generator), vocabulary()
    out = []
    for number in range(n):
        passage = IN_CONTEXT[task](draw, length)
        end = draw.one_of(passage.known)
        words, target = passage.words[:end], passage.words[end]
        name = f"{task}-{number:04d}"
        out.append(Prompt(name, " ".join(words), tuple(ids[w] for w in words), target, ids[target],
                          target_ids=(ids[target],), cluster=name, template=task))
    return tuple(out)


# the first question alone: told once, asked once, and few layouts
LENGTHS = {"mqar4": 11, "mqar8": 19, "box": 64, "repeat": 64}
BEFORE = {"box": 5}  # how many tokens before its value a key stands, if not one


def in_context(task, n: int, seed: int) -> tuple[Prompt, ...]:
    """n prompts of an in-context task as data: the spans `key` and `value` are where it was first told, and the wrong
    answer is another that was told."""
    return tuple(_where_told(prompt, task, seed) for prompt in asked(task, n, stream(seed, "facts", task), LENGTHS[task]))


def _where_told(prompt: Prompt, task: str, seed: int) -> Prompt:
    words, back, ids = prompt.text.split(), BEFORE.get(task, 1), vocabulary()
    value = next(i for i in range(back, len(words)) if words[i] == prompt.target and words[i - back] == words[-back])
    kind = next(kind for kind in (VALUES, OBJECT, COLOUR) if prompt.target in kind)
    others = [word for word in words[value + 1:] + words[:value] if word in kind and word != prompt.target]
    name = prompt.prompt_id.replace(task, f"{task}-s{seed}")
    return replace(prompt, prompt_id=name, cluster=name, wrong_id=ids[others[0]] if others else None,
                   spans={"key": (value - back, value - back + 1), "value": (value, value + 1)})
