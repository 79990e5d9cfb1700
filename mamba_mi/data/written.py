"""Pairs in writing, and the prompts and pairs that a tokenizer makes of them.

What the user's file, the generator and the toy tasks share: two texts with their answers and what stands where, in
characters.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from string import Formatter
from typing import NamedTuple

from mamba_mi.data.encoding import Encoded, bos_ids, check_known, encode, encode_targets, prompt
from mamba_mi.data.pairing import shuffled
from mamba_mi.data.prompt import Dataset, Dropped, Pair, Prompt
from mamba_mi.data.reading import Unusable, sift
from mamba_mi.data.spans import token_span

Spans = Mapping[str, tuple[int, int]]


class Written(NamedTuple):
    """A clean and a corrupted text. The answers bring the space that a word needs (`encoding.following`).

    Without a span "subject", the tokens from the first to the last that differ are it. `corrupt_spans` confirm where the
    others are in the corrupted text. An empty `cluster` is the subject's text, `corrupt_cluster` the clean one's.
    """

    prompt_id: str
    clean: str
    corrupt: str
    answer: str
    wrong_answer: str
    spans: Spans = {}
    corrupt_spans: Spans = {}
    cluster: str = ""
    template: str = ""
    source: Mapping = {}
    corrupt_source: Mapping = {}
    corrupt_cluster: str = ""


class _Side(NamedTuple):
    tokens: Encoded
    target_ids: tuple[int, ...]


def filled(template: str, **values: str) -> tuple[str, dict[str, tuple[int, int]]]:
    """The template with its {fields} filled, and where in the text each of them stands."""
    text, spans = "", {}
    for literal, field, _, _ in Formatter().parse(template):
        text += literal
        if field is not None:
            spans[field] = len(text), len(text) + len(values[field])
            text += values[field]
    return text, spans


def pairs(records: Sequence[Written], tokenizer, bos: bool) -> tuple[list[Pair], list[Dropped]]:
    """Those whose two texts are equally many tokens and whose answers begin with different ones."""
    clean = _sides([r.clean for r in records], [r.answer for r in records], tokenizer)
    corrupt = _sides([r.corrupt for r in records], [r.wrong_answer for r in records], tokenizer)
    before = bos_ids(tokenizer, bos)

    def make(item: tuple[Written, _Side, _Side]) -> Pair:
        for what, side in zip(("clean", "corrupt"), item[1:], strict=True):
            check_known(side.tokens.ids, tokenizer, what)
            check_known(side.target_ids, tokenizer, f"the answer to {what}")
        return _pair(*item, before)

    return sift([r.prompt_id for r in records], [r.clean for r in records],
                zip(records, clean, corrupt, strict=True), make)


def dataset(name: str, records: Sequence[Written], tokenizer, *, bos: bool, seed: int, fingerprint: str = "",
            dropped: Sequence[Dropped] = ()) -> Dataset:
    """Every record that makes a pair, in an order drawn from the seed, and all clean texts as prompts, paired ones first.

    Without a `fingerprint`, which a file has, it is that of the texts and answers.
    """
    made, left = pairs(records, tokenizer, bos)
    made = shuffled(made, seed, name)
    unpaired = {d.prompt_id for d in left}
    singles, useless = _alone([record for record in records if record.prompt_id in unpaired], tokenizer, bos)
    why = {d.prompt_id: d for d in (*left, *useless)}
    fingerprint = fingerprint or hashlib.sha256(json.dumps([record[:5] for record in records]).encode()).hexdigest()
    prompts = [replace(pair.clean, wrong_id=pair.corrupt.target_id) for pair in made]
    return Dataset(name, (*prompts, *shuffled(singles, seed, name, "alone")), fingerprint, tuple(made), (*dropped, *why.values()))


def _alone(records: Sequence[Written], tokenizer, bos: bool) -> tuple[list[Prompt], list[Dropped]]:
    """The clean texts of records that make no pair."""
    sides = _sides([r.clean for r in records], [r.answer for r in records], tokenizer)
    before = bos_ids(tokenizer, bos)

    def make(item: tuple[Written, _Side]) -> Prompt:
        record, side = item
        check_known(side.tokens.ids, tokenizer, "clean")
        check_known(side.target_ids, tokenizer, "the answer to clean")
        spans = {name: token_span(side.tokens.offsets, *span) for name, span in record.spans.items()}
        return prompt(record.prompt_id, record.clean, side.tokens.ids, record.answer, side.target_ids, spans, bos=before,
                      cluster=record.cluster or record.prompt_id, template=record.template, source=record.source)

    return sift([r.prompt_id for r in records], [r.clean for r in records], zip(records, sides, strict=True), make)


def _sides(texts: list[str], answers: list[str], tokenizer) -> list[_Side]:
    encoded = encode(texts, tokenizer)
    return list(map(_Side, encoded, encode_targets(texts, encoded, answers, tokenizer)))


def _pair(record: Written, clean: _Side, corrupt: _Side, bos: tuple[int, ...]) -> Pair:
    if len(clean.tokens.ids) != len(corrupt.tokens.ids):
        raise Unusable("clean and corrupt differ in their number of tokens")
    if clean.target_ids[0] == corrupt.target_ids[0]:
        raise Unusable("answer and wrong_answer begin with the same token")
    spans = _token_spans(record, clean.tokens, corrupt.tokens)
    start, end = spans["subject"]
    lo, hi = clean.tokens.offsets[start][0], clean.tokens.offsets[end - 1][1]
    cluster = record.cluster or record.clean[lo:hi].strip()
    template = record.template or f"{record.clean[:lo]}{{}}{record.clean[hi:]}"
    return Pair(
        prompt(record.prompt_id, record.clean, clean.tokens.ids, record.answer, clean.target_ids, spans, bos=bos,
               cluster=cluster, template=template, source=record.source),
        prompt(f"{record.prompt_id}-corrupt", record.corrupt, corrupt.tokens.ids, record.wrong_answer, corrupt.target_ids,
               spans, bos=bos, cluster=record.corrupt_cluster or cluster, template=template, source=record.corrupt_source))


def _token_spans(record: Written, clean: Encoded, corrupt: Encoded) -> dict[str, tuple[int, int]]:
    """The spans of both sides: a pair has one layout, so corrupt_spans can only confirm it."""
    differ = [i for i, (a, b) in enumerate(zip(clean.ids, corrupt.ids, strict=True)) if a != b]
    if not differ:
        raise Unusable("clean and corrupt are the same tokens")
    spans = {name: token_span(clean.offsets, *span) for name, span in record.spans.items()}
    spans.setdefault("subject", (differ[0], differ[-1] + 1))
    for name, span in record.corrupt_spans.items():
        if spans.get(name) != token_span(corrupt.offsets, *span):
            raise Unusable(f"corrupt_spans: {name!r} is on other tokens than in clean")
    return spans
