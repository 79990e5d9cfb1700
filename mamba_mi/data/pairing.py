"""A corrupted partner for every prompt, from the prompts themselves."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from mamba_mi.config import stream
from mamba_mi.data.prompt import Dropped, Pair, Prompt

Item = TypeVar("Item")


def shuffled(items: Sequence[Item], seed: int, *names: object) -> list[Item]:
    """The items in the order drawn from stream(seed, *names)."""
    import torch

    return [items[i] for i in torch.randperm(len(items), generator=stream(seed, *names)).tolist()]


def pair_up(prompts: Sequence[Prompt], *, seed: int) -> tuple[list[Pair], list[Dropped]]:
    """Each prompt with a partner of its template and layout, another subject and another first answer token.

    The partner is the prompt to patch from, its answer the wrong one. Every prompt is clean once at most,
    in the order given; who partners whom depends on the seed and on the set of prompts, not on their order.
    Partners take turns, so that no one of them is in every pair.
    """
    groups: dict[tuple, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.template, prompt.layout), []).append(prompt)
    partners: dict[str, Prompt | None] = {}
    for key, group in groups.items():
        partners |= _partners(sorted(group, key=lambda p: p.prompt_id), seed, *key)
    pairs = [Pair(prompt, partner) for prompt in prompts if (partner := partners[prompt.prompt_id])]
    alone = [Dropped(p.prompt_id, p.text, _why(p, groups)) for p in prompts if partners[p.prompt_id] is None]
    return pairs, alone


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


def _why(prompt: Prompt, groups: dict[tuple, list[Prompt]]) -> str:
    if len(groups[prompt.template, prompt.layout]) == 1:
        return "no partner: no other prompt has its template, length and spans"
    return ("no partner: no prompt of its template, length and spans has another subject "
            "and another first answer token")
