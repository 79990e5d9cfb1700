"""The embedded world of facts as a data set: prompts that end just before the answer.

`dataset=facts` asks a model for facts in words it was never told them in; `relations=[birth_country]` for
what follows from two facts, of people of whom that was never said; `relations=mqar8` for what stands in the prompt.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mamba_mi.config import UserError, did_you_mean, several, stream
from mamba_mi.data.encoding import bos_ids
from mamba_mi.data.facts.tasks import IN_CONTEXT, in_context
from mamba_mi.data.facts.vocabulary import tokenizer, vocabulary
from mamba_mi.data.facts.words import PERSON, TEMPLATES
from mamba_mi.data.facts.world import Saying, World, world
from mamba_mi.data.prompt import Dataset, Prompt

__all__ = ["Knobs", "World", "load", "prompts", "tokenizer", "vocabulary", "world"]
SPLITS = ("heldout", "train")
DRAWN = 1024  # candidates of an in-context task


@dataclass(frozen=True)
class Knobs:
    """`relations` is "all" (the four about people), one name, or a list; an in-context task counts as one, drawn from the
    seed, without split or BOS. The models were trained with BOS."""

    name: str = "facts"
    n: int | None = 128
    only_correct: bool = True
    split: str = "heldout"
    relations: Any = "all"
    bos: bool = True


def load(knobs: Knobs, tokenizer, seed: int) -> Dataset:
    """Every prompt of the split, in an order drawn from the seed."""
    if knobs.split not in SPLITS:
        raise UserError(f"dataset.split={knobs.split}: there are {', '.join(SPLITS)}"
                        f"{did_you_mean(knobs.split, SPLITS)}")
    _check(tokenizer)
    relations = several(knobs.relations, (*TEMPLATES, *IN_CONTEXT), "dataset.relations", whole=PERSON)
    sayings = [saying for relation in relations if relation in TEMPLATES
               for saying in world().sayings(relation, knobs.split)]
    made = prompts(sayings, tokenizer, knobs.bos) if sayings else []
    made += [prompt for task in relations if task in IN_CONTEXT for prompt in in_context(task, DRAWN, seed)]
    if not made:
        raise UserError(f"dataset.relations={knobs.relations}: nothing of it is held out; dataset.split=train "
                        "asks for what the model was told")
    order = torch.randperm(len(made), generator=stream(seed, "facts")).tolist()
    return Dataset("facts", tuple(made[i] for i in order), world().fingerprint)


def prompts(sayings: list[Saying], tokenizer, bos: bool = True) -> list[Prompt]:
    """What is said, up to the answer, with the subject's tokens found by their characters."""
    texts = [f"{before}{s.subject}{after}" for s in sayings for before, after in [s.parts]]
    encoded = tokenizer(texts, return_offsets_mapping=True, add_special_tokens=False)
    rows = zip(sayings, texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    before = bos_ids(tokenizer, bos)
    return [_prompt(*row, before) for row in rows]


def _prompt(saying: Saying, text: str, ids: list[int], offsets: list[tuple[int, int]], bos: tuple[int, ...]) -> Prompt:
    start = len(saying.parts[0])
    inside = [i for i, (a, b) in enumerate(offsets) if a < start + len(saying.subject) and b > start]
    shift = len(bos)
    spans = {"subject": (inside[0] + shift, inside[-1] + 1 + shift)}
    target = world().answer(saying)
    target_id = vocabulary()[target]
    template = f"{saying.relation}-{saying.template}"
    spans = {"bos": (0, shift), **spans} if bos else spans
    return Prompt(f"{template}-{saying.subject.replace(' ', '-')}", text, (*bos, *ids), target, target_id, spans,
                  (target_id,), saying.subject, template, vocabulary()[_wrong(saying.relation, target)])


def _wrong(relation: str, answer: str) -> str:
    """Another answer that the relation gives: the next in the alphabet."""
    known = sorted(set(world().answers[relation].values()))
    return known[(known.index(answer) + 1) % len(known)]


def _check(tokenizer) -> None:
    if tokenizer is None or tokenizer.get_vocab() != vocabulary():
        what = "came without a tokenizer" if tokenizer is None else "has another vocabulary"
        raise UserError("dataset=facts is about made-up people whom only the embedded models know, and this model "
                        f"{what}; give model=tiny, or another dataset")
