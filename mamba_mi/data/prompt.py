"""Prompts, pairs of prompts, and batches of equal shape.

Shape legend: B prompts, L tokens.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mamba_mi.data.corpus import Corpus


@dataclass(frozen=True)
class Prompt:
    """One prompt with its right answer. `spans` are half-open token ranges: `{"bos": (0, 1), "subject": (3, 6)}`.

    `target_id` is the first token of the target as it follows the text; `target_ids` are all of them.
    `cluster` is what the statistics resample together (the subject), `template` what the two sides of a pair share.
    `wrong_id` is the first token of a wrong answer to compare the right one with, where the data set names one.
    `source` is the record it was made of, for whoever writes the data set down again.
    """

    prompt_id: str
    text: str
    token_ids: tuple[int, ...]
    target: str
    target_id: int
    spans: dict[str, tuple[int, int]] = field(default_factory=dict, hash=False)
    target_ids: tuple[int, ...] = ()
    cluster: str = ""
    template: str = ""
    wrong_id: int | None = None
    source: Mapping = field(default_factory=dict, compare=False, repr=False)

    @property
    def layout(self) -> tuple:
        """What prompts of one batch have in common: the length and where each span lies."""
        return len(self.token_ids), tuple(sorted(self.spans.items()))


@dataclass(frozen=True)
class Pair:
    """A clean prompt and its corrupted partner, of one layout; the wrong answer is the corrupt prompt's own."""

    clean: Prompt
    corrupt: Prompt


@dataclass(frozen=True)
class Batch:
    """Prompts of one layout, run together. `key` is stable: it names the batch's file in the run's store.

    For paired data `corrupt` holds the partners, in the same order.
    """

    prompts: tuple[Prompt, ...]
    key: str
    corrupt: tuple[Prompt, ...] = ()

    @cached_property
    def tokens_BL(self):
        return _tokens(self.prompts)

    @cached_property
    def corrupt_BL(self):
        return _tokens(self.corrupt)

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        return self.prompts[0].spans

    @property
    def length(self) -> int:
        return len(self.prompts[0].token_ids)

    def __len__(self):
        return len(self.prompts)


def _tokens(prompts: Sequence[Prompt]):
    import torch

    return torch.tensor([p.token_ids for p in prompts], dtype=torch.long)


def batches(items: Sequence[Prompt] | Sequence[Pair], size: int) -> list[Batch]:
    """The items in batches of one layout, at most `size` each, in an order fixed by layout and prompt_id alone."""
    groups: dict[tuple, list] = {}
    for item in items:
        groups.setdefault(_clean(item).layout, []).append(item)
    out: list[Batch] = []
    for layout in sorted(groups):
        group = sorted(groups[layout], key=lambda item: _clean(item).prompt_id)
        for lo in range(0, len(group), size):
            out.append(_batch(group[lo:lo + size], f"{len(out):05d}"))
    return out


def _clean(item: Prompt | Pair) -> Prompt:
    return item.clean if isinstance(item, Pair) else item


def _batch(items, key: str) -> Batch:
    corrupt = tuple(item.corrupt for item in items) if isinstance(items[0], Pair) else ()
    return Batch(tuple(map(_clean, items)), key, corrupt)


@dataclass(frozen=True)
class Dropped:
    """A record that is not used, and why, in words a reader of the report understands."""

    prompt_id: str
    text: str
    why: str


@dataclass(frozen=True)
class Dataset:
    """Candidate prompts in a seeded order, or ready-made pairs; what was dropped on the way; where it came from.

    A `corpus` is text to train on and has no prompts; its module says IS_CORPUS.
    `fingerprint` is a sha256 of the source's bytes (file) or of its definition (a world made in code); `origin` says which
    split of what at which commit, where it came from the hub.
    """

    name: str
    prompts: tuple[Prompt, ...]
    fingerprint: str
    pairs: tuple[Pair, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    corpus: Corpus | None = None
    origin: Mapping[str, str | None] = field(default_factory=dict)
