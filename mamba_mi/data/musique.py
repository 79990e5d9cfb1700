"""MuSiQue (Trivedi et al. 2022): a question composed of two to four single-hop questions over twenty paragraphs.

Hops are the steps of the decomposition, or where there is none what the id says (2hop__…, 3hop1__…); facts are the
supporting paragraphs. The full set has a twin without the answer for every question: it is dropped.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mamba_mi.data.prompt import Dataset
from mamba_mi.data.qa import Choices, Published, answers, column, dataset
from mamba_mi.data.questions import Question
from mamba_mi.data.reading import Unusable, checked, listed, text_of


@dataclass(frozen=True)
class Knobs(Choices):
    """What the hub's copy is called."""

    name: str = "musique"
    hub: str = "dgslibisey/MuSiQue"


def question(record: Mapping) -> Question:
    """Every paragraph is context; the article that the last step is answered from is the cluster."""
    if record.get("answerable") is False:
        raise Unusable("no answer is given: the question is unanswerable, or its answer is withheld")
    titles = [str(title or "") for title in column(record, "paragraphs", "title")]
    texts = [checked(text, "paragraphs.paragraph_text", may_be_empty=True).strip() for text in column(record, "paragraphs", "paragraph_text")]
    supporting = [i for i, supports in enumerate(column(record, "paragraphs", "is_supporting")) if supports]
    expected, others = answers([text_of(record, "answer"), *listed(record, "answer_aliases")], "answer_aliases")
    last = _last_step(record, len(titles)) if record.get("question_decomposition") else None
    at = last if last is not None else supporting[-1] if supporting else None
    return Question("", text_of(record, "question").strip(), expected, others,
                    "\n".join(f"{title}: {text}" if title else text for title, text in zip(titles, texts, strict=True)),
                    num_facts=len(supporting) or None, num_hops=_hops(record),
                    supporting_facts=tuple(texts[i] for i in supporting), cluster="" if at is None else titles[at])


def _hops(record: Mapping) -> int | None:
    if record.get("question_decomposition"):
        return len(column(record, "question_decomposition", "question"))
    said = re.match(r"(\d)hop\d*__", str(record.get("id") or ""))
    return int(said[1]) if said else None


def _last_step(record: Mapping, paragraphs: int) -> int | None:
    at = column(record, "question_decomposition", "paragraph_support_idx")[-1]
    return at if isinstance(at, int) and 0 <= at < paragraphs else None


SET = Published("musique", ("question", "answer", "paragraphs"), question)


def load(knobs: Knobs, tokenizer, seed: int) -> Dataset:
    """Every usable question of the records read."""
    return dataset(SET, knobs, tokenizer, seed)
