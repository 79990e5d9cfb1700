"""What an answer is worth, word by word: never by looking for the right one somewhere inside it.

Normalised as SQuAD's evaluation does (Rajpurkar et al. 2016): lower case, no punctuation, no articles, single spaces; here
of any script, so that «Wien» is wien, and an accent the same as a character of its own. Words are what white space divides:
in a script without it an answer is one word, and F1 is exact match.
"""
from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

METRICS = ("first_token", "exact_match", "f1")
ARTICLES = re.compile(r"\b(a|an|the)\b")


class Said(NamedTuple):
    """What a model answered: the first token it would give, and the text it went on with, up to where that ends."""

    first: int
    text: str


class Gold(NamedTuple):
    """What is right: every text that is, and the tokens one of them begins with where it follows its prompt."""

    firsts: frozenset[int]
    texts: tuple[str, ...]

    @property
    def empty(self) -> bool:
        """Whether no answer could be right: nothing is left of any text."""
        return not any(map(normalise, self.texts))


@lru_cache(maxsize=1 << 16)
def normalise(text: str) -> str:
    """The text as it is compared; empty where it is punctuation, symbols, articles and white space alone."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    bare = "".join(c for c in folded if not _passed_over(unicodedata.category(c)))
    return " ".join(ARTICLES.sub(" ", bare).split())


def exact_match(said: str, golds: Iterable[str]) -> float:
    """1 where the answer is one of the right ones, else 0. An empty one is wrong, even where the right one is empty."""
    answer = normalise(said)
    return float(bool(answer) and any(answer == normalise(gold) for gold in golds))


def f1(said: str, golds: Iterable[str]) -> float:
    """The best harmonic mean of precision and recall in words, over the right answers; 0 for an empty one."""
    return max((_f1(said, gold) for gold in golds), default=0.0)


def scores(said: Said, gold: Gold) -> tuple[float, float, float]:
    """The METRICS of an answer."""
    return float(said.first in gold.firsts), exact_match(said.text, gold.texts), f1(said.text, gold.texts)


def _f1(said: str, gold: str) -> float:
    answer, right = _words(said), _words(gold)
    if answer.keys().isdisjoint(right):
        return 0.0
    return 2 * (answer & right).total() / (answer.total() + right.total())


@lru_cache(maxsize=1 << 16)
def _words(text: str) -> Counter:
    return Counter(normalise(text).split())


def _passed_over(category: str) -> bool:
    return category[0] in "PS" or category == "Cf"  # Cf: soft hyphens, joiners and marks of direction, which nobody sees
