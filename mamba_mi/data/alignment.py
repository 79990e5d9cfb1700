"""One role a position: what prompts of different length are averaged by, as causal tracing's mean maps are (Meng et al. 2022)."""
from __future__ import annotations

from collections.abc import Mapping

ALIGNED = ("bos", "pre_subject", "subject_first", "subject_middle", "subject_last", "after_subject", "further", "other", "last")


def aligned(length: int, spans: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """The role of every position of a prompt, each exactly one of ALIGNED, or another span's name where there is no subject.

    The last token is `last` whatever else it is, and the only token of a subject is its last. `after_subject` is the first
    token after the subject, `further` those between it and the last; without a subject they and what stands before are `other`.
    """
    found = ["other"] * length
    if "subject" in spans:
        start, end = spans["subject"]
        found = (["pre_subject"] * start + ["subject_first"] + ["subject_middle"] * (end - start - 1) + ["after_subject"]
                 + ["further"] * length)[:length]
        found[end - 1] = "subject_last"
    else:
        for name, (start, end) in spans.items():
            found[start:end] = [name] * (end - start)
    bos = spans["bos"][1] if "bos" in spans else 0
    return (*(["bos"] * bos + found[bos:])[:length - 1], "last")
