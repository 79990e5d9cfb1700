"""Prompts made by rule: six levels, from one fact recalled to a question over ten and more.

A prompt of the lexicon "english" is question, facts, question, for a model with a real tokenizer. One of "world" is in
the few words that the embedded models can read, and says only what can be said in them. Each comes with its corrupted
partner: the same template, one fact changed, another answer.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence

from mamba_mi.config import UserError, stream
from mamba_mi.data.facts import vocabulary
from mamba_mi.data.facts.tasks import Draw
from mamba_mi.data.generation import english, world_words
from mamba_mi.data.generation.draft import Draft, Generated, finished
from mamba_mi.data.generation.originals import ORIGINALS
from mamba_mi.data.questions import CATEGORIES

LEVELS = dict(zip(("simple_recall", "two_hop", "three_hop", "long_context", "combined", "stress_test"), CATEGORIES))
MAKERS = {"english": english.MAKERS, "world": world_words.MAKERS}
TRIES = 200  # draws for one new prompt, before a level counts as used up


def lexicon_of(tokenizer) -> str:
    """The words that a model with this tokenizer reads."""
    return "world" if tokenizer is not None and tokenizer.get_vocab() == vocabulary() else "english"


def left_out(lexicon: str, levels: Iterable[str]) -> dict[str, str]:
    """The levels that cannot be said in these words, and why not."""
    return {level: why for level, why in world_words.UNSAYABLE.items() if lexicon == "world" and level in levels}


def generate(lexicon: str, levels: Sequence[str], per_level: int, seed: int, key: str = "per_level") -> list[Generated]:
    """`per_level` prompts of each level that can be said, the hand-written ones first; no text is there twice.

    A level's prompts depend on the seed and the lexicon alone: of another per_level they are the beginning. `key` is what an
    error calls the setting of `per_level`.
    """
    made = [item for level in levels if level in MAKERS[lexicon] for item in _level(lexicon, level, per_level, seed, key)]
    texts = [item.question.prompt for item in made]
    if len(set(texts)) < len(texts):
        raise RuntimeError(f"lexicon {lexicon}, seed {seed}: two levels made the same prompt")
    return made


def _level(lexicon: str, level: str, per_level: int, seed: int, key: str) -> list[Generated]:
    originals = ORIGINALS[level][:per_level] if lexicon == "english" else ()
    made = [finished(draft, f"{lexicon}-{level}-original-{number}", LEVELS[level], lexicon, is_original=True)
            for number, draft in enumerate(originals)]
    seen = {item.question.prompt for item in made}
    draw = Draw(stream(seed, "generated", lexicon, level))
    while len(made) < per_level:
        draft = _new(draw, MAKERS[lexicon][level], seen)
        if draft is None:
            raise UserError(f"{key}={per_level}: the words of lexicon={lexicon} gave {len(made)} different prompts of "
                            f"{level}; ask for no more than that")
        made.append(finished(draft, f"{lexicon}-{level}-s{seed}-{len(made):03d}", LEVELS[level], lexicon))
        seen.add(made[-1].question.prompt)
    return made


def _new(draw: Draw, makers, seen: set[str]) -> Draft | None:
    for _ in range(TRIES):
        draft = draw.one_of(makers)(draw)
        if draft.clean_prompt not in seen:
            return draft
    return None
