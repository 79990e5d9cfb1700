"""The levels in plain English: chains of facts about people and things, told one after another among others.

Words are short and common, one token each for GPT-NeoX's tokenizer with few exceptions, so that both sides of a pair
mostly have as many. Names, cities and numbers are drawn anew for every prompt: nothing is known but from the prompt.
"""
from __future__ import annotations

from functools import partial
from typing import NamedTuple

from mamba_mi.data.facts.tasks import Draw
from mamba_mi.data.generation import reckoning
from mamba_mi.data.generation.draft import Draft, mixed
from mamba_mi.data.generation.words import BUILDINGS, HOLDERS, LINKS, NAMES, ROOMS, THINGS


class Relation(NamedTuple):
    """What can be told of one person in one sentence, and asked for."""

    fact: str
    question: str
    values: tuple[str, ...]
    forms: tuple[str, ...] = ()


def _relation(fact: str, question: str, values: str, *forms: str) -> Relation:
    return Relation(fact, question, tuple(values.split()), forms)


RELATIONS = (
    _relation("{S} lives in {A}.", "Where does {S} live?",
              "Paris London Rome Berlin Madrid Vienna Oslo Tokyo Boston Chicago Dublin Lisbon Athens Moscow Toronto Sydney", "in {A}"),
    _relation("{S} works as a {A}.", "What does {S} work as?",
              "doctor teacher lawyer nurse farmer cook pilot writer painter driver judge singer butcher guard clerk", "a {A}"),
    _relation("{S} likes the colour {A}.", "Which colour does {S} like?",
              "red blue green black white yellow brown purple orange pink grey gold silver"),
    _relation("{S} has a {A}.", "Which animal does {S} have?",
              "dog cat horse bird rabbit fish snake mouse pig goat duck turtle cow sheep", "a {A}"),
    _relation("{S} plays the {A}.", "Which instrument does {S} play?", "piano guitar violin drum organ bass horn", "the {A}"),
    _relation("{S} drinks {A}.", "What does {S} drink?", "tea coffee milk water juice beer wine soup cocoa"),
)
PLACED = "The {S} is in the {A}."


def of_people(draw: Draw, hops: int, least: int, most: int) -> Draft:
    """A chain from a person over others to what is told of the last of them, among other facts.

    One other person is told of in the same way; the changed fact is what is told at the chain's end, or, of two hops and
    more, who comes last in it.
    """
    number, relation = draw.between(least, most), draw.one_of(RELATIONS)
    people = draw.some_of(NAMES, len(NAMES))
    chain, lure, others = people[:hops], people[hops], people[hops + 1:]
    right, wrong, new, *rest = draw.some_of(relation.values, len(relation.values))
    links = draw.some_of(LINKS, hops - 1)
    bridged = hops > 1 and draw.below(2) == 1
    told = [f"The {link} of {a} is {b}." for link, a, b in zip(links, chain, chain[1:])]
    last = relation.fact.format(S=chain[-1], A=right if bridged else f"[{right}|{new}]")
    if bridged:
        told[-1] = f"The {links[-1]} of {chain[-2]} is [{chain[-1]}|{lure}]."
    needed = (*told, last)
    beside = [relation.fact.format(S=lure, A=wrong)]
    beside += _others(draw, number - hops - 1, relation, chain, lure, others, rest)
    asked = chain[0]
    for link in links:
        asked = f"the {link} of {asked}"
    return Draft(f"people, {hops} hop{'s' * (hops > 1)}", relation.question.format(S=asked), mixed(draw, needed, beside), right,
                 wrong if bridged else new, needed, number, hops, relation.forms)


def _others(draw: Draw, number: int, relation: Relation, chain, lure, others, rest) -> list[str]:
    """Facts that the answer does not follow from: of those in the chain but its end in all relations but the asked one, of the
    others in any; no person has two values of a relation, no value two persons."""
    free = {each: list(rest) if each is relation else draw.some_of(each.values, len(each.values)) for each in RELATIONS}
    crowd = [*chain, lure, *others[:max(2, number // 3)]]
    cells = [(person, each) for person in crowd for each in RELATIONS
             if not (each is relation and person in (*chain, lure))]
    picked = draw.some_of(cells, len(cells))
    facts = [each.fact.format(S=person, A=free[each].pop()) for person, each in picked if free[each]]
    return facts[:number]


def of_things(draw: Draw, hops: int, least: int, most: int) -> Draft:
    """Where a thing is: in a room, in something in a room, or in something in a room of a building."""
    number = draw.between(least, most)
    kinds = [THINGS, *((HOLDERS,) if hops > 1 else ()), ROOMS, *((BUILDINGS,) if hops > 2 else ())]
    shuffled = [draw.some_of(words, len(words)) for words in kinds]
    right, lure = ([words[i] for words in shuffled] for i in (0, 1))
    bridged = hops > 1 and draw.below(2) == 1
    new = shuffled[-1][2]
    needed = [PLACED.format(S=a, A=b) for a, b in zip(right, right[1:])]
    beside = [PLACED.format(S=lure[-2], A=lure[-1])]
    if bridged:
        needed[-2] = PLACED.format(S=right[-3], A=f"[{right[-2]}|{lure[-2]}]")
    else:
        needed[-1] = PLACED.format(S=right[-2], A=f"[{right[-1]}|{new}]")
    elsewhere = draw.some_of(HOLDERS, len(HOLDERS)) if hops > 1 else shuffled[-1][3:]
    beside += [PLACED.format(S=a, A=b) for a, b in zip(shuffled[0][2:], elsewhere)][:number - hops - 1]
    kind = "building" if hops > 2 else "room"
    return Draft(f"things, {hops} hop{'s' * (hops > 1)}", f"In which {kind} is the {right[0]}?", mixed(draw, needed, beside), right[-1],
                 lure[-1] if bridged else new, tuple(needed), number, hops, ("the {A}", "in the {A}"))


MAKERS = {
    "simple_recall": tuple(partial(of, hops=1, least=2, most=4) for of in (of_people, of_people, of_things)),
    "two_hop": tuple(partial(of, hops=2, least=3, most=4) for of in (of_people, of_people, of_things)),
    "three_hop": tuple(partial(of, hops=3, least=4, most=4) for of in (of_people, of_people, of_things)),
    "long_context": tuple(partial(of, hops=1, least=5, most=7) for of in (of_people, of_people, of_things)),
    "combined": reckoning.MAKERS,
    "stress_test": tuple(partial(of_people, hops=hops, least=10, most=14) for hops in (1, 2)),
}
