"""The metrics of an answer, read off the logits at its tokens.

Shape legend: S jobs, B prompts, K answer tokens, V vocabulary, M metrics.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mamba_mi.measure import metrics


class Answers(NamedTuple):
    """A batch's right answers, all their tokens (the last repeated to equal length), and their wrong ones' first."""

    right_BK: Tensor
    length_B: Tensor
    wrong_B: Tensor

    @property
    def tail(self) -> int:
        return self.right_BK.shape[1]

    def continued(self, tokens_BL: Tensor) -> Tensor:
        """The tokens with all of the answer but its last behind them: the logits of the last K then are the answer's."""
        return torch.cat([tokens_BL, self.right_BK[:, :-1].to(tokens_BL)], dim=1)


def answers(batch, names: Sequence[str], device) -> Answers:
    """The answers of a batch, whole where one of the metrics named reads them whole. Of a pair the wrong answer is the
    corrupt prompt's own; of a single prompt its `wrong_id`, or where it has none the right one: a difference of 0, to
    be left out (`experiments._knockouts.table`)."""
    right = [p.target_ids or (p.target_id,) for p in batch.prompts]
    if not any(METRICS[name].whole for name in names):
        right = [ids[:1] for ids in right]
    longest = max(map(len, right))
    padded = [(*ids, *ids[-1:] * (longest - len(ids))) for ids in right]
    wrong = [p.target_id for p in batch.corrupt] or [
        p.target_id if p.wrong_id is None else p.wrong_id for p in batch.prompts]
    return Answers(torch.tensor(padded, device=device), torch.tensor([len(ids) for ids in right], device=device),
                   torch.tensor(wrong, device=device))


class Metric(NamedTuple):
    """What it makes of jobs' logits SBKV, the answers and the clean run's BKV; `whole`: reads every answer token."""

    of: Callable[[Tensor, Answers, Tensor | None], Tensor]
    whole: bool = False


def _first(of: Callable[[Tensor, Answers], Tensor]) -> Metric:
    """A metric of the answer's first token, from rows of logits and as many answers."""
    def measure(logits_SBKV, told: Answers, clean_BKV):
        jobs = len(logits_SBKV)
        rows = Answers(told.right_BK.repeat(jobs, 1), told.length_B.repeat(jobs), told.wrong_B.repeat(jobs))
        return of(logits_SBKV[:, :, 0].flatten(0, 1), rows).unflatten(0, logits_SBKV.shape[:2])
    return Metric(measure)


def _kl(logits_SBKV, told, clean_BKV):
    return metrics.kl(clean_BKV[None, :, 0], logits_SBKV[:, :, 0])


def _target_logprob(logits_SBKV, told, clean_BKV):
    log_p_SBK = torch.stack([metrics.log_probability(logits_BKV.flatten(0, 1), told.right_BK.flatten())
                             .unflatten(0, told.right_BK.shape) for logits_BKV in logits_SBKV])
    real_BK = torch.arange(told.tail, device=log_p_SBK.device) < told.length_B[:, None]
    return torch.where(real_BK, log_p_SBK, 0.0).sum(dim=-1)


METRICS = {
    "logit_difference": _first(lambda logits, told: metrics.logit_difference(logits, told.right_BK[:, 0], told.wrong_B)),
    "probability": _first(lambda logits, told: metrics.probability(logits, told.right_BK[:, 0])),
    "log_probability": _first(lambda logits, told: metrics.log_probability(logits, told.right_BK[:, 0])),
    "hit": _first(lambda logits, told: metrics.hit(logits, told.right_BK[:, 0])),
    "rank": _first(lambda logits, told: metrics.rank(logits, told.right_BK[:, 0])),
    "kl": Metric(_kl),
    "target_logprob": Metric(_target_logprob, whole=True),
}


def narrow(names: Sequence[str], told: Answers) -> tuple[Tensor, Answers] | None:
    """Where the metrics named read two logits alone: their token ids, B by 2, and the answers counted among these."""
    if set(names) != {"logit_difference"} or told.tail > 1:
        return None
    first_B = torch.zeros_like(told.wrong_B)
    return torch.stack([told.right_BK[:, 0], told.wrong_B], dim=1), Answers(first_B[:, None], told.length_B, first_B + 1)


def reader(names: Sequence[str], told: Answers, clean_BKV: Tensor | None) -> Callable[[Tensor], Tensor]:
    """What the cone reads: these metrics of each job's logits, S B M in float64."""
    both = {"probability", "log_probability"} <= set(names)  # one pass over the vocabulary makes the two

    def read(logits_SBKV: Tensor) -> Tensor:
        found = {name: METRICS[name].of(logits_SBKV, told, clean_BKV) for name in names if not (both and name == "probability")}
        if both:
            found["probability"] = found["log_probability"].exp()
        return torch.stack([found[name].double() for name in names], dim=-1)
    return read
