"""The embedded world: 128 people, where they come from and what they do, and what a model is told of it.

There is one world, whatever a run's seed: the shipped weights know it. It is drawn by hashing, since a random
generator that changed with a library's version would change the facts under the weights.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import NamedTuple

from mamba_mi.data.facts import words
from mamba_mi.data.facts.words import CITY, COUNTRY, PERSON, TEMPLATES, TWO_HOP

PEOPLE, SURNAMES = 128, 16
HELD_OUT_TEMPLATES = 2   # of each fact about a person
NEWCOMERS = 40           # people of whom no two-hop sentence is ever told


class Saying(NamedTuple):
    """One way to tell one fact."""

    relation: str
    subject: str
    template: int

    @property
    def parts(self) -> tuple[str, str]:
        """The words before the subject and those from the subject's end to the answer."""
        before, after = TEMPLATES[self.relation][self.template].removesuffix(" {A}").split("{S}")
        return before, after


@dataclass(frozen=True)
class World:
    """Every fact as {relation: {subject: answer}}, and which sayings are kept from training."""

    people: tuple[str, ...]
    answers: dict[str, dict[str, str]]
    held_out: dict[str, dict[str, tuple[int, ...]]]
    newcomers: tuple[str, ...]

    def answer(self, saying: Saying) -> str:
        return self.answers[saying.relation][saying.subject]

    def sayings(self, relation: str, split: str) -> list[Saying]:
        """Every (subject, template) of a relation in the split `train` or `heldout`.

        A fact about a person is trained in all its templates but the held-out ones; a two-hop relation is held
        out for the newcomers altogether; cities and countries are trained in full.
        """
        templates = range(len(TEMPLATES[relation]))
        every = (Saying(relation, subject, k) for subject in self.answers[relation] for k in templates)
        return [saying for saying in every if self.is_held_out(saying) == (split == "heldout")]

    def is_held_out(self, saying: Saying) -> bool:
        if saying.relation in TWO_HOP:
            return saying.subject in self.newcomers
        return saying.template in self.held_out.get(saying.relation, {}).get(saying.subject, ())

    @property
    def fingerprint(self) -> str:
        """sha256 of all that is so in this world, and of the sentences it is told in."""
        return hashlib.sha256(json.dumps([asdict(self), TEMPLATES], sort_keys=True).encode()).hexdigest()


def shuffled(items: Iterable[str], *names: str) -> list[str]:
    """The items in an order given by the sha256 of `names` and item: the same for ever and everywhere."""
    return sorted(items, key=lambda item: hashlib.sha256("/".join((*names, item)).encode()).digest())


@lru_cache(maxsize=1)
def world() -> World:
    """The one world."""
    surnames = shuffled((head + tail for head in words.HEAD for tail in words.TAIL), "surnames")[:SURNAMES]
    names = (f"{first} {surname}" for first in words.FIRST for surname in surnames)
    people = sorted(shuffled(names, "people")[:PEOPLE])
    answers = {relation: _shared_out(people, words.ANSWERS[relation], relation) for relation in PERSON}
    country = _shared_out(CITY, COUNTRY, "in_country")
    answers["in_country"] = country
    answers["capital"] = {n: shuffled((c for c in CITY if country[c] == n), "capital")[0] for n in COUNTRY}
    answers["language"] = _shared_out(COUNTRY, words.LANGUAGE, "language")
    answers["money"] = _shared_out(COUNTRY, words.MONEY, "money")
    answers["birth_country"] = {p: country[answers["born"][p]] for p in people}
    answers["mother_tongue"] = {p: answers["language"][answers["birth_country"][p]] for p in people}
    held_out = {relation: {p: _held_out(relation, p) for p in people} for relation in PERSON}
    return World(tuple(people), answers, held_out, tuple(sorted(shuffled(people, "newcomers")[:NEWCOMERS])))


def _shared_out(subjects: Iterable[str], answers: list[str], relation: str) -> dict[str, str]:
    """Each answer for equally many subjects, up to one."""
    order = shuffled(subjects, relation, "subjects")
    given = {s: answers[i % len(answers)] for i, s in enumerate(order)}
    return {s: given[s] for s in sorted(given)}


def _held_out(relation: str, person: str) -> tuple[int, ...]:
    order = shuffled(map(str, range(len(PERSON[relation]))), "held out", relation, person)
    return tuple(sorted(map(int, order[:HELD_OUT_TEMPLATES])))
