"""CounterFact: "The mother tongue of Danielle Darrieux is" -> " French", from a file or from the hub.

The published file says prompt = relation_prefix + subject + relation_suffix, and keeps a "{}" at the head
of the suffix where the subject opens the sentence (four prompts in five). A subject inside a sentence and
every target bring their leading space. 324 prompts occur more than once, mostly with another target each
time: the first is used, unless `repeats` asks for them all.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mamba_mi.data import hub
from mamba_mi.data.encoding import Encoded, bos_ids, check_known, encode, encode_targets, following, prompt
from mamba_mi.data.pairing import shuffled
from mamba_mi.data.prompt import Dataset, Dropped, Prompt
from mamba_mi.data.reading import Unusable, fingerprint, read_records, require_columns, sift, text_of
from mamba_mi.data.spans import token_span

COLUMNS = ("prompt", "relation_prefix", "subject", "relation_suffix", "relation_id", "target_true")


@dataclass(frozen=True)
class Knobs:
    """`path` wins over `hub`. `n` (null: all) and `only_correct` choose among the prompts once a model ran."""

    name: str = "counterfact"
    path: str | None = None
    hub: str = "NeelNanda/counterfact-tracing"
    revision: str | None = None
    n: int | None = 200
    only_correct: bool = True
    repeats: bool = False
    bos: bool = False


class _Fact(NamedTuple):
    prompt_id: str
    text: str
    target: str
    wrong: str  # the counterfactual target; empty where the file has none
    subject: tuple[int, int]  # characters, with the leading space
    cluster: str
    template: str
    source: dict


def load(knobs: Knobs, tokenizer, seed: int) -> Dataset:
    """Every usable prompt, in an order drawn from the seed; `prompt_id` is its row in the file: cf-00017."""
    if knobs.path:
        source, records = f"dataset.path={knobs.path}", read_records(knobs.path)
        digest, origin = fingerprint(knobs.path), {}
    else:
        source, found = f"dataset.hub={knobs.hub}", hub.whole(knobs.hub, split="train", revision=knobs.revision)
        records, digest, origin = found.records, found.fingerprint, found.origin
    require_columns(records, COLUMNS, source)
    ids = [f"cf-{row:05d}" for row in range(len(records))]
    seen: set[str] = set()
    texts = [str(record.get("prompt") or "") for record in records]
    facts, dropped = sift(ids, texts, zip(ids, records, strict=True), lambda item: _fact(*item, set() if knobs.repeats else seen))
    prompts, more = _prompts(facts, tokenizer, knobs.bos)
    dropped = tuple(sorted([*dropped, *more], key=lambda d: d.prompt_id))
    return Dataset("counterfact", tuple(shuffled(prompts, seed, "counterfact")), digest, dropped=dropped, origin=origin)


def _fact(prompt_id: str, record: dict, seen: set[str]) -> _Fact:
    text, subject, target = (text_of(record, column) for column in ("prompt", "subject", "target_true"))
    prefix = text_of(record, "relation_prefix", may_be_empty=True)
    suffix = text_of(record, "relation_suffix", may_be_empty=True).removeprefix("{}")
    if text != prefix + subject + suffix:
        raise Unusable("the prompt is not relation_prefix + subject + relation_suffix")
    if text in seen:
        raise Unusable("an earlier record has the same prompt")
    seen.add(text)
    space = subject[:len(subject) - len(subject.lstrip())]
    template = f"{text_of(record, 'relation_id')}: {prefix}{space}{{}}{suffix}"
    span = len(prefix), len(prefix) + len(subject)
    wrong = str(record.get("target_false") or "")
    return _Fact(prompt_id, text, following(text, target), wrong and following(text, wrong), span, subject.strip(), template,
                 record)


def _prompts(facts: Sequence[_Fact], tokenizer, bos: bool) -> tuple[list[Prompt], list[Dropped]]:
    texts = [fact.text for fact in facts]
    encoded = encode(texts, tokenizer)
    before = bos_ids(tokenizer, bos)
    target_ids, wrong_ids = (encode_targets(texts, encoded, answers, tokenizer) for answers in (
        [fact.target for fact in facts], [fact.wrong for fact in facts]))

    def make(item: tuple[_Fact, Encoded, tuple[int, ...], tuple[int, ...]]) -> Prompt:
        fact, tokens, target, wrong = item
        check_known(tokens.ids, tokenizer, "the prompt")
        check_known(target, tokenizer, "the target")
        spans = {"subject": token_span(tokens.offsets, *fact.subject)}
        return prompt(fact.prompt_id, fact.text, tokens.ids, fact.target, target, spans,
                      bos=before, cluster=fact.cluster, template=fact.template, wrong_id=wrong[0] if wrong else None,
                      source=fact.source)

    return sift([fact.prompt_id for fact in facts], texts, zip(facts, encoded, target_ids, wrong_ids, strict=True), make)
