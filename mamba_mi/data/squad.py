"""SQuAD (Rajpurkar et al. 2016): a question about one paragraph, answered by a stretch of it.

One hop, one fact. Files in the shape of SQuAD 2.0 are read too: a question without an answer is dropped.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mamba_mi.data.prompt import Dataset
from mamba_mi.data.qa import Choices, Published, answers, column, dataset
from mamba_mi.data.questions import Question
from mamba_mi.data.reading import text_of


@dataclass(frozen=True)
class Knobs(Choices):
    """What the hub's copy is called."""

    name: str = "squad"
    hub: str = "rajpurkar/squad"
    config: str | None = "plain_text"


def question(record: Mapping) -> Question:
    """The annotators' different answers are alternatives; questions of one article are a cluster."""
    expected, others = answers(column(record, "answers", "text"), "answers.text")
    return Question("", text_of(record, "question").strip(), expected, others, text_of(record, "context", may_be_empty=True).strip(),
                    num_facts=1, num_hops=1, cluster=str(record.get("title") or ""))


SET = Published("squad", ("question", "context", "answers"), question)


def load(knobs: Knobs, tokenizer, seed: int) -> Dataset:
    """Every usable question of the records read."""
    return dataset(SET, knobs, tokenizer, seed)
