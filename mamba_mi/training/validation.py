"""How well a model predicts documents it never read: nats a document, in windows that each start from an empty state.

Shape legend: B windows, L tokens, V vocabulary.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from mamba_mi.config import UserError
from mamba_mi.data.corpus import Corpus, Document, reasons
from mamba_mi.training.text import OUTSIDE, Script


class Paper(NamedTuple):
    """A held-out document, tokenised: all its tokens, the mark first, and those to be predicted."""

    key: str
    source: str
    ids: tuple[int, ...]
    asked: tuple[int, ...]


def papers(corpus: Corpus, script: Script, n: int | None, *, boundaries: bool) -> tuple[list[Paper], Counter]:
    """The first n held-out documents (None: all), and what was left out on the way. Equal texts count once."""
    documents, why = corpus.held_out(n)
    found = {}
    for document in documents:
        ids = script.tokens(document.text)
        asked = ids[1:] if boundaries else ids
        if not asked:
            why["one token" if ids else OUTSIDE] += 1
        elif document.key in found:
            why["an earlier document is the same"] += 1
        else:
            found[document.key] = _paper(document, (script.mark, *ids), asked)
    if not found:
        raise UserError(f"dataset={corpus.name}: none of {len(documents)} validation documents can be used ({reasons(why)}); give "
                        "dataset.validation=FILE, or a model.tokenizer= that goes with the model")
    return list(found.values()), why


def _paper(document: Document, ids, asked) -> Paper:
    return Paper(document.key, document.source, tuple(ids), tuple(asked))


@torch.no_grad()
def nats(lm, documents: Sequence[Paper], *, length: int, size: int) -> list[float]:
    """What each document costs. Windows of `length` tokens overlap by one, so that every token is predicted once; `size` of
    them run together, padded on the right, where nothing looks."""
    rows = [(number, paper.ids[at:at + length], max(0, len(paper.ids) - len(paper.asked) - 1 - at))
            for number, paper in enumerate(documents) for at in range(0, len(paper.ids) - 1, length - 1)]
    rows.sort(key=lambda row: (len(row[1]), row[0]))
    cost = [0.0] * len(documents)
    for start in range(0, len(rows), size):
        few = rows[start:start + size]
        for (number, *_), x in zip(few, _costs(lm, few), strict=True):
            cost[number] += x
    return cost


def _costs(lm, rows) -> list[float]:
    """The nats of each row but for its first `skipped` predictions."""
    longest = max(len(ids) for _, ids, _ in rows)
    tokens_BL = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for _, ids, _ in rows], device=lm.device)
    resid_BLD, _ = lm.through(lm.embed(tokens_BL[:, :-1]), keep=False)
    nats_BL = F.cross_entropy(lm.unembed(resid_BLD).transpose(1, 2), tokens_BL[:, 1:], reduction="none").double()
    return [nats_BL[i, skipped:len(ids) - 1].sum().item() for i, (_, ids, skipped) in enumerate(rows)]
