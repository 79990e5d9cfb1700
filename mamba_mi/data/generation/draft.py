"""One generated prompt and its corrupted partner: written once, with the words that differ as [clean|corrupt]."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from mamba_mi.data.facts.tasks import Draw
from mamba_mi.data.questions import Question, asked, of_record
from mamba_mi.data.reading import Unusable, checked, listed, text_of

_MARK = re.compile(r"\[([^|\]]+)\|([^|\]]+)\]")
_OWN = ("expected", "alternatives", "context", "supporting_facts", "question", "prompt", "cluster")  # what a partner has of its own


class Draft(NamedTuple):
    """What a maker gives. `needed` are the facts the answer follows from, `facts` how many are told, `forms` other ways to
    put the answer ("a {A}"); `prompt` is what is read where it is not question, facts, question."""

    pattern: str
    question: str
    context: str
    answer: str
    wrong: str
    needed: tuple[str, ...]
    facts: int
    hops: int | None = None
    forms: tuple[str, ...] = ()
    prompt: str = ""
    cluster: str = ""

    @property
    def marked(self) -> str:
        return self.prompt or asked(self.question, self.context)

    @property
    def clean_prompt(self) -> str:
        return unmarked(self.marked, 0)


@dataclass(frozen=True)
class Generated:
    """A question and the same with one fact changed. `subject` is where the changed words stand in the prompt, in
    characters, `corrupt_subject` where their replacement stands in the partner's."""

    question: Question
    corrupt: Question
    subject: tuple[int, int]
    corrupt_subject: tuple[int, int]
    lexicon: str
    pattern: str
    is_original: bool

    def record(self) -> dict:
        """The question's record, for whoever wants no more, and what else there is."""
        partner = self.corrupt.record()
        return self.question.record() | {
            "lexicon": self.lexicon, "pattern": self.pattern, "is_original": self.is_original, "subject": list(self.subject),
            "corrupt": {key: partner[key] for key in _OWN} | {"subject": list(self.corrupt_subject)}}


def read(record: Mapping) -> Generated:
    """What `Generated.record` wrote."""
    partner = record.get("corrupt")
    if not isinstance(partner, Mapping) or not {"expected", "prompt", "subject"} <= set(partner):
        raise Unusable("it has no corrupted partner")
    _check(record)
    _check({**record, **partner})
    try:
        question = of_record(record)
        own = {key: tuple(value) if isinstance(value, list) else value for key, value in partner.items() if key in _OWN}
        return Generated(question, replace(question, **own), tuple(record["subject"]), tuple(partner["subject"]),
                         str(record["lexicon"]), str(record["pattern"]), bool(record["is_original"]))
    except (KeyError, TypeError):
        raise Unusable("a key of a generated prompt is missing") from None


def _check(side: Mapping) -> None:
    """Unusable where what a side says is not what it should be."""
    for name in ("expected", "prompt"):
        text_of(side, name)
    for name in ("question", "context", "cluster", "pattern"):
        text_of(side, name, may_be_empty=True)
    for name in ("alternatives", "supporting_facts"):
        for each in listed(side, name):
            checked(each, name)
    span = listed(side, "subject")
    if len(span) != 2 or not all(type(at) is int for at in span) or not 0 <= span[0] < span[1] <= len(side["prompt"]):
        raise Unusable("subject is not [start, end] within the prompt's characters")


def finished(draft: Draft, question_id: str, category: str, lexicon: str, *, is_original: bool = False) -> Generated:
    """Both sides of a draft."""
    sides = [_side(draft, side, question_id, category) for side in (0, 1)]
    mark = _MARK.search(draft.marked)
    spans = [(mark.start(), mark.start() + len(mark[side + 1])) for side in (0, 1)]
    return Generated(*sides, *spans, lexicon, draft.pattern, is_original)


def unmarked(text: str, side: int) -> str:
    """The clean text (0) or the corrupted one (1)."""
    return _MARK.sub(lambda mark: mark[side + 1], text)


def _side(draft: Draft, side: int, question_id: str, category: str) -> Question:
    answer = (draft.answer, draft.wrong)[side]
    return Question(
        question_id, unmarked(draft.question, side), answer, tuple(form.format(A=answer) for form in draft.forms),
        unmarked(draft.context, side), "generated", draft.facts, draft.hops,
        tuple(unmarked(fact, side) for fact in draft.needed) if not side else (), category, "made for it",
        unmarked(draft.cluster, side) or question_id, unmarked(draft.prompt, side))


def mixed(draw: Draw, needed: Sequence[str], beside: Sequence[str]) -> str:
    """The facts as they are told: the needed ones in their order, the others anywhere."""
    number = len(needed) + len(beside)
    places = set(draw.some_of(range(number), len(needed)))
    chain, others = iter(needed), iter(beside)
    return " ".join(next(chain if i in places else others) for i in range(number))
