"""TriviaQA (Joshi et al. 2017): trivia with many spellings of the answer; without context, as `rc.nocontext` has it.

One hop, one fact. `config=rc` brings pages and search results (16 GB in all): the first of them is the context.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mamba_mi.data.prompt import Dataset
from mamba_mi.data.qa import Choices, Published, answers, dataset
from mamba_mi.data.questions import Question
from mamba_mi.data.reading import Unusable, checked, listed, text_of

PAGES = (("entity_pages", "wiki_context"), ("search_results", "search_context"))
WITHHELD = "<unk>"  # what the test split has for every answer


@dataclass(frozen=True)
class Knobs(Choices):
    """What the hub's copy is called."""

    name: str = "triviaqa"
    hub: str = "mandarjoshi/trivia_qa"
    config: str | None = "rc.nocontext"


def question(record: Mapping) -> Question:
    """The aliases are alternatives; questions with one answer are a cluster, as there is no article."""
    answer = record.get("answer")
    if not isinstance(answer, Mapping):
        raise Unusable("answer is missing")
    value = text_of(answer, "value").strip()
    if value == WITHHELD:
        raise Unusable("no answer is given: the question is unanswerable, or its answer is withheld")
    expected, others = answers([value, *listed(answer, "aliases")], "answer.aliases")
    return Question("", text_of(record, "question").strip(), expected, others, _context(record), num_facts=1, num_hops=1,
                    cluster=str(answer.get("normalized_value") or expected))


def _context(record: Mapping) -> str:
    for outer, inner in PAGES:
        nested = record.get(outer)
        if found := listed(nested, inner) if isinstance(nested, Mapping) else []:
            return checked(found[0], f"{outer}.{inner}", may_be_empty=True).strip()
    return ""


SET = Published("triviaqa", ("question", "answer"), question, streamed=True)


def load(knobs: Knobs, tokenizer, seed: int) -> Dataset:
    """Every usable question of the records read."""
    return dataset(SET, knobs, tokenizer, seed)
