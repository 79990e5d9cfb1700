"""Which prompts an experiment uses: those the model gets right, as many as asked for, and why others were not.

Shape legend: B prompts, L tokens, V vocabulary.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from mamba_mi.config import UserError
from mamba_mi.data import Dataset, Dropped, Pair, Prompt, batches, pair_up

ROUND = 512  # prompts looked at before asking again whether there are enough


@dataclass(frozen=True)
class Selection:
    """The items in use (prompts or pairs), what was dropped and why, and how many candidates were never looked at."""

    items: tuple[Prompt, ...] | tuple[Pair, ...]
    dropped: tuple[Dropped, ...]
    asked: int
    unseen: int

    def reasons(self) -> dict[str, int]:
        """How many were dropped, by reason; the most frequent first."""
        return dict(Counter(_kind(d.why) for d in self.dropped).most_common())


@torch.no_grad()
def top_answers(lm, prompts: Sequence[Prompt], size: int) -> dict[str, int]:
    """The token the model puts first after each prompt, by prompt_id."""
    out = {}
    for batch in batches(prompts, size):
        resid_BLD, _ = lm.through(lm.embed(batch.tokens_BL), keep=False)
        answers = lm.unembed(resid_BLD[:, -1:])[:, 0].argmax(dim=-1).tolist()
        out.update(zip((p.prompt_id for p in batch.prompts), answers))
    return out


def select(lm, dataset: Dataset, *, n: int | None, only_correct: bool, pairs: bool, seed: int, size: int,
           same_template: bool = True, progress: Callable[[int, int], None] | None = None) -> Selection:
    """The first n items (None: all), in the data set's seeded order, that the model gets right (all, unless `only_correct`).

    Prompts are paired by template and layout, or by layout alone.
    """
    n = len(dataset.pairs) or len(dataset.prompts) if n is None else n
    if dataset.pairs:
        selection = _of_pairs(lm, dataset, n, only_correct, size, progress)
    else:
        pair = (lambda prompts: pair_up(prompts, seed=seed, same_template=same_template)) if pairs else None
        selection = _of_prompts(lm, dataset, n, only_correct, pair, size, progress)
    if dataset.pairs and not pairs:
        selection = replace(selection, items=tuple(replace(p.clean, wrong_id=p.corrupt.target_id) for p in selection.items))
    if not selection.items:
        raise UserError(f"dataset={dataset.name}: nothing left to measure ({_summary(selection)}); "
                        + ("dataset.only_correct=false uses prompts the model gets wrong as well" if only_correct
                           else "check the file's contents"))
    return selection


def _of_prompts(lm, dataset, n, only_correct, pair, size, progress) -> Selection:
    usable, wrong, seen = [], [], 0
    items, unpaired = (), []
    while seen < len(dataset.prompts) and len(items) < n:
        fresh = dataset.prompts[seen:seen + (ROUND if only_correct else len(dataset.prompts))]
        seen += len(fresh)
        right, missed = _sift(lm, fresh, size) if only_correct else (fresh, [])
        usable += right
        wrong += missed
        items, unpaired = pair(usable) if pair else (usable, [])
        if progress:
            progress(min(len(items), n), n)
    unpaired = [] if len(items) >= n else unpaired
    return Selection(tuple(items[:n]), (*dataset.dropped, *wrong, *unpaired), n, len(dataset.prompts) - seen)


def _of_pairs(lm, dataset, n, only_correct, size, progress) -> Selection:
    if not only_correct:
        return Selection(dataset.pairs[:n], dataset.dropped, n, max(0, len(dataset.pairs) - n))
    items, dropped, seen = [], list(dataset.dropped), 0
    while seen < len(dataset.pairs) and len(items) < n:
        fresh = dataset.pairs[seen:seen + ROUND]
        seen += len(fresh)
        missed = {}
        for side in ("clean", "corrupt"):
            # a corrupt prompt may serve several pairs: it is looked at under its pair's id
            prompts = {pair.clean.prompt_id: getattr(pair, side) for pair in fresh}
            answers = _answers(lm, prompts, size)
            missed |= {i: Dropped(i, p.text, f"{side} {_wrong(lm, answers[i], p)}") for i, p in prompts.items()
                       if answers[i] != p.target_id and i not in missed}
        items += [pair for pair in fresh if pair.clean.prompt_id not in missed]
        dropped += missed.values()
        if progress:
            progress(min(len(items), n), n)
    return Selection(tuple(items[:n]), tuple(dropped), n, len(dataset.pairs) - seen)


def _answers(lm, prompts, size) -> dict[str, int]:
    found = top_answers(lm, list({p.prompt_id: p for p in prompts.values()}.values()), size)
    return {i: found[p.prompt_id] for i, p in prompts.items()}


def _sift(lm, prompts, size) -> tuple[list[Prompt], list[Dropped]]:
    answers = top_answers(lm, prompts, size)
    right = [p for p in prompts if answers[p.prompt_id] == p.target_id]
    wrong = [Dropped(p.prompt_id, p.text, f"prompt {_wrong(lm, answers[p.prompt_id], p)}")
             for p in prompts if answers[p.prompt_id] != p.target_id]
    return right, wrong


def _wrong(lm, answer: int, prompt: Prompt) -> str:
    said = repr(lm.tokenizer.decode([answer])) if lm.tokenizer is not None else f"token {answer}"
    return f"not answered rightly: the model says {said}, the answer is {prompt.target!r}"


def _kind(why: str) -> str:
    """The reason without what is particular to the prompt: up to the first colon."""
    return why.partition(":")[0]


def _summary(selection: Selection) -> str:
    return ", ".join(f"{count} {why}" for why, count in selection.reasons().items()) or "the data set is empty"
