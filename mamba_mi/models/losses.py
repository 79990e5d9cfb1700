"""What sources take out of the clean prefix before a pass, as masks and places on the host: made once for all layers.

Shape legend: B prompts, R rows (jobs of prompts, job by job), T the prefix's length, X slots of it, F entries of all losses,
one loss after another; Y slots of the table of writes, K conv width, U losses, V losses of prompts.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STATES = 1 << 22  # numbers of states that are made at once
FEW = 2 * 4  # slots a loss: a token that is taken out of a conv four wide is gone from four slots, and four are written anew


class Loss(NamedTuple):
    """What one set of sources takes out of the prefix: the slots whose write goes, and those that are written anew
    without the tokens (`tokens`, and `sides` by all taps but their own); masks B by slots."""

    gone_X: Tensor
    gone_BX: Tensor
    anew_X: Tensor
    anew_BX: Tensor
    tokens_BT: Tensor
    sides_BT: Tensor


def smeared(mask_BT: Tensor, width: int) -> Tensor:
    """The tokens of a mask, and the slots after each that a conv so wide brings it to."""
    out_BT = mask_BT.clone()
    for lag in range(1, width):
        out_BT[:, lag:] |= mask_BT[:, :-lag]
    return out_BT


def loss(slots_BT: Tensor, tokens_BT: Tensor, sides_BT: Tensor, width: int) -> Loss | None:
    """The loss of a removal of slots, tokens and sides; None where it touches nothing of the prefix."""
    reached_BT = smeared(tokens_BT | sides_BT, width)
    gone_BT, anew_BT = slots_BT | reached_BT, reached_BT & ~slots_BT
    gone_X, anew_X = (mask_BT.any(dim=0).nonzero()[:, 0] for mask_BT in (gone_BT, anew_BT))
    return Loss(gone_X, gone_BT[:, gone_X], anew_X, anew_BT[:, anew_X], tokens_BT, sides_BT) if len(gone_X) else None


class Part(NamedTuple):
    """Some of the losses whose states are made at once: these, the rows that have them, and each row's own among their
    states; None where row r's is state r % how many there are."""

    losses: slice
    row_R: Tensor | slice
    at_R: Tensor | None


class Losses:
    """The distinct losses among those of R rows, a block of `prompts` rows each, and what is made of them alone: once for
    all layers. A state has `state` numbers; `like` has the layer's type and place."""

    def __init__(self, of: Sequence[Loss | None], prompts: int, width: int, state: int, like: Tensor):
        self.each = list({id(loss): loss for loss in of if loss is not None}.values())
        self.prompts, self.width, self.state = prompts, width, state
        self.kind, self.device = torch.promote_types(like.dtype, torch.float32), like.device
        number = {id(loss): i for i, loss in enumerate(self.each)}
        # a row that loses nothing has the number after the last
        number_R = torch.tensor([number.get(id(loss), len(self.each)) for loss in of]).repeat_interleave(prompts)
        self._number_R, self._state_R = number_R, number_R * prompts + torch.arange(prompts).repeat(len(of))
        self.rows = len(number_R)

    def _on(self, x: Tensor) -> Tensor:
        # a copy from the host that was waited for would wait for all the device has to do
        return x.to(self.device, non_blocking=True)

    @cached_property
    def _slots_Y(self) -> Tensor:
        return torch.cat([each.gone_X for each in self.each]).unique()

    @cached_property
    def slots_Y(self) -> Tensor:
        """Every slot whose write goes."""
        return self._on(self._slots_Y)

    @cached_property
    def anew(self) -> tuple[Tensor, Tensor] | None:
        """The slots of every write that is put in, loss after loss, and the taps its conv is without."""
        if not any(len(each.anew_X) for each in self.each):
            return None
        taps_BXK = torch.cat([cut_taps(each.tokens_BT, each.sides_BT, each.anew_X, self.width) for each in self.each], dim=1)
        return self._on(torch.cat([each.anew_X for each in self.each])), self._on(taps_BXK)

    @cached_property
    def at_Y(self) -> Tensor:
        """The slots of the table: those whose writes go, then those of the writes put in."""
        return self.slots_Y if self.anew is None else torch.cat([self.slots_Y, self.anew[0]])

    @cached_property
    def _entries(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of every loss the entries of the table that it is about: loss_F, which it is of its loss (place_F), at_F, and
        weight_BF: 1 for what is gone, -1 for what is written in its place, 0 where not in that prompt."""
        gone, anew = (torch.tensor([len(getattr(each, name)) for each in self.each]) for name in ("gone_X", "anew_X"))
        at_F = torch.cat([torch.searchsorted(self._slots_Y, torch.cat([each.gone_X for each in self.each])),
                          len(self._slots_Y) + torch.arange(int(anew.sum()))])
        loss_F = torch.cat([torch.arange(len(self.each)).repeat_interleave(count) for count in (gone, anew)])
        place_F = torch.cat([_counted(gone), _counted(anew) + gone.repeat_interleave(anew)])
        weight_BF = torch.cat([*(each.gone_BX for each in self.each), *(each.anew_BX for each in self.each)], dim=1).to(self.kind)
        weight_BF[:, int(gone.sum()):].neg_()
        return loss_F, place_F, at_F, weight_BF

    @cached_property
    def picks(self) -> list[tuple[Tensor, Tensor]]:
        """Of each loss its entries of the table, and their weights."""
        loss_F, _, at_F, weight_BF = self._entries
        each = [(loss_F == i).nonzero()[:, 0] for i in range(len(self.each))]
        return [(self._on(at_F[own_X]), self._on(weight_BF[:, own_X])) for own_X in each]

    @cached_property
    def few(self) -> bool:
        """Whether each is of a few slots: then all are read at once."""
        return int(self._entries[1].max()) < FEW

    @cached_property
    def _few(self) -> tuple[Tensor, Tensor]:
        """The entries of the table, prompt after prompt, that each loss of a prompt is about, and their weights, X by V; the
        last of V, those of a row that loses nothing, weigh nothing."""
        loss_F, place_F, at_F, weight_BF = self._entries
        at_XUB = torch.zeros(int(place_F.max()) + 1, len(self.each) + 1, self.prompts, dtype=torch.long)
        weight_XUB = torch.zeros(at_XUB.shape, dtype=self.kind)
        at_XUB[place_F, loss_F], weight_XUB[place_F, loss_F] = at_F[:, None], weight_BF.T
        size = len(self._slots_Y) + sum(len(each.anew_X) for each in self.each)
        return (at_XUB + torch.arange(self.prompts) * size).flatten(1), weight_XUB.flatten(1)

    @cached_property
    def of_rows(self) -> tuple[Tensor, Tensor]:
        """`_few`, by rows."""
        return tuple(self._on(x_XV[:, self._state_R]) for x_XV in self._few)

    def of_states(self, losses: slice) -> tuple[Tensor, Tensor]:
        """`_few`, by losses and prompts."""
        return tuple(x_XV[:, losses.start * self.prompts:losses.stop * self.prompts] for x_XV in self._few_on)

    @cached_property
    def _few_on(self) -> tuple[Tensor, ...]:
        return tuple(map(self._on, self._few))

    @cached_property
    def row_R(self) -> list[Tensor]:
        """The rows that have each loss."""
        return [self._on((self._number_R == i).nonzero()[:, 0]) for i in range(len(self.each))]

    @cached_property
    def parts(self) -> list[Part]:
        """The losses in parts whose states are made at once."""
        found, size = [], max(1, STATES // (self.state * self.prompts)) if self.few else 1
        for at in range(0, len(self.each), size):
            losses = slice(at, min(at + size, len(self.each)))
            row_R = ((losses.start <= self._number_R) & (self._number_R < losses.stop)).nonzero()[:, 0]
            at_R = self._state_R[row_R] - at * self.prompts
            in_step = torch.equal(at_R, torch.arange(len(at_R)) % ((losses.stop - at) * self.prompts))
            found.append(Part(losses, slice(None) if len(row_R) == self.rows else self._on(row_R), None if in_step else self._on(at_R)))
        return found


def cut_taps(tokens_BT: Tensor, sides_BT: Tensor, at_X: Tensor, width: int) -> Tensor:
    """The taps, oldest first, that a causal conv so wide is without at some slots, BXK: of the tokens taken out; of those of
    `sides` all but their own slot's."""
    at_XK = at_X[:, None] + torch.arange(width, device=at_X.device)  # in the prefix padded by width - 1 in front
    tokens_BXK, sides_BXK = (F.pad(mask_BT, (width - 1, 0))[:, at_XK] for mask_BT in (tokens_BT, sides_BT))
    return tokens_BXK | (sides_BXK & (torch.arange(width, device=at_X.device) < width - 1))


def _counted(sizes: Tensor) -> Tensor:
    """0 … size-1 for one size after another."""
    return torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
