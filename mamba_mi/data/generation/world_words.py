"""The levels in the words of the embedded world: what a small model that knows no other word can be asked.

People are asked for in the world's own sentences. Facts that only the prompt tells are pairs of key and value, things in
boxes, and the words of a list, in the form the models were trained on; ten pairs and more are beyond what training had.
"""
from __future__ import annotations

from functools import lru_cache, partial

from mamba_mi.data.facts import words as W
from mamba_mi.data.facts.tasks import Draw
from mamba_mi.data.facts.vocabulary import BOS, PAIRS, REPEAT, STOP
from mamba_mi.data.facts.world import Saying, world
from mamba_mi.data.generation.draft import Draft

UNSAYABLE = {"combined": "the embedded world has no numbers, sums or comparisons to reason with"}


def of_a_person(draw: Draw, relations: tuple[str, ...], facts: int) -> Draft:
    """A held-out saying, up to its answer: what it follows from was told in training, not in the prompt. The changed words
    are the person."""
    relation = draw.one_of(relations)
    saying = draw.one_of(_held_out(relation))
    others = [other for other in _held_out(relation) if other.template == saying.template
              and world().answer(other) != world().answer(saying)]
    other = draw.one_of(others)
    person = f"[{saying.subject}|{other.subject}]"
    before, after = saying.parts
    return Draft(f"{relation} of a person", f"{before}{person}{after}", "", world().answer(saying), world().answer(other),
                 _from(relation, saying), 0, facts, prompt=f"{BOS} {before}{person}{after}", cluster=person)


@lru_cache
def _held_out(relation: str) -> list[Saying]:
    return world().sayings(relation, "heldout")


def _from(relation: str, saying: Saying) -> tuple[str, ...]:
    """The facts of the world that the answer follows from."""
    known = world().answers
    if relation in W.PERSON:
        return (f"{saying.subject} {relation} {known[relation][saying.subject]}",)
    town = known["born"][saying.subject]
    country = known["in_country"][town]
    chain = (f"{saying.subject} born {town}", f"{town} in_country {country}")
    return chain if relation == "birth_country" else (*chain, f"{country} language {known['language'][country]}")


def of_pairs(draw: Draw, least: int, most: int) -> Draft:
    """A key's value among that many pairs; the changed word is the value."""
    number = draw.between(least, most)
    keys, (right, new, *others) = draw.some_of(W.KEYS, number), draw.some_of(W.VALUES, len(W.VALUES))
    asked = draw.below(number)
    values = [draw.one_of(others) for _ in keys]
    values[asked] = f"[{right}|{new}]"
    told = tuple(f"{key} {value}" for key, value in zip(keys, values))
    return _told("pairs", PAIRS, " ".join(told), keys[asked], right, new, (told[asked],), number)


def of_boxes(draw: Draw, least: int, most: int) -> Draft:
    """Which thing is in a box, of that many."""
    number = draw.between(least, most)
    colours, (right, new, *others) = draw.some_of(W.COLOUR, number), draw.some_of(W.OBJECT, len(W.OBJECT))
    asked = draw.below(number)
    things = others[:number]
    things[asked] = f"[{right}|{new}]"
    told = tuple(f"{W.BOX.format(C=colour, A=thing)} {STOP}" for colour, thing in zip(colours, things))
    question = W.BOX.format(C=colours[asked], A="").strip()
    return _told("boxes", BOS, " ".join(told), question, right, new, (told[asked],), number)


def of_a_list(draw: Draw, least: int, most: int) -> Draft:
    """The word of a list that comes next in its second copy."""
    number = draw.between(least, most)
    *words, new = draw.some_of([*W.OBJECT, *W.COLOUR], number + 1)
    asked = draw.between(2, number - 1)
    right, question = words[asked], " ".join(words[:asked])
    words[asked] = f"[{right}|{new}]"
    return _told("list", REPEAT, " ".join(words), question, right, new, (" ".join(words[asked - 1:asked + 1]),), number)


def _told(kind: str, mark: str, context: str, question: str, right: str, new: str, needed: tuple[str, ...], facts: int) -> Draft:
    return Draft(kind, question, context, right, new, needed, facts, 1, prompt=f"{mark} {context} {question}")


MAKERS = {
    "simple_recall": (partial(of_a_person, relations=tuple(W.PERSON), facts=1),),
    "two_hop": (partial(of_a_person, relations=("birth_country",), facts=2),),
    "three_hop": (partial(of_a_person, relations=("mother_tongue",), facts=3),),
    "long_context": tuple(partial(of, least=5, most=7) for of in (of_pairs, of_boxes)),
    "stress_test": (partial(of_pairs, least=10, most=14), partial(of_a_list, least=10, most=16)),
}
