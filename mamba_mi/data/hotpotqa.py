"""HotpotQA (Yang et al. 2018): a question over two of ten paragraphs; the hub's parquet, or the authors' raw JSON.

A bridge is two hops. A comparison sets two facts side by side and has no hops to count. Facts are the distinct supporting
sentences: `len` of the published dict, which a known loader takes, is always 2.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mamba_mi.data.prompt import Dataset
from mamba_mi.data.qa import Choices, Published, dataset, rows
from mamba_mi.data.questions import Question
from mamba_mi.data.reading import Unusable, checked, text_of


@dataclass(frozen=True)
class Knobs(Choices):
    """What the hub's copy is called."""

    name: str = "hotpotqa"
    hub: str = "hotpotqa/hotpot_qa"
    config: str | None = "distractor"


def question(record: Mapping) -> Question:
    """Every paragraph is context, distractors too; the first supporting article is the cluster."""
    kind = str(record.get("type") or "")
    paragraphs = [(checked(title, "context.title"), sentences) for title, sentences in rows(record, "context", "title", "sentences")]
    if not all(isinstance(sentences, list) for _, sentences in paragraphs):
        raise Unusable("context.sentences is not a list of sentences")
    facts = [(str(title), at) for title, at in rows(record, "supporting_facts", "title", "sent_id")]
    if not all(isinstance(at, int) for _, at in facts):
        raise Unusable("supporting_facts.sent_id is not a number")
    supporting = list(dict.fromkeys(facts))
    told = {(title, at): checked(text, "context.sentences", may_be_empty=True).strip()
            for title, sentences in paragraphs for at, text in enumerate(sentences)}
    context = "\n".join(f"{title}: {' '.join(told[title, at] for at in range(len(sentences)))}" for title, sentences in paragraphs)
    return Question("", text_of(record, "question").strip(), text_of(record, "answer").strip(), (), context,
                    num_facts=len(supporting) or None, num_hops=2 if kind == "bridge" else None,
                    supporting_facts=tuple(filter(None, (told.get(fact, "") for fact in supporting))),  # some sent_id lead nowhere
                    cluster=supporting[0][0] if supporting else "", kind=kind)


SET = Published("hotpotqa", ("question", "answer", "context", "supporting_facts"), question)


def load(knobs: Knobs, tokenizer, seed: int) -> Dataset:
    """Every usable question of the records read."""
    return dataset(SET, knobs, tokenizer, seed)
