"""What the embedded models read: sentences of the world packed one after another, and in-context tasks.

Shape legend: B sequences, L tokens.
"""
from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mamba_mi.config import stream
from mamba_mi.data.facts.tasks import OTHER, Draw, Passage, box, filler, mqar, repeat, said
from mamba_mi.data.facts.vocabulary import BOS, pieces, vocabulary
from mamba_mi.data.facts.words import CITIES, COUNTRIES, PERSON, TWO_HOP
from mamba_mi.data.facts.world import Saying, world
from mamba_mi.trace import BLIND, Site, Trace

SEQUENCES = {"text": 0.70, "mqar": 0.20, "box": 0.05, "repeat": 0.05}  # shares of the sequences
SENTENCES = {"people": 0.69, "places": 0.07, "two_hop": 0.17, "filler": 0.07}  # shares of a text's sentences
RELATIONS = {"people": PERSON, "places": {**CITIES, **COUNTRIES}, "two_hop": TWO_HOP}
SHORTEST = 45  # four boxes told once, and one again
TASKS = {"mqar": mqar, "box": box, "repeat": repeat}


def batch_at(step: int, *, seed: int, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """The tokens_BL of a step and the weight of predicting each, a function of (seed, step) alone."""
    draw = Draw(stream(seed, "step", step))
    passages = [_passage(draw, length) for _ in range(batch)]
    ids = vocabulary()
    tokens_BL = torch.tensor([[ids[word] for word in passage.words] for passage in passages])
    return tokens_BL, torch.tensor([passage.weights for passage in passages])


def _passage(draw: Draw, length: int) -> Passage:
    kind = draw.share_of(SEQUENCES)
    return text(draw, length) if kind == "text" else TASKS[kind](draw, length)


def text(draw: Draw, length: int) -> Passage:
    """Sentences in drawn order, each on its own: nothing in one says anything about the next."""
    words = [(BOS, 0.0)]
    while len(words) < length:
        kind = draw.share_of(SENTENCES)
        if kind == "filler":
            words += said(filler(draw), answer=OTHER)
        else:
            words += said(sentence(draw.one_of(trained(kind))))
    return Passage([word for word, _ in words[:length]], [weight for _, weight in words[:length]], [])


@lru_cache
def trained(kind: str) -> tuple[Saying, ...]:
    """Every saying of this kind that a model may be told: never a held-out one."""
    return tuple(s for relation in RELATIONS[kind] for s in world().sayings(relation, "train"))


def sentence(saying: Saying) -> list[str]:
    """The tokens of a saying, its answer last."""
    before, after = saying.parts
    return [*before.split(), *pieces(saying.subject), *after.split(), world().answer(saying)]


def next_token_loss(lm, tokens_BL: Tensor, weights_BL: Tensor, total: float | None = None, recompute: bool = False) -> Tensor:
    """Cross entropy of every token given those before it, averaged by weight; and what layers add for their balance.

    Of a part of a batch whose weights sum to `total` it is the part's share of the whole batch's loss. `recompute` keeps
    of each layer its input alone, and runs it again for the gradients.
    """
    balanced = [layer for layer in lm.layers if layer.BALANCED]
    sites = [Site(layer.layer, name) for layer in balanced for name in layer.BALANCED]
    trace = Trace(keep=sites, grad=torch.is_grad_enabled()) if sites else BLIND
    resid_BLD = _through(lm, lm.embed(tokens_BL, trace), trace, recompute)
    logits_BLV = lm.unembed(resid_BLD[:, :-1])
    target_N = tokens_BL[:, 1:].flatten().to(logits_BLV.device)
    nats_N = F.cross_entropy(logits_BLV.flatten(0, 1), target_N, reduction="none")
    weights_N = weights_BL[:, 1:].flatten().to(nats_N)
    whole = weights_N.sum() if total is None else total
    loss = (nats_N * weights_N).sum() / whole
    return loss + sum(layer.auxiliary_loss(trace) for layer in balanced) * (1 if total is None else weights_N.sum() / total)


def _through(lm, resid_BLD: Tensor, trace, recompute: bool) -> Tensor:
    if not recompute:
        return lm.through(resid_BLD, trace=trace, keep=False)[0]
    for i in range(len(lm.layers)):
        resid_BLD = checkpoint(_layer, lm, resid_BLD, i, use_reentrant=False)
    return resid_BLD


def _layer(lm, resid_BLD: Tensor, i: int) -> Tensor:
    return lm.through(resid_BLD, first=i, last=i + 1, keep=False)[0]
