"""Natural Questions (Kwiatkowski et al. 2019): what people asked a search engine, answered from a Wikipedia page.

One hop, one fact. The context is the long answer, a passage of the page. Start and end count the page's tokens, HTML tags
among them, not characters; tags are left out of every text. A candidate_index of -1 is no answer.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mamba_mi.data.prompt import Dataset
from mamba_mi.data.qa import Choices, Published, answers, dataset, rows
from mamba_mi.data.questions import Question
from mamba_mi.data.reading import Unusable, checked, text_of

YES_NO = {0: "no", 1: "yes"}  # -1: neither


@dataclass(frozen=True)
class Knobs(Choices):
    """What the hub's copy is called."""

    name: str = "natural_questions"
    hub: str = "google-research-datasets/natural_questions"
    config: str | None = "dev"


class _Annotation(NamedTuple):
    long: Mapping
    short: Mapping
    yes_no: int


def question(record: Mapping) -> Question:
    """The first annotator's answer and passage; other spans and other annotators' answers are alternatives."""
    asked, page = record.get("question"), record.get("document")
    if not isinstance(asked, Mapping) or not isinstance(page, Mapping):
        raise Unusable("question.text or document.tokens is missing")
    tokens = [None if is_html else token for token, is_html in rows(page, "tokens", "token", "is_html")]
    told = [(each, found) for each in _annotations(record) if (found := _short(each, tokens))]
    if not told:
        raise Unusable(_why_none(record))
    expected, others = answers([text for _, found in told for text in found], "short_answers")
    passage = next((text for each, _ in told if (text := _passage(each, tokens))), "")
    return Question("", text_of(asked, "text").strip(), expected, others, passage, num_facts=1, num_hops=1,
                    cluster=str(page.get("title") or ""))


def _annotations(record: Mapping) -> list[_Annotation]:
    found = [_Annotation(*each) for each in rows(record, "annotations", "long_answer", "short_answers", "yes_no_answer")]
    if not all(isinstance(each.long, Mapping) and isinstance(each.long.get("candidate_index"), int) for each in found):
        raise Unusable("annotations.long_answer is missing")
    return found


def _short(each: _Annotation, tokens: Sequence[str | None]) -> list[str]:
    """Its short answers as text, or its yes or no."""
    if isinstance(each.yes_no, int) and each.yes_no in YES_NO:
        return [YES_NO[each.yes_no]]
    spans = rows({"short_answers": each.short}, "short_answers", "start_token", "end_token")
    return list(filter(None, (_text(tokens, *span) for span in spans)))


def _passage(each: _Annotation, tokens: Sequence[str | None]) -> str:
    return "" if each.long["candidate_index"] < 0 else _text(tokens, each.long.get("start_token"), each.long.get("end_token"))


def _text(tokens: Sequence[str | None], start: object, end: object) -> str:
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(tokens)):
        raise Unusable("an answer's tokens lie outside the page")
    return " ".join(checked(token, "document.tokens.token", may_be_empty=True) for token in tokens[start:end] if token)


def _why_none(record: Mapping) -> str:
    if any(each.long["candidate_index"] >= 0 for each in _annotations(record)):
        return "only a long answer is given"
    return "no answer is given: the question is unanswerable, or its answer is withheld"


SET = Published("natural_questions", ("question", "document", "annotations"), question, streamed=True)


def load(knobs: Knobs, tokenizer, seed: int) -> Dataset:
    """Every usable question of the records read."""
    return dataset(SET, knobs, tokenizer, seed)
