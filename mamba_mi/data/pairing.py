"""A corrupted partner for every prompt, from the prompts themselves."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from mamba_mi.config import UserError, stream
from mamba_mi.data.prompt import Dataset, Dropped, Pair, Prompt

Item = TypeVar("Item")


def shuffled(items: Sequence[Item], seed: int, *names: object) -> list[Item]:
    """The items in the order drawn from stream(seed, *names)."""
    import torch

    return [items[i] for i in torch.randperm(len(items), generator=stream(seed, *names)).tolist()]


def divide(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """The data set in two halves that share no subject: one to fit on, one to measure on.

    Pairs with a subject in each half are dropped.
    """
    clusters = sorted({p.cluster or p.prompt_id for p in (*dataset.prompts, *(pair.clean for pair in dataset.pairs))})
    if len(clusters) < 2:
        raise UserError(f"dataset={dataset.name}: all prompts share one subject, so none is left to fit on; "
                        "method.subspace=null needs no fit")
    fitted = set(shuffled(clusters, seed, "halves")[:len(clusters) // 2])

    def half(wanted: bool) -> Dataset:
        mine = lambda prompt: ((prompt.cluster or prompt.prompt_id) in fitted) == wanted  # noqa: E731
        torn = tuple(Dropped(pair.clean.prompt_id, pair.clean.text, "pair with a subject in each half")
                     for pair in dataset.pairs if mine(pair.clean) and not mine(pair.corrupt))
        return replace(dataset, prompts=tuple(filter(mine, dataset.prompts)),
                       pairs=tuple(pair for pair in dataset.pairs if mine(pair.clean) and mine(pair.corrupt)),
                       dropped=(*(() if wanted else dataset.dropped), *torn))
    return half(True), half(False)


def pair_up(prompts: Sequence[Prompt], *, seed: int, same_template: bool = True) -> tuple[list[Pair], list[Dropped]]:
    """Each prompt with a partner of its template and layout, another subject and another first answer token.

    The partner is the prompt to patch from, its answer the wrong one. Every prompt is clean once at most,
    in the order given; who partners whom depends on the seed and on the set of prompts, not on their order.
    Partners take turns, so that no one of them is in every pair. Without `same_template` any prompt of the layout
    may be a partner: corruption by resampling.
    """
    groups: dict[tuple, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(_group(prompt, same_template), []).append(prompt)
    partners: dict[str, Prompt | None] = {}
    for key, group in groups.items():
        partners |= _partners(sorted(group, key=lambda p: p.prompt_id), seed, *key)
    pairs = [Pair(prompt, partner) for prompt in prompts if (partner := partners[prompt.prompt_id])]
    alone = [Dropped(p.prompt_id, p.text, _why(len(groups[_group(p, same_template)]), same_template))
             for p in prompts if partners[p.prompt_id] is None]
    return pairs, alone


def _group(prompt: Prompt, same_template: bool) -> tuple:
    return (prompt.template if same_template else "", prompt.layout)


def _partners(group: Sequence[Prompt], seed: int, *key: object) -> dict[str, Prompt | None]:
    """A partner or None for everyone. Whoever has just served goes to the end of the queue."""
    queue = shuffled(group, seed, "pairs", *key)
    out = {}
    for clean in shuffled(group, seed, "pairs", "turns", *key):
        partner = next((other for other in queue if _fit(clean, other)), None)
        out[clean.prompt_id] = partner
        if partner is not None:
            queue.remove(partner)
            queue.append(partner)
    return out


def _fit(clean: Prompt, corrupt: Prompt) -> bool:
    return clean.cluster != corrupt.cluster and clean.target_id != corrupt.target_id


def _why(alike: int, same_template: bool) -> str:
    kind = "template, length and spans" if same_template else "length and spans"
    if alike == 1:
        return f"no partner: no other prompt has its {kind}"
    return f"no partner: no prompt of its {kind} has another subject and another first answer token"
