"""DROP (Dua et al. 2019): questions that count, subtract and compare over a passage.

Hops and facts are not published. `kind` is the answer's type: number, date or span. Several different spans may be one
answer in parts or several annotators' answers: the files do not say, so such a record is dropped.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mamba_mi.data.prompt import Dataset
from mamba_mi.data.qa import Choices, Published, answers, dataset, rows
from mamba_mi.data.questions import Question
from mamba_mi.data.reading import Unusable, text_of


@dataclass(frozen=True)
class Knobs(Choices):
    """What the hub's copy is called."""

    name: str = "drop"
    hub: str = "ucinlp/drop"


def question(record: Mapping) -> Question:
    """Questions about one passage are a cluster."""
    found = rows(record, "answers_spans", "spans", "types")
    expected, others = answers([text for text, _ in found], "answers_spans.spans")
    if len({str(text).strip() for text, kind in found if kind == "span"}) > 1:
        raise Unusable("several different spans: whether they are one answer or several is not published")
    return Question("", text_of(record, "question").strip(), expected, others, text_of(record, "passage", may_be_empty=True).strip(),
                    cluster=str(record.get("section_id") or ""), kind=str(found[0][1] or ""))


SET = Published("drop", ("question", "passage", "answers_spans"), question)


def load(knobs: Knobs, tokenizer, seed: int) -> Dataset:
    """Every usable question of the records read."""
    return dataset(SET, knobs, tokenizer, seed)
