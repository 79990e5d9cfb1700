"""Sources and queries of knockouts, by the names the field gives them: which positions of a prompt they are.

`relation` is every token outside the subject, the last among them; `context` what stands before the subject
(Geva et al. 2023, and Endy et al. 2025 for Mamba). BOS belongs to no source but `bos`. Positions count from 0.
"""
from __future__ import annotations

from collections.abc import Mapping

import torch

from mamba_mi.config import UserError, did_you_mean

NONE = "none"  # no source: the run that must change nothing
RANDOM = ("random", "beyond_conv")  # as many tokens as the subject has, drawn anew for every prompt
SOURCES = (NONE, "last", "second_to_last", "first", "subject", "relation", "relation_without_last", "context", "bos", *RANDOM)
QUERIES = ("last", "relation", "relation_without_last", "subject")


def check_names(key: str, asked, known=SOURCES) -> None:
    """Raise for a name that is none of `known`, or that stands twice."""
    for name in asked:
        if name not in known:
            raise UserError(f"{key}={name}: there are {', '.join(known)}{did_you_mean(name, known)}")
    if len(set(asked)) < len(asked) or not asked:
        raise UserError(f"{key}={list(asked)}: at least one, and each once")


def positions(name: str, length: int, spans: Mapping[str, tuple[int, int]], *, conv_width: int = 4,
              generator: torch.Generator | None = None) -> tuple[int, ...] | None:
    """The positions of one source in a prompt; None where the prompt has no such token (or too few to draw from).

    `random` draws from the tokens outside the subject, the last one apart; `beyond_conv` from those of them whose slot
    the conv brings nothing of the subject to: before it, or `conv_width` and more after its last token.
    """
    start = spans["bos"][1] if "bos" in spans else 0
    if name == NONE:
        return ()
    plain = {"last": range(length - 1, length), "second_to_last": range(max(start, length - 2), length - 1),
             "first": range(start, start + 1), "bos": range(start)}
    if name in plain:
        return tuple(plain[name]) or None
    if "subject" not in spans:
        raise UserError(f"source {name}: these prompts have no subject; there are {NONE}, {', '.join(plain)}")
    first, end = spans["subject"]
    outside = [p for p in range(start, length) if not first <= p < end]
    named = {"subject": list(range(first, end)), "relation": outside,
             "relation_without_last": [p for p in outside if p < length - 1], "context": [p for p in outside if p < first]}
    if name in named:
        return tuple(named[name]) or None
    free = [p for p in outside if p < length - 1 and (name == "random" or p < first or p - (end - 1) >= conv_width)]
    if len(free) < end - first:
        return None
    drawn = torch.randperm(len(free), generator=generator)[:end - first].tolist()
    return tuple(sorted(free[i] for i in drawn))
