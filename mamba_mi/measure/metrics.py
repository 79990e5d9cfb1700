"""Metrics of the logits at the answer's position, one number a row.

Rows of a padded vocabulary are -inf and count for nothing. Half-precision logits are taken in float32, float64
stays. Shape legend: B rows (prompts, or jobs of a batch), V vocabulary.
"""
from __future__ import annotations

import torch
from torch import Tensor


def logit_difference(logits_BV: Tensor, right_B: Tensor, wrong_B: Tensor) -> Tensor:
    """logit(right) - logit(wrong)."""
    return _wide(_at(logits_BV, right_B)) - _wide(_at(logits_BV, wrong_B))


def log_probability(logits_BV: Tensor, target_B: Tensor) -> Tensor:
    """log softmax at the target, natural."""
    wide_BV = _wide(logits_BV)
    # from the largest logit, not from 0: in float32 the log of a probability near 1 would drown in the logits' rounding
    largest_B1 = wide_BV.amax(dim=-1, keepdim=True)
    # e^-80 is nothing beside the largest's 1, and far below it exp gives denormal numbers, at ten times the time
    return _at(wide_BV, target_B) - largest_B1[:, 0] - (wide_BV - largest_B1).clamp_min(-80).exp().sum(dim=-1).log()


def probability(logits_BV: Tensor, target_B: Tensor) -> Tensor:
    """Softmax at the target, over the unpadded vocabulary."""
    return log_probability(logits_BV, target_B).exp()


def rank(logits_BV: Tensor, target_B: Tensor) -> Tensor:
    """How many tokens stand before the target, 0 = top; of tied tokens the lower id stands first, as in argmax.

    A NaN stands before everything and a NaN target behind everything, so a broken pass never looks like a hit.
    """
    target_B1 = target_B[:, None]
    logit_B1 = logits_BV.gather(-1, target_B1)
    token_V = torch.arange(logits_BV.shape[-1], device=logits_BV.device)
    return (~(logits_BV <= logit_B1) | ((logits_BV == logit_B1) & (token_V < target_B1))).sum(dim=-1)


def hit(logits_BV: Tensor, target_B: Tensor) -> Tensor:
    """1 where the target is the argmax, else 0, as a float: its mean is the top-1 rate."""
    top_B = _at(logits_BV, target_B) == logits_BV.amax(dim=-1)
    # of those at the top, not the ones that share it with a lower id
    top_B[top_B.clone()] = rank(logits_BV[top_B], target_B[top_B]) == 0
    return top_B.to(_wide(logits_BV[:0]).dtype)


def kl(clean_BV: Tensor, patched_BV: Tensor) -> Tensor:
    """KL(P_clean || P_patched) in nats; a token impossible under clean adds 0, gradients included."""
    clean_BV, patched_BV = _wide(clean_BV).log_softmax(dim=-1), _wide(patched_BV).log_softmax(dim=-1)
    # -inf - -inf is NaN, and 0 * NaN too: the difference is blanked before it is weighted
    ratio_BV = (clean_BV - patched_BV).masked_fill(clean_BV == -torch.inf, 0.0)
    return (clean_BV.exp() * ratio_BV).sum(dim=-1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _at(x_BV: Tensor, token_B: Tensor) -> Tensor:
    return x_BV.gather(-1, token_B[:, None])[:, 0]
