"""Knockouts of Hyena's long convolution: y[Q] loses k_{t-s} (w_s - w'_s), w' being what is written without the sources.

A pass may start at its query: the state before it holds what the short conv and the long one took in, of every token.
Shape legend: B rows of a block, L length of the pass, P tokens before it, T = P + L, X slots whose write changes, Q queries,
D width, C = 3D channels of the short conv, K its width.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_mi.backends.reference import spread
from mamba_mi.models.knocking import refuse_gradients
from mamba_mi.models.losses import cut_taps, smeared
from mamba_mi.models.prefix import conv_without
from mamba_mi.models.removals import Gone, gone
from mamba_mi.trace import Site

WORK = 1 << 22  # numbers of taps brought together at once


class Hidden(NamedTuple):
    """What the short conv gave: the gate x0, and what the long convolution takes in, x1 v."""

    x0_BLD: Tensor
    w_BLD: Tensor


def knocked(block, trace, y_BLD, u_BLC, seen: Hidden, k_TD, past) -> tuple[Tensor, Tensor]:
    """y (with the bias term in it) and x0 after this layer's knockouts; `u_BLC` is what the short conv took in."""
    rows, length, _ = y_BLD.shape
    found = gone(trace, block.layer, rows, length, block.config)
    x0_BLD = seen.x0_BLD
    if not found:
        return y_BLD, x0_BLD
    if trace.grad:
        _refuse_two_gradients(block, trace, [each for _, each in found])
    size = len(found[0][1].queries_BLH)
    for number, each in found:
        row_B = torch.arange(number * size, (number + 1) * size, device=y_BLD.device)
        without = _Without(block, trace, number, each, u_BLC[row_B], Hidden(*(x[row_B] for x in seen)), _own(past, size))
        y_B, x0_B = without.read(y_BLD[row_B], x0_BLD[row_B], k_TD if k_TD.ndim == 2 else k_TD[row_B])
        y_BLD = y_BLD.index_put((row_B,), y_B)
        x0_BLD = x0_BLD.index_put((row_B,), x0_B) if each.own else x0_BLD
    return y_BLD, x0_BLD


def _own(past, size: int):
    """The state a block's rows start from: a row each, or one that stands for all."""
    return past and type(past)(*(x if len(x) == 1 else spread(x, size) for x in past))


class _Without:
    """One block of rows, and what its queries lose."""

    def __init__(self, block, trace, number: int, each: Gone, u_BLC, seen: Hidden, past):
        self.block, self.trace, self.number, self.each, self.past = block, trace, number, each, past
        self.u_BLC, self.seen, self.before = u_BLC, seen, 0 if past is None else past.u_BPC.shape[1]
        masks = (each.slots_BT, each.tokens_BT, each.sides_BT)
        # a mask may say nothing of what came before the pass
        pad = self.before + u_BLC.shape[1] - each.slots_BT.shape[1]
        self.slots_BT, self.tokens_BT, self.sides_BT = (F.pad(mask, (pad, 0)).to(u_BLC.device) for mask in masks)

    def read(self, y_BLD, x0_BLD, k_TD) -> tuple[Tensor, Tensor]:
        """y with what the queries lose taken off, and x0, the queries' made anew where their own is."""
        queries_BLH = self.each.queries_BLH.to(y_BLD.device)
        at_Q = queries_BLH.any(2).any(0).nonzero()[:, 0]
        made = self._made() if (self.tokens_BT | self.sides_BT).any() else self.seen
        lost_BTD = torch.cat([self._lost_before(), self._lost_in_the_pass(made.w_BLD)], dim=1)
        slot_X = (self.slots_BT | smeared(self.tokens_BT | self.sides_BT, self.block.config.d_conv)).any(0).nonzero()[:, 0]
        off_BQD = _weighed(k_TD, self.before + at_Q, slot_X, lost_BTD[:, slot_X])
        if self.each.own:  # the bias term, too, is then of what is made without the sources
            off_BQD = off_BQD + ((self.seen.w_BLD - made.w_BLD)[:, at_Q] * self.block.filter_fn.bias).to(off_BQD)
        mask_BQH = queries_BLH[:, at_Q]
        y_BQD = torch.where(mask_BQH, y_BLD[:, at_Q] - off_BQD.to(y_BLD.dtype), y_BLD[:, at_Q])
        y_BLD = y_BLD.index_copy(1, at_Q, y_BQD)
        return y_BLD, torch.where(queries_BLH, made.x0_BLD, x0_BLD) if self.each.own else x0_BLD

    def _made(self) -> Hidden:
        """The pass's short conv and what follows, no tap reading a token taken out; edits act on it as on the first."""
        pass_ = slice(self.before, None)
        tokens_BL, sides_BL = self.tokens_BT[:, pass_, None], self.sides_BT[:, pass_, None]
        past = self.past
        if past is not None:
            gone_BP1 = (self.tokens_BT | self.sides_BT)[:, :self.before, None]
            past = past._replace(u_BPC=past.u_BPC.masked_fill(gone_BP1, 0))
        c_BLC = self.block.short(self.u_BLC.masked_fill(tokens_BL | sides_BL, 0), past, self.u_BLC.masked_fill(~sides_BL, 0))
        return self.block.split(lambda name, x: self.trace.again(
            Site(self.block.layer, name), x, [self.number], self.trace.offset), c_BLC)

    def _lost_in_the_pass(self, made_BLD) -> Tensor:
        """w - w' of the pass's slots: all of a slot that writes nothing."""
        return self.seen.w_BLD - made_BLD.masked_fill(self.slots_BT[:, self.before:, None], 0)

    def _lost_before(self) -> Tensor:
        """The same of the slots before the pass, which no edit reaches; 0 where nothing is lost."""
        if self.past is None:
            return self.seen.w_BLD[:, :0]
        u_BPC, w_BPD = self.past
        tokens_BP, sides_BP, slots_BP = (x[:, :self.before] for x in (self.tokens_BT, self.sides_BT, self.slots_BT))
        new_BPD = w_BPD.masked_fill(slots_BP[..., None], 0)
        again_X = smeared(tokens_BP | sides_BP, self.block.config.d_conv).any(0).nonzero()[:, 0]
        if len(again_X):
            _, x1_BXD, v_BXD = conv_without(
                self.block.short_filter, u_BPC, again_X, cut_taps(tokens_BP, sides_BP, again_X, self.block.config.d_conv)).chunk(3, dim=-1)
            new_BPD = new_BPD.index_copy(1, again_X, (x1_BXD * v_BXD).masked_fill(slots_BP[:, again_X, None], 0))
        return w_BPD - new_BPD


def _weighed(k_TD, at_Q, slot_X, lost_BXD) -> Tensor:
    """Σ_x k_{t-x} lost_x at each query, some queries at a time."""
    size = max(1, WORK // max(1, lost_BXD[0].numel()))
    kind = torch.promote_types(lost_BXD.dtype, torch.float32)
    parts = []
    for part_Q in at_Q.split(size):
        lag_QX = part_Q[:, None] - slot_X
        k_QXD = k_TD[..., lag_QX.clamp(min=0), :].masked_fill((lag_QX < 0)[..., None], 0).to(kind)
        parts.append(torch.einsum("qxd,bxd->bqd" if k_TD.ndim == 2 else "bqxd,bxd->bqd", k_QXD, lost_BXD.to(kind)))
    return torch.cat(parts, dim=1)


def _refuse_two_gradients(block, trace, found) -> None:
    if any((each.tokens_BT | each.sides_BT).any() for each in found):
        refuse_gradients(block, trace, ["conv", "x1", "v", "x1v"] + ["x0"] * any(each.own for each in found))
