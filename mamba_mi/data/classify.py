"""The seven categories of questions: an ordered table of rules, the first of which that fires puts a question into its category.

A rule counts only where its category is one of the question's own set. Decided here: 8 and 9 facts are Long Context, of which
they are the upper edge; four and more hops are Three-Hop Reasoning.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from mamba_mi.data.pairing import shuffled
from mamba_mi.data.questions import CATEGORIES, Question
from mamba_mi.data.reading import Unusable

SIMPLE, TWO_HOP, THREE_HOP, LONG, COMBINED, STRESS, QUERY = CATEGORIES
CATEGORIES_OF = {
    "squad": (SIMPLE, LONG, STRESS),
    "natural_questions": (LONG, STRESS),
    "hotpotqa": (TWO_HOP, THREE_HOP),
    "triviaqa": (QUERY,),
    "musique": (TWO_HOP, THREE_HOP),
    "drop": (COMBINED,),
}

REASONING = re.compile(r"\b(how (many|much|long|old|far)|more|less|fewer|most|least|first|last|longe\w+|shorte\w+|difference|total|combined|"
                       r"compared?|before|after|between|percent\w*|average)\b", re.I)
CHAIN = re.compile(r"\b(whose|both|same|(of|by|in) the \w+ (of|that|who|which|where)|who (also|later))\b", re.I)
# after a full stop; not after an initial or a title
_ENDS = re.compile(r"(?<!\b[A-Z])(?<!\b(?:Mr|Dr|St|vs|No))(?<!\bMrs)[.!?]+[\"'”’)\]]*\s+|[。！？]")


class Rule(NamedTuple):
    """`when` says in words what `fires` finds out; a heuristic goes by looks, not by what the set itself says."""

    name: str
    when: str
    category: str
    fires: Callable[[Question], bool]
    heuristic: bool = False


RULES = (
    # what a set always is
    Rule("trivia", "TriviaQA, always", QUERY, lambda q: q.source == "triviaqa"),
    Rule("number or date", "DROP, the answer's type is number or date", COMBINED,
         lambda q: q.source == "drop" and q.kind in ("number", "date"), True),
    Rule("reasoning words", "DROP, the question counts or compares in words", COMBINED,
         lambda q: q.source == "drop" and cued(REASONING, q), True),
    Rule("drop", "DROP, always", COMBINED, lambda q: q.source == "drop"),
    # hops the set states
    Rule("3+ hops", "3 hops or more", THREE_HOP, lambda q: within(q.num_hops, 3)),
    Rule("2 hops", "2 hops", TWO_HOP, lambda q: within(q.num_hops, 2, 2)),
    # supporting facts the set states
    Rule("10+ facts", "10 supporting facts or more", STRESS, lambda q: within(q.num_facts, 10)),
    Rule("5-9 facts", "5 to 7 supporting facts, and 8 or 9", LONG, lambda q: within(q.num_facts, 5, 9)),
    Rule("3+ facts", "3 supporting facts or more, where the two rules above do not count", THREE_HOP, lambda q: within(q.num_facts, 3)),
    Rule("2 facts", "2 supporting facts", TWO_HOP, lambda q: within(q.num_facts, 2, 2)),
    # facts that the context tells, a sentence each, then its length
    Rule("10+ sentences", "a context of 10 sentences or more", STRESS, lambda q: within(sentences(q.context), 10), True),
    Rule("5-9 sentences", "a context of 5 to 9 sentences", LONG, lambda q: within(sentences(q.context), 5, 9), True),
    Rule("300+ words", "a context of 300 words or more", STRESS, lambda q: within(words(q.context), 300), True),
    Rule("150-299 words", "a context of 150 to 299 words", LONG, lambda q: within(words(q.context), 150, 299), True),
    # how the question is put
    Rule("chain words", "the question asks for something of something else", TWO_HOP, lambda q: cued(CHAIN, q), True),
    Rule("one fact", "one hop and one fact", SIMPLE, lambda q: within(q.num_hops, 0, 1) and within(q.num_facts, 0, 1)),
)


def within(count: int | None, least: int, most: int | None = None) -> bool:
    """Whether the set states such a count; None is none."""
    return count is not None and least <= count and (most is None or count <= most)


def sentences(text: str) -> int:
    """How many sentences, roughly."""
    return sum(bool(part.strip()) for part in _ENDS.split(text))


def words(text: str) -> int:
    """How many words between white space."""
    return len(text.split())


def cued(cues: re.Pattern, question: Question) -> bool:
    """Whether the question has one of these words."""
    return cues.search(question.question) is not None


def classify(question: Question) -> Question:
    """The question with its category and the rule that put it there; Unusable where no rule of its set's categories fires."""
    mine = CATEGORIES_OF.get(question.source, CATEGORIES)
    found = next((rule for rule in RULES if rule.category in mine and rule.fires(question)), None)
    if found is None:
        raise Unusable(f"no rule for {' or '.join(mine)} fires")
    return replace(question, category=found.category, rule=found.name)


def fill(classified: Mapping[str, Sequence[Question]], target: int, seed: int) -> list[Question]:
    """Up to `target` questions a category, in the order of the categories, of the sets and of the records.

    In a first pass every set that has a category gives an equal share, drawn by the seed; in a second the places left are
    filled in turn by those that have more.
    """
    return [each for category in CATEGORIES for each in _filled(category, classified, target, seed)]


def _filled(category: str, classified: Mapping[str, Sequence[Question]], target: int, seed: int) -> list[Question]:
    left = {name: shuffled([each for each in found if each.category == category], seed, "fill", name, category)
            for name, found in classified.items() if category in CATEGORIES_OF.get(name, CATEGORIES)}
    taken: dict[str, list[Question]] = {name: found[:target // len(left)] for name, found in left.items()}
    left = {name: found[len(taken[name]):] for name, found in left.items()}
    while any(left.values()) and sum(map(len, taken.values())) < target:
        for name in [name for name in left if left[name]][:target - sum(map(len, taken.values()))]:
            taken[name].append(left[name].pop(0))
    return [each for found in taken.values() for each in sorted(found, key=lambda each: each.question_id)]
