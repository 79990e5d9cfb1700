"""Running text as a training reads it: documents written one after another, a mark before each, cut into rows.

Shape legend: B rows, L tokens, V vocabulary.
"""
from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mamba_mi.config import UserError
from mamba_mi.data.corpus import Reader
from mamba_mi.data.encoding import DOCUMENT_MARK, PLAIN

OUTSIDE = "a token outside the model's vocabulary"


class Script:
    """Documents to tokens: the mark between documents, and the words of a text, in which the mark is never written."""

    def __init__(self, tokenizer, vocabulary: int):
        if tokenizer is None:
            raise UserError("the model came without a tokenizer; give model.tokenizer=FILE (a tokenizer.json) or a hub id")
        self.tokenizer, self.vocabulary, self.mark = tokenizer, vocabulary, _mark(tokenizer)
        if self.mark >= vocabulary:
            raise UserError(f"the tokenizer's mark between documents is token {self.mark}, and the model knows {vocabulary}: the two "
                            "do not belong together")

    def said(self) -> str:
        """Names the tokenizer: those that make other tokens have another name."""
        return f"tokenizer {hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()}, mark {self.mark}"

    def tokens(self, text: str) -> list[int]:
        """Empty where a token is none of the model's."""
        ids = self.tokenizer(text, split_special_tokens=True, **PLAIN)["input_ids"]
        return ids if ids and max(ids) < self.vocabulary else []


def _mark(tokenizer) -> int:
    for known in (tokenizer.eos_token_id, tokenizer.get_vocab().get(DOCUMENT_MARK), tokenizer.bos_token_id):
        if known is not None:
            return known
    raise UserError(f"the tokenizer names no EOS and no BOS token and has no {DOCUMENT_MARK} to put between documents; give "
                    "one that has as model.tokenizer=FILE")


class Rows:
    """The next rows of the text: `tokens_BL, weights_BL = rows.next(batch)`. A row begins with the last token of the one before.

    With `boundaries` no document's first token is predicted, for what stands before it is another's end. After `samples`
    rows (None: never) the text is begun anew. `counts_V` is how often each token was to be predicted so far.
    """

    def __init__(self, reader: Reader, script: Script, *, length: int, boundaries: bool, samples: int | None = None):
        self.reader, self.script, self.length, self.boundaries, self.samples = reader, script, length, boundaries, samples
        self.counts_V = torch.zeros(script.vocabulary, dtype=torch.long)
        self._left, self._given = [], 0

    def next(self, batch: int) -> tuple[Tensor, Tensor]:
        tokens_BL = torch.tensor([self._row() for _ in range(batch)])
        weights_BL = torch.ones(tokens_BL.shape)
        weights_BL[:, 0] = 0.0
        if self.boundaries:
            weights_BL[:, 1:][tokens_BL[:, :-1] == self.script.mark] = 0.0
        self.counts_V += torch.bincount(tokens_BL[weights_BL > 0], minlength=self.script.vocabulary)
        return tokens_BL, weights_BL

    def _row(self) -> list[int]:
        if self._given == self.samples:
            self.reader.again()
            self._left, self._given = [], 0
        while len(self._left) < self.length:
            if ids := self.script.tokens(next(self.reader).text):
                self._left += [self.script.mark, *ids]
            else:
                self.reader.why[OUTSIDE] += 1
        row, self._left = self._left[:self.length], self._left[self.length - 1:]
        self._given += 1
        return row

    def state(self) -> dict:
        """Where the text stands, for a checkpoint."""
        return {"reader": self.reader.state(), "left": list(self._left), "given": self._given, "counts": self.counts_V.clone()}

    def restore(self, state: Mapping) -> None:
        self.reader.restore(state["reader"])
        self._left, self._given, self.counts_V = list(state["left"]), state["given"], state["counts"].clone()


def unigram_nats(counts_V: Tensor, documents: Sequence[Sequence[int]]) -> tuple[list[float], float]:
    """What each document costs a model that knows nothing but how often each token is, and the smoothing it took.

    Of (count + a) / (total + a V) that a is taken which suits these very documents best: the baseline has the advantage.
    """
    best = None
    for a in (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001):
        log_p_V = ((counts_V.double() + a) / (counts_V.sum() + a * len(counts_V))).log()
        nats = [-log_p_V[torch.tensor(ids, dtype=torch.long)].sum().item() for ids in documents]
        best = min(best, (sum(nats), a, nats)) if best else (sum(nats), a, nats)
    return best[2], best[1]
