"""What knockouts remove, as masks on the host: made once for all the layers that have them.

Shape legend: B rows of a block, R rows that are put in together (a block for each removal), L length of the pass, T of the
whole prompt, H heads (1: all alike), K knockouts, Q entries that change.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from mamba_mi.config import UserError
from mamba_mi.models.losses import Loss, Losses, loss, smeared


class Gone(NamedTuple):
    """Queries, and what they lose: slots that write nothing, tokens out of the conv, tokens out of all conv taps but
    their own slot's; `own` says whether the queries' own reading is made without the tokens too. `dense_BT` are the
    slots that are lost as earlier layers wrote them too."""

    queries_BLH: Tensor
    slots_BT: Tensor
    tokens_BT: Tensor
    sides_BT: Tensor
    own: bool
    dense_BT: Tensor


class Removal(NamedTuple):
    """Queries, and what is removed for them: slots of the scan, tokens of the conv, tokens of all conv taps but the
    last; `own` says whether the queries' own C and D-skip are made without the tokens too. `loss` is what is removed
    before the pass; `inside` says whether anything within it is made differently. `dense_BL`: as in Gone."""

    queries_BLH: Tensor
    slots_BL: Tensor
    tokens_BL: Tensor
    sides_BL: Tensor
    tail_tokens_BK: Tensor
    tail_sides_BK: Tensor
    own: bool
    loss: Loss | None
    inside: bool
    dense_BL: Tensor


def gone(trace, layer: int, rows: int, length: int, config) -> list[tuple[int, Gone]]:
    """What this layer's knockouts remove, with the number of the block of `rows` rows each acts in. For a mixer that
    takes sources out by itself; masks of sources end where the pass ends, and may begin before it."""
    found = trace.knockouts(layer, rows)
    return [(block, each) for block, knockouts in found
            for each in _once(trace, "gone", knockouts, lambda knockouts=knockouts: _gone(knockouts, length, config))]


class Together:
    """Removals of some blocks that are put in at once, and what is made of them alone; blocks are counted from the first."""

    def __init__(self, here: Sequence[tuple[int, Removal]], losses: Losses | None, device):
        self.blocks, self.removals = zip(*here, strict=True)
        self.losses, self.device, self.size = losses, device, len(self.removals[0].queries_BLH)
        # no block twice: then whole rows are put in
        self.apart = len(set(self.blocks)) == len(self.blocks)

    def _joined(self, masks: Sequence[Tensor]) -> Tensor:
        # a copy from the host that was waited for would wait for all the device has to do
        return torch.cat(masks).to(self.device, non_blocking=True)

    @cached_property
    def row_R(self) -> Tensor:
        return self._joined([(torch.tensor(self.blocks)[:, None] * self.size + torch.arange(self.size)).flatten()])

    @cached_property
    def _queries_RLH(self) -> Tensor:
        each = [removal.queries_BLH for removal in self.removals]
        heads = max(queries_BLH.shape[2] for queries_BLH in each)
        return torch.cat([x if x.shape[2] == heads else x.expand(-1, -1, heads) for x in each])

    @cached_property
    def everywhere(self) -> bool:
        """Whether every position is a query."""
        return bool(self._queries_RLH.all())

    @cached_property
    def queries_RLH1(self) -> Tensor:
        return self._joined([self._queries_RLH])[..., None]

    @cached_property
    def at_Q(self) -> tuple[Tensor, ...]:
        """Where queries are, of R, L and, where heads differ, H."""
        at = self._queries_RLH.nonzero(as_tuple=True)
        return tuple(x_Q.to(self.device, non_blocking=True) for x_Q in (at if self._queries_RLH.shape[2] > 1 else at[:2]))

    @cached_property
    def masks(self) -> tuple[Tensor, ...]:
        """Slots that write nothing, what the conv does not take in, what its own slot's tap does; the same of the tail
        before the pass; and slots lost to routes from earlier layers."""
        slots, tokens, sides, tail_tokens, tail_sides, dense = zip(*(
            (*removal[1:6], removal.dense_BL) for removal in self.removals), strict=True)
        return tuple(map(self._joined, (slots, _either(tokens, sides), sides, _either(tail_tokens, tail_sides), dense)))

    @cached_property
    def convolved(self) -> bool:
        """Whether anything is taken out of the conv."""
        return any(bool(mask.any()) for removal in self.removals for mask in removal[2:6])

    @cached_property
    def own_R111(self) -> Tensor:
        own_X = torch.tensor([removal.own for removal in self.removals])
        return self._joined([own_X.repeat_interleave(self.size)])[:, None, None, None]


def _either(some: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    return [one | other for one, other in zip(some, others, strict=True)]


def together(trace, found: Sequence[tuple[int, Sequence[tuple]]], watched: bool, y_BLHP: Tensor, states: int, config):
    """What the knockouts found in a layer remove, `(quiet, loud)`: what was only lost before the pass, and what must be
    scanned again; all of it if `watched`. None where there is none. A state has `states` decays."""
    first, length = found[0][0], y_BLHP.shape[1]
    key = "together", watched, trace.offset, *(
        (block - first, *(id(knockout) for *_, knockout in knockouts)) for block, knockouts in found)
    if key not in trace.memory:
        here = [(block - first, removal) for block, knockouts in found
                for removal in _once(trace, "removals", knockouts, lambda knockouts=knockouts: [
                    _removal(trace, *each, length, config.d_conv) for each in _gone(knockouts, length, config)])]
        loud = [(block, removal) for block, removal in here if watched or removal.inside]
        quiet = [(block, removal) for block, removal in here if not (watched or removal.inside) and removal.loss]
        trace.memory[key] = tuple(_together_or_none(some, y_BLHP, states, config) for some in (quiet, loud))
    return trace.memory[key]


def _together_or_none(here, y_BLHP: Tensor, states: int, config) -> Together | None:
    if not here:
        return None
    losses = [removal.loss for _, removal in here]
    size = len(here[0][1].queries_BLH)
    made = Losses(losses, size, config.d_conv, y_BLHP[0, 0].numel() * states, y_BLHP) if any(losses) else None
    return Together(here, made, y_BLHP.device)


def _once(trace, what: str, knockouts: Sequence[tuple], make) -> list:
    """Made once for all the layers that have these knockouts."""
    key = what, trace.offset, *(id(knockout) for *_, knockout in knockouts)
    if key not in trace.memory:
        trace.memory[key] = make()
    return trace.memory[key]


def _gone(knockouts: Sequence[tuple], length: int, config) -> list[Gone]:
    """One for each distinct set of sources that some query of a block loses; a query of several loses all theirs."""
    if config.d_conv == 1:
        _refuse_conv(knockouts, config)
    if any(knockout.dense for *_, knockout in knockouts) and not getattr(config, "cuts_dense", False):
        raise UserError(f"Knockout(dense=True): a {config.variant} has no ways from earlier layers that can be cut apart; leave dense out")
    by_head = any(knockout.heads or knockout.channels for *_, knockout in knockouts)
    acting_KBLH = torch.stack([queries_BL[:, -length:, None] & _heads(knockout, config, by_head)
                               for queries_BL, _, knockout in knockouts])
    patterns_XK = torch.unique(acting_KBLH.flatten(1), dim=1).T if len(knockouts) > 1 else torch.ones(1, 1, dtype=torch.bool)
    found: dict[tuple, Gone] = {}
    for pattern_K in patterns_XK:
        queries_BLH = (acting_KBLH == pattern_K[:, None, None, None]).all(dim=0)
        if not pattern_K.any() or not queries_BLH.any():
            continue
        acting = [k for k, acts in zip(knockouts, pattern_K, strict=True) if acts]
        *masks, own, dense_BT = _union(acting, config.d_conv)
        key = own, *(mask_BT.numpy().tobytes() for mask_BT in (*masks, dense_BT))
        if key in found:
            queries_BLH = found[key].queries_BLH | queries_BLH
        found[key] = Gone(queries_BLH, *masks, own, dense_BT)
    return list(found.values())


def _removal(trace, queries_BLH, slots_BT, tokens_BT, sides_BT, own: bool, dense_BT, length: int, width: int) -> Removal:
    """A removal over the whole prompt cut at the pass's start; equal losses are one, so that their rows go together."""
    gone = slots_BT, tokens_BT, sides_BT
    before = slots_BT.shape[1] - length
    first = [mask_BT[:, :before] for mask_BT in gone]
    key = "loss", *(mask_BT.numpy().tobytes() for mask_BT in first)
    if key not in trace.memory:
        trace.memory[key] = loss(*first, width) if before else None
    tails = [torch.nn.functional.pad(mask_BT, (width - 1, 0))[:, before:before + width - 1] for mask_BT in gone[1:]]
    masks = [*(mask_BT[:, before:] for mask_BT in gone), *tails]
    inside = own or bool(torch.cat(masks, dim=1).any())
    return Removal(queries_BLH, *masks, own, trace.memory[key], inside, dense_BT[:, before:])


def _union(knockouts, width: int) -> tuple[Tensor, Tensor, Tensor, bool, Tensor]:
    """The union of what knockouts remove from the same queries: slots, tokens, sides; whether from the queries too; and
    the slots they remove as earlier layers wrote them."""
    gone = {conv: torch.zeros_like(knockouts[0][1]) for conv in ("scan", "both", "conv", "dense")}
    for _, sources_BL, knockout in knockouts:
        wide_BL = smeared(sources_BL, width if knockout.span == "token+conv" else 1)
        for way in (knockout.conv, "dense")[:1 + knockout.dense]:
            gone[way] |= wide_BL
    own = {knockout.query_conv for *_, knockout in knockouts if knockout.conv != "scan"}
    if len(own) > 1:
        raise UserError("two knockouts take tokens out of the conv for the same query, one with query_conv and one without: "
                        "give both the same")
    return gone["scan"], gone["both"], gone["conv"] & ~gone["both"], True in own, gone["dense"]


def _heads(knockout, config, by_head: bool) -> Tensor:
    """The heads a knockout is about, as a mask of H; one True when every knockout here is about all."""
    (own, count), other = config.mixes_by, {"heads": "channels", "channels": "heads"}[config.mixes_by[0]]
    if getattr(knockout, other) is not None:
        raise UserError(f"Knockout({other}={list(getattr(knockout, other))}): a {config.variant} has no {other} but {count} "
                        f"{own}; give {own}=")
    if (asked := getattr(knockout, own)) is None:
        return torch.ones(count if by_head else 1, dtype=torch.bool)
    if max(asked) >= count:
        raise UserError(f"Knockout({own}={list(asked)}): there are {own} 0-{count - 1}")
    mask_H = torch.zeros(count, dtype=torch.bool)
    mask_H[list(asked)] = True
    return mask_H


def _refuse_conv(knockouts: Sequence[tuple], config) -> None:
    """Of a variant in which no token reaches another's slot but by the mixing."""
    for *_, knockout in knockouts:
        asked = [f"{name}={getattr(knockout, name)!r}" for name, plain in (("conv", "scan"), ("span", "token"), ("query_conv", False))
                 if getattr(knockout, name) != plain]
        if asked:
            raise UserError(f"Knockout({', '.join(asked)}): a {config.variant} has no conv; give conv=\"scan\", span=\"token\"")
