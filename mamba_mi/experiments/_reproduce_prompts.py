"""The prompts of a reference: texts of its own, rows of CounterFact, and the rest of it where a number is a mean over all."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from mamba_mi.config import UserError
from mamba_mi.data import Dataset, Prompt
from mamba_mi.data.encoding import bos_ids, check_known, encode, encode_targets, prompt
from mamba_mi.data.reading import Unusable
from mamba_mi.data.spans import token_span
from mamba_mi.references import Asked, Reference


def needs_counterfact(reference: Reference) -> bool:
    """Whether texts and their answers must come from there: what is whole in the reference needs no data set."""
    return any(n.over for n in reference.numbers) or any(p.text is None for p in reference.prompts.values())


def candidates(reference: Reference, load: Callable[[], Dataset], tokenizer) -> Dataset:
    """The reference's prompts under its own ids, in its order; behind them CounterFact, where a number is a mean over it."""
    own = [_own(asked, tokenizer, reference.asked) for asked in reference.prompts.values() if asked.text is not None]
    if not needs_counterfact(reference):
        return Dataset(reference.name, tuple(own), reference.fingerprint)
    dataset = load()
    _check(dataset, reference.asked)
    rows = [asked for asked in reference.prompts.values() if asked.text is None]
    found = list(_found(rows, dataset, reference.asked))
    taken = {p.prompt_id for p in (*own, *found)}
    whole = any(n.over for n in reference.numbers)
    rest = [p for p in dataset.prompts if p.prompt_id not in taken] if whole else []
    wanted = {asked.prompt_id for asked in rows}
    dropped = tuple(d for d in dataset.dropped if whole or d.prompt_id in wanted)
    return Dataset(dataset.name, (*own, *found, *rest), f"{reference.fingerprint} {dataset.fingerprint}", dropped=dropped)


def _own(asked: Asked, tokenizer, reference: str) -> Prompt:
    try:
        (encoded,) = encode([asked.text], tokenizer)
        (target,) = encode_targets([asked.text], [encoded], [asked.target], tokenizer)
        check_known(encoded.ids, tokenizer, "the prompt")
        check_known(target, tokenizer, "the target")
        spans = {}
        if asked.subject:
            start = asked.text.index(asked.subject)
            spans["subject"] = token_span(encoded.offsets, start, start + len(asked.subject))
        return prompt(asked.prompt_id, asked.text, encoded.ids, asked.target, target, spans, bos=bos_ids(tokenizer, asked.bos),
                      cluster=(asked.subject or asked.prompt_id).strip(), template="")
    except (Unusable, UserError) as why:
        raise UserError(f"{reference}: prompt {asked.prompt_id} ({asked.text!r}): {why}") from None


def _check(dataset: Dataset, reference: str) -> None:
    if not all(p.prompt_id.startswith("cf-") for p in dataset.prompts[:1]):
        raise UserError(f"{reference} names rows of CounterFact, and this is dataset={dataset.name}; give dataset=counterfact, "
                        "and dataset.path=FILE where there is no network")
    if any("bos" in p.spans for p in dataset.prompts[:1]):
        raise UserError(f"{reference}: the published run put nothing before its prompts; give dataset.bos=false")


def _found(rows: Iterable[Asked], dataset: Dataset, reference: str) -> Iterable[Prompt]:
    """The prompts of these rows; those that the data set leaves out (a repeated prompt) are in its `dropped`."""
    by_id = {p.prompt_id: p for p in dataset.prompts}
    left_out = {d.prompt_id for d in dataset.dropped}
    for asked in rows:
        if asked.prompt_id in left_out:
            continue
        if asked.prompt_id not in by_id:
            raise UserError(f"{reference}: row {asked.row} is not in this CounterFact, which has {len(by_id) + len(left_out)} "
                            "rows; give the whole file, in its own order")
        found = by_id[asked.prompt_id]
        if asked.check and hashlib.sha256(found.text.encode()).hexdigest()[:len(asked.check)] != asked.check:
            raise UserError(f"{reference}: row {asked.row} of this CounterFact ({found.text!r}) is another prompt than in the "
                            "published run; give the file of NeelNanda/counterfact-tracing, in its own order")
        if asked.tokens and len(found.token_ids) != asked.tokens:
            raise UserError(f"{reference}: row {asked.row} ({found.text!r}) has {len(found.token_ids)} tokens and had "
                            f"{asked.tokens}: this is another tokenizer; give model.tokenizer=EleutherAI/gpt-neox-20b")
        yield found
