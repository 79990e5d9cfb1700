"""Answers through the recurrent state: a batch of prompts of one length is read once, and gone on from.

Nothing is ever padded before a token that is read. A row whose answer has ended leaves the batch, unless interventions
act: they may hold a value for every row.
Shape legend: B prompts, L tokens, K answer tokens, V vocabulary, D width, R rows that go on.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from mamba_mi.data.encoding import DOCUMENT_MARK
from mamba_mi.measure.scoring import Said
from mamba_mi.models.lm import LM, Past
from mamba_mi.trace import BLIND, Trace

NEW_LINE, NEXT_WORD = "\n", " "


class Ends:
    """Where an answer ends: at one of these texts, or at the token that ends a document.

    By default at a new line; of a tokenizer that cannot write one, where the next word begins: the embedded world's answers
    are words, and nothing follows them that a model could know.
    """

    def __init__(self, tokenizer, texts: Sequence[str] | None = None):
        self.tokenizer = tokenizer
        self.texts = tuple(texts) if texts else (NEW_LINE if _writes(tokenizer, NEW_LINE) else NEXT_WORD,)
        marks = {tokenizer.eos_token_id, tokenizer.get_vocab().get(DOCUMENT_MARK)}
        self.tokens = frozenset(marks - {None})

    def met(self, ids: Sequence[int]) -> bool:
        """Whether the answer ends within these tokens."""
        return bool(ids) and (ids[-1] in self.tokens or any(text in self._decoded(ids) for text in self.texts))

    def text(self, ids: Sequence[int]) -> str:
        """The answer: what comes before its end."""
        text = self._decoded(ids[:-1] if ids and ids[-1] in self.tokens else ids)
        return text[:min((at for end in self.texts if (at := text.find(end)) >= 0), default=len(text))]

    def said(self, ids: Sequence[int]) -> Said:
        """The answer as it is scored."""
        return Said(ids[0], self.text(ids))

    def _decoded(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False).lstrip(" ")


def _writes(tokenizer, text: str) -> bool:
    return text in tokenizer.decode(tokenizer(f"a{text}a", add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class Reading:
    """A batch that has been read: the logits after its last tokens, and the state to go on from."""

    lm: LM
    logits_BV: Tensor
    past: Past
    trace: Trace

    @cached_property
    def first_B(self) -> Tensor:
        return self.logits_BV.argmax(dim=-1)

    def told(self, right_BK: Tensor) -> Tensor:
        """The logits of every token of an answer that the model is given word by word, as it is asked for one; BKV."""
        logits_BKV, at = [self.logits_BV], self
        for k in range(right_BK.shape[1] - 1):
            at = at._next(right_BK[:, k])
            logits_BKV.append(at.logits_BV)
        return torch.stack(logits_BKV, dim=1)

    def said(self, most: int, ends: Ends) -> list[tuple[int, ...]]:
        """Each row's tokens of highest probability, up to the end of its answer, at most so many."""
        out: list[list[int]] = [[] for _ in self.logits_BV]
        at, rows = self, list(range(len(out)))
        for step in range(most):
            next_R = at.first_B.tolist()
            for row, token in zip(rows, next_R, strict=True):
                if not (out[row] and ends.met(out[row])):
                    out[row].append(token)
            open_R = [i for i, row in enumerate(rows) if not ends.met(out[row])]
            if not open_R or step + 1 == most:
                break
            if self.trace is BLIND and len(open_R) < len(rows):
                at, rows, next_R = at._only(open_R), [rows[i] for i in open_R], [next_R[i] for i in open_R]
            at = at._next(torch.tensor(next_R, device=at.logits_BV.device))
        return [tuple(ids) for ids in out]

    def _next(self, token_R: Tensor) -> Reading:
        return _read(self.lm, token_R[:, None], self.trace, self.past)

    def _only(self, rows: Sequence[int]) -> Reading:
        layers = tuple(None if state is None else type(state)(*(None if x is None else x[rows] for x in state))
                       for state in self.past.layers)
        return Reading(self.lm, self.logits_BV[rows], Past(self.past.length, layers, self.past.first), self.trace)


class Answered(NamedTuple):
    """What a model makes of a batch: the logits of the right answers' tokens, the tokens it gives itself, and how often an
    intervention was met, by site name."""

    logits_BKV: Tensor
    said: list[tuple[int, ...]]
    edits: Mapping[str, int] = {}


@torch.no_grad()
def answer(lm: LM, tokens_BL: Tensor, right_BK: Tensor, *, most: int, ends: Ends, interventions: Iterable = ()) -> Answered:
    """The right answers' logits and the model's own answers, with interventions acting on prompt and answer alike."""
    acts = tuple(interventions)
    if not acts:
        reading = _read(lm, tokens_BL)
        return Answered(reading.told(right_BK), reading.said(most, ends))
    with Trace(interventions=acts) as telling:
        logits_BKV = _read(lm, tokens_BL, telling).told(right_BK)
    with Trace(interventions=acts) as saying:  # a trace follows one text
        said = _read(lm, tokens_BL, saying).said(most, ends)
    edits: Counter[str] = Counter()
    for site in (site for act in acts for site in act.sites):
        edits[site.name] += telling.counts[site] + saying.counts[site]
    return Answered(logits_BKV, said, edits)


def _read(lm: LM, tokens_BL: Tensor, trace: Trace = BLIND, past: Past | None = None) -> Reading:
    resid_BLD, past = lm.through(lm.embed(tokens_BL, trace, past), trace=trace, past=past)
    # the head sees the last token alone: of a long prompt all logits would be its length times the vocabulary
    logits_B1V = lm.logits(lm.normed(resid_BLD, trace)[:, -1:])
    return Reading(lm, logits_B1V[:, 0], past, trace)
