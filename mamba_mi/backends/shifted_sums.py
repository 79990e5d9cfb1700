"""The causal depthwise convolution as sums of shifted inputs, and its gradient by hand: the same sums the other way.

y_t = b + Σ_k w_k ∘ u_{t-K+1+k}, hence du_s = Σ_k w_k ∘ dy_{s+K-1-k} and dw_k = Σ_t dy_t ∘ u_{t-K+1+k}; of the inputs before
the pass, the tail, likewise.

Shape legend: B batch, L length, C channels, K conv width; b rows of the tail before.
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from mamba_mi.backends.reference import again, conv


def added(u_BLC, weight_CK, bias_C, tail_bKC) -> Tensor:
    """y, which is ours until it is returned, without a copy of the inputs. What it reads of a tail that many rows share is
    summed once."""
    tap_KC = weight_CK.T.contiguous()
    length, width = u_BLC.shape[1], len(tap_KC)
    y = torch.addcmul(bias_C, u_BLC, tap_KC[width - 1])
    before = tail_bKC.new_zeros(len(tail_bKC), min(length, width - 1), tail_bKC.shape[2])
    for k in range(width - 1):
        back = width - 1 - k  # how many tokens before its own this tap reads
        y[:, back:].addcmul_(u_BLC[:, :max(length - back, 0)], tap_KC[k])
        before[:, :back].addcmul_(tail_bKC[:, k:k + length], tap_KC[k])
    y.unflatten(0, (-1, len(tail_bKC)))[:, :, :before.shape[1]] += before
    return y


class Conv(Function):
    """`added`, open to gradients of all. Where these are to have gradients themselves, they are taken through the
    reference's token loop."""

    @staticmethod
    def forward(ctx, u_BLC, weight_CK, bias_C, tail_bKC):
        ctx.save_for_backward(u_BLC, weight_CK, bias_C, tail_bKC)
        return added(u_BLC, weight_CK, bias_C, tail_bKC)

    @staticmethod
    def backward(ctx, dy_BLC):
        given = u_BLC, weight_CK, bias_C, tail_bKC = ctx.saved_tensors
        if torch.is_grad_enabled():
            return again(_by_token, given, (dy_BLC,), ctx.needs_input_grad)
        tap_KC = weight_CK.T.contiguous()
        length, width = u_BLC.shape[1], len(tap_KC)
        du, dtail, dtap_KC = dy_BLC * tap_KC[-1], torch.zeros_like(tail_bKC), torch.zeros_like(tap_KC)
        for k in range(width - 1):
            back = width - 1 - k
            du[:, :max(length - back, 0)].addcmul_(dy_BLC[:, back:], tap_KC[k])
            first = dy_BLC[:, :back].unflatten(0, (-1, len(dtail))).sum(0)  # what read of the tail
            dtail[:, k:k + length].addcmul_(first, tap_KC[k])
            dtap_KC[k] = (first * tail_bKC[:, k:k + length]).sum((0, 1))
        if ctx.needs_input_grad[1]:
            for u, dy in zip(u_BLC, dy_BLC):  # a row at a time stays in cache
                for k in range(width):
                    dtap_KC[k] += (dy[width - 1 - k:] * u[:max(length - width + 1 + k, 0)]).sum(0)
        return du.to(u_BLC.dtype), dtap_KC.T, dy_BLC.sum((0, 1)), dtail


def _by_token(u_BLC, weight_CK, bias_C, tail_bKC):
    return conv(u_BLC, weight_CK, bias_C, tail=tail_bKC)[:1]
