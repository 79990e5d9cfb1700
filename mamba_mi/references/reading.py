"""From a reference's JSON to its prompts and numbers, with one line for each way such a file can be wrong."""
from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mamba_mi.config import UserError, did_you_mean
from mamba_mi.data.sources import QUERIES, SOURCES

METRICS = ("probability", "hit", "logit_difference")
TIMESCALES = ("all_but_slow", "all_but_fast")
KINDS = ("answers", "means", "knockouts")
DRAWN = ("random", "beyond_conv")  # sources drawn anew by each seed: no number is of them


@dataclass(frozen=True)
class Asked:
    """A prompt: its text and target, or a row of CounterFact with the start of the text's sha256 and its tokens' number."""

    prompt_id: str
    row: int | None = None
    text: str | None = None
    target: str | None = None
    subject: str | None = None
    bos: bool = False
    check: str | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Number:
    """What is published of one metric under one condition: a value a prompt, or with `over` a mean over so many prompts."""

    metric: str
    values: Mapping[str, float]
    model: str | None = None
    query: str | None = None
    source: str | None = None
    timescale: str | None = None
    window_size: int | None = None
    window_start: int | None = None
    over: int | None = None
    mean: float | None = None
    origin: str = ""

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return "means" if self.over else "knockouts" if self.blocked else "answers"

    @property
    def blocked(self) -> tuple | None:
        """The knockout it is under; None where nothing is blocked."""
        return (self.query, self.source, self.timescale, self.window_size, self.window_start) if self.source else None


@dataclass(frozen=True)
class Left:
    """What is published and not computed here, and why."""

    what: str
    published: str
    why: str
    model: str | None = None


def want(holds: bool, asked: str, said: str) -> None:
    """Raise for a reference in which something does not hold."""
    if not holds:
        raise UserError(f"{asked}: {said}")


def parse(found: Mapping, asked: str) -> tuple[dict[str, Asked], tuple[Number, ...], tuple[Left, ...]]:
    """The file's prompts by id, its numbers, one for each start of a window, and what is not computed."""
    prompts = {p.prompt_id: p for p in (_prompt(p, asked) for p in found.get("prompts", []))}
    want(len(prompts) == len(found.get("prompts", [])), asked, "two prompts have one id (or one row)")
    numbers = tuple(itertools.chain.from_iterable(_numbers(n, prompts, asked) for n in found.get("numbers", [])))
    want(bool(numbers), asked, "it holds no numbers")
    bare = {(n.model, i) for n in numbers if n.metric == "probability" and not n.blocked for i in n.values}
    for n in numbers:
        lost = [i for i in n.values if n.blocked and (n.model, i) not in bare]
        want(not lost, asked, f"of prompt {''.join(lost[:1])} there is a knockout but no probability without it")
    return prompts, numbers, tuple(Left(**x) for x in found.get("not_computed", []))


def _prompt(given: Mapping, asked: str) -> Asked:
    row = given.get("row")
    name = given.get("id") or (None if row is None else f"cf-{row:05d}")
    want(name is not None, asked, f"a prompt has neither id nor row: {given}")
    if row is None or given.get("text") is not None:
        want(bool(given.get("text") and given.get("target")), asked, f"prompt {name}: give text and target, or a row of CounterFact")
        want((given.get("subject") or "") in given["text"], asked, f"prompt {name}: the subject is not in its text")
    keys = ("row", "text", "target", "subject", "bos", "check", "tokens")
    return Asked(name, **{key: given[key] for key in keys if key in given})


def _numbers(given: Mapping, prompts: Mapping[str, Asked], asked: str) -> Iterator[Number]:
    metric, source, query = given.get("metric"), given.get("source"), given.get("query")
    _one_of("metric", metric, METRICS, asked)
    own = {"metric": metric, "model": given.get("model"), "origin": given.get("from", "")}
    if "over" in given:
        yield Number(values={}, over=given["over"], mean=float(given["mean"]), **own)
        return
    ids, values = given.get("prompts") or list(prompts), given.get("values")
    for i in ids:
        _one_of("prompt", i, prompts, asked)
    if source is None:
        yield Number(values=_by_prompt(ids, values, asked), **own)
        return
    _one_of("source", source, [s for s in SOURCES if s not in ("none", *DRAWN)], asked)
    _one_of("query", query, QUERIES, asked)
    if given.get("timescale") is not None:
        _one_of("timescale", given["timescale"], TIMESCALES, asked)
    want(metric != "logit_difference", asked, "under a knockout there are probability and hit")
    want(isinstance(given.get("window_size"), int), asked, f"{source} to {query}: give window_size, in layers")
    want(isinstance(values, list), asked, f"{source} to {query}: values is a list for each start of the window")
    for start, row in enumerate(values):
        yield Number(values=_by_prompt(ids, row, asked), query=query, source=source, timescale=given.get("timescale"),
                     window_size=given["window_size"], window_start=start, **own)


def _by_prompt(ids, values, asked: str) -> dict[str, float]:
    want(isinstance(values, list) and len(values) == len(ids) and all(isinstance(x, int | float) for x in values), asked,
         f"values: give {len(ids)} numbers, one a prompt")
    return dict(zip(ids, map(float, values), strict=True))


def _one_of(what: str, given, known, asked: str) -> None:
    want(given in known, asked, f"no such {what} {given}; there are {', '.join(list(known)[:12])}{did_you_mean(given, known)}")
