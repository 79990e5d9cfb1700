"""Sources and queries of knockouts, by the names the field gives them: which positions of a prompt they are.

`relation` is every token outside the subject, the last among them; `context` what stands before the subject
(Geva et al. 2023, and Endy et al. 2025 for Mamba). Any span of a data set is a source by its own name, and
`<name>+1` is what stands one slot after a source's tokens, where the conv has brought them. BOS belongs to no source
but `bos`. Positions count from 0.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from mamba_mi.config import UserError, did_you_mean

NONE = "none"  # no source: the run that must change nothing
RANDOM = ("random", "beyond_conv")  # as many tokens as the subject has (or the first span), drawn anew for every prompt
OF_SUBJECT = ("subject", "relation", "relation_without_last", "context")
SOURCES = (NONE, "last", "second_to_last", "first", "subject", "relation", "relation_without_last", "context", "bos", *RANDOM)
QUERIES = ("last", "relation", "relation_without_last", "subject")


def check_names(key: str, asked, known=SOURCES) -> None:
    """Raise for a name that is none of `known`, or that stands twice."""
    for name in asked:
        if name not in known:
            raise UserError(f"{key}={name}: there are {', '.join(known)}{did_you_mean(name, known)}")
    if len(set(asked)) < len(asked) or not asked:
        raise UserError(f"{key}={list(asked)}: at least one, and each once")


def named(spans: Iterable[str], conv_width: int = 4) -> tuple[str, ...]:
    """Every source that prompts with these spans have a name for; of a span without subject the slot after it, too.

    Without a conv (`conv_width` 1) every slot is beyond its reach, and `beyond_conv` would be `random` again: left out.
    """
    spans = set(spans)
    own = sorted(spans - {"bos", "subject"})
    known = [name for name in SOURCES if name != "bos" and (conv_width > 1 or name != "beyond_conv")]
    if "subject" in spans:
        return (*known, *own)
    plain = tuple(name for name in known if name not in OF_SUBJECT and (own or name not in RANDOM))
    return plain + tuple(name for span in own for name in (span, f"{span}+1"))


def is_named(name: str, spans: Iterable[str]) -> bool:
    """Whether prompts with these spans can have such a source; `positions` raises where not."""
    stem, later = _later(name)
    return stem in spans or stem in (*named(spans), "bos") and not (later and stem in (NONE, *RANDOM))


def positions(name: str, length: int, spans: Mapping[str, tuple[int, int]], *, conv_width: int = 4,
              generator: torch.Generator | None = None) -> tuple[int, ...] | None:
    """The positions of one source in a prompt; None where the prompt has no such token (or too few to draw from).

    `random` draws from the tokens outside the subject, the last one apart; `beyond_conv` from those of them whose slot
    the conv brings nothing of the subject to: before it, or `conv_width` and more after its last token.
    """
    stem, later = _later(name)
    if later and stem != name:
        at = positions(stem, length, spans)
        return at and (tuple(p + later for p in at if p + later < length) or None)
    start = spans["bos"][1] if "bos" in spans else 0
    if name == NONE:
        return ()
    plain = {"last": range(length - 1, length), "second_to_last": range(max(start, length - 2), length - 1),
             "first": range(start, start + 1), "bos": range(start)}
    if name in plain:
        return tuple(plain[name]) or None
    if name in RANDOM:
        return _drawn(name, range(start, length - 1), spans, conv_width, generator)
    if name in OF_SUBJECT and "subject" in spans:
        first, end = spans["subject"]
        outside = [p for p in range(start, length) if not first <= p < end]
        of_subject = {"subject": range(first, end), "relation": outside,
                      "relation_without_last": [p for p in outside if p < length - 1],
                      "context": [p for p in outside if p < first]}
        return tuple(of_subject[name]) or None
    if name not in spans:
        known = named(spans)
        without = "" if "subject" in spans else " these prompts have no subject;"
        raise UserError(f"source {name}:{without} there are {', '.join(known)}{did_you_mean(name, known)}")
    return tuple(range(*spans[name]))


def _later(name: str) -> tuple[str, int]:
    """`value+1` as ("value", 1)."""
    found = re.fullmatch(r"(.+)\+([1-9])", name)
    return (found[1], int(found[2])) if found else (name, 0)


def _drawn(name: str, free: range, spans, conv_width: int, generator) -> tuple[int, ...] | None:
    """As many of the free positions as the subject has; without one, as the first span, and off every span."""
    avoided = [spans["subject"]] if "subject" in spans else [span for key, span in spans.items() if key != "bos"]
    if not avoided:
        raise UserError(f"source {name}: these prompts have no subject and no other span to draw as many tokens as")
    reach = conv_width - 1 if name == "beyond_conv" else 0
    left = [p for p in free if not any(first <= p < end + reach for first, end in avoided)]
    size = avoided[0][1] - avoided[0][0]
    if len(left) < size:
        return None
    return tuple(sorted(left[i] for i in torch.randperm(len(left), generator=generator)[:size].tolist()))
