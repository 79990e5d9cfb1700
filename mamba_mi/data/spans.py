"""Where things are in a prompt: token spans from characters, and the roles of positions.

A span is a half-open range of tokens. Two prompts with different subjects are compared by role, not by
position.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mamba_mi.data.reading import Unusable

_ROLE = re.compile(r"bos|pre_subject|subject_last|subject_[0-9]+|between|last")


def token_span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The tokens whose characters overlap the characters start … end-1.

    `offsets` are the tokenizer's. They may leave a word's leading space out or not, and the tokens of one
    multi-byte character all have that character's. A search in decoded tokens finds neither reliably.
    """
    hit = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    if not hit:
        raise Unusable("a span covers no token")
    return hit[0], hit[-1] + 1


def is_role(name: str) -> bool:
    """Whether `roles` makes this name by itself; no span of a data set may have it ("subject" may)."""
    return _ROLE.fullmatch(name) is not None


def roles(length: int, spans: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """The positions of every role in a prompt of `length` tokens; a role without positions is absent.

    In order: `bos`; `pre_subject`, jointly; `subject_1`, `subject_2`, …, each subject token counted from
    the front, as many as there are; `subject_last`, the same position as the highest of them, since
    subjects differ in length; `subject`, jointly; `between`, jointly, after the subject and before the last
    token; any other span under its own name, jointly; `last`, which stays the last token even where the
    subject ends the prompt.
    """
    bos_end = spans["bos"][1] if "bos" in spans else 0
    out: dict[str, Sequence[int]] = {"bos": range(bos_end)}
    if "subject" in spans:
        start, end = spans["subject"]
        out["pre_subject"] = range(bos_end, start)
        out |= {f"subject_{number}": (position,) for number, position in enumerate(range(start, end), 1)}
        out["subject_last"] = (end - 1,)
        out["subject"] = range(start, end)
        out["between"] = range(end, length - 1)
    out |= {name: range(*span) for name, span in spans.items() if name not in ("bos", "subject")}
    out["last"] = (length - 1,)
    return {name: tuple(positions) for name, positions in out.items() if len(positions)}
