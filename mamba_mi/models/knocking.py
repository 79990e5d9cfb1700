"""Knockouts inside a layer: a query reads a second scan, in which its sources were never written.

y[Q] := scan(v, sources removed)[Q], one more scan for each distinct set of sources, never a length² matrix. Edits at
sites that the second scan makes anew (conv, dt, B, C, write, state) act there as they do in the first.
Shape legend: B rows of a block, R rows scanned again (a block for each removal), L length, C conv channels, H heads
(1: all alike), P head width, N state, G groups, K knockouts.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mamba_mi.backends import reference
from mamba_mi.backends.reference import spread
from mamba_mi.config import UserError
from mamba_mi.models.prefix import Loss, loss, lost, lost_states, smeared
from mamba_mi.trace import Site


class Selected(NamedTuple):
    """What a layer's scan is made of: its input, its step, B and C."""

    v_BLHP: Tensor
    dt_BLH: Tensor
    B_BLGN: Tensor
    C_BLGN: Tensor


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


def knock_out(mixer, trace, y_BLHP: Tensor, u_BLC: Tensor, selected: Selected, A_HN: Tensor, past) -> Tensor:
    """`y_BLHP` (with the D-skip in it) after this layer's knockouts; `u_BLC` is what the conv took in."""
    found = trace.knockouts(mixer.layer, len(y_BLHP))
    here = [(block, removal) for block, knockouts in found
            for removal in _remembered(trace, knockouts, y_BLHP.shape[1], mixer.config)]
    if not here:
        return y_BLHP
    # edits on what the scan writes act on the state itself: there the second scan starts from the state without the loss
    watched = _is_watched(mixer, trace)
    loud = [(block, removal) for block, removal in here if watched or removal.inside]
    quiet = [(block, removal) for block, removal in here if not (watched or removal.inside)]
    for group, again in ((quiet, None), (loud, _scanned_again)):
        if group:
            y_BLHP = _replaced(mixer, trace, group, again, watched, y_BLHP, u_BLC, selected, A_HN, past)
    return y_BLHP


def _replaced(mixer, trace, here, again, watched, y_BLHP, u_BLC, selected, A_HN, past) -> Tensor:
    """y with the queries of some blocks' removals put in; `again` scans their rows a second time."""
    blocks, removals = zip(*here, strict=True)
    device, size = y_BLHP.device, len(removals[0].queries_BLH)
    row_R = (torch.tensor(blocks)[:, None] * size + torch.arange(size)).flatten().to(device)
    losses = _by_loss(removals, size, device)
    y_RLHP, dt_RLH, C_RLGN = y_BLHP[row_R], selected.dt_BLH[row_R], selected.C_BLGN[row_R]
    if again:
        if trace.grad:
            _refuse_two_gradients(mixer, trace, removals)
        past = past and starts(past, row_R)
        if watched and losses:
            gone_RHPN = lost_states(mixer, trace.before(mixer.layer, mixer.BEFORE), losses, len(row_R), A_HN)
            past = past._replace(h_BHPN=spread(past.h_BHPN, len(row_R)) - gone_RHPN)
            losses = []
        clean = type(selected)(*(x[row_R] for x in selected))
        y_RLHP, C_RLGN = again(mixer, trace, blocks, removals, u_BLC[row_R], clean, A_HN, past)
    if losses:
        y_RLHP = y_RLHP - lost(mixer, trace.before(mixer.layer, mixer.BEFORE), losses, C_RLGN, dt_RLH, A_HN).to(y_RLHP.dtype)
    heads = max(removal.queries_BLH.shape[2] for removal in removals)
    queries_RLH1 = torch.cat([removal.queries_BLH.expand(-1, -1, heads) for removal in removals])[..., None].to(device)
    if len(set(blocks)) == len(blocks):
        # in place where it may be: y is this layer's own until it is handed on
        put = y_BLHP.index_copy if y_BLHP.requires_grad or y_RLHP.requires_grad else y_BLHP.index_copy_
        return put(0, row_R, y_RLHP if queries_RLH1.all() else torch.where(queries_RLH1, y_RLHP, y_BLHP[row_R]))
    at = queries_RLH1[..., 0].nonzero(as_tuple=True)
    at = at if queries_RLH1.shape[2] > 1 else at[:2]
    return y_BLHP.index_put((row_R[at[0]], *at[1:]), y_RLHP[at])


def _by_loss(removals: Sequence[Removal], size: int, device) -> list[tuple[Loss, Tensor]]:
    """Each distinct loss with the rows that have it."""
    rows: dict[int, tuple[Loss, list[int]]] = {}
    for number, removal in enumerate(removals):
        if removal.loss is not None:
            rows.setdefault(id(removal.loss), (removal.loss, []))[1].append(number)
    each_B = torch.arange(size)
    return [(each, (torch.tensor(numbers)[:, None] * size + each_B).flatten().to(device)) for each, numbers in rows.values()]


def _scanned_again(mixer, trace, blocks, removals, u_RLC, clean, A_HN, past) -> tuple[Tensor, Tensor]:
    """The scan and the D-skip with the sources of the pass removed (what is written changes, what decays does not), and
    the C it was read by."""
    start = trace.offset

    def again(name, x, at=start):
        return trace.again(Site(mixer.layer, name), x, blocks, at)

    slots_RL, tokens_RL, sides_RL, tail_tokens_RK, tail_sides_RK = (
        torch.cat(masks).to(u_RLC.device) for masks in zip(*(removal[1:6] for removal in removals), strict=True))
    made = clean
    if (tokens_RL | sides_RL).any() or (tail_tokens_RK | tail_sides_RK).any():
        if past is not None:
            past = past._replace(tail_BKC=spread(past.tail_BKC, len(u_RLC)).masked_fill(
                (tail_tokens_RK | tail_sides_RK)[..., None], 0))
        c_RLC, _ = mixer.convolve(u_RLC.masked_fill((tokens_RL | sides_RL)[..., None], 0), past,
                                  own_BLC=u_RLC.masked_fill(~sides_RL[..., None], 0))
        made = mixer.select(again, again("conv", c_RLC), clean.dt_BLH)
    slots_RL11 = slots_RL[..., None, None]
    own_R111 = torch.tensor([removal.own for removal in removals for _ in range(len(removal.queries_BLH))],
                            device=u_RLC.device)[:, None, None, None]
    C_RLGN, skip_RLHP = (torch.where(own_R111, new, old) for new, old in (
        (made.C_BLGN, clean.C_BLGN), (made.v_BLHP, clean.v_BLHP)))
    how = {} if made.dt_BLH is clean.dt_BLH else {"dt_write": made.dt_BLH}
    args = made.v_BLHP.masked_fill(slots_RL11, 0), clean.dt_BLH, A_HN, made.B_BLGN, C_RLGN
    h0, states = None if past is None else past.h_BHPN, []
    if _is_watched(mixer, trace):
        y_RLHP, _ = reference.watched_scan(
            *args, h0=h0, **how, on_write=lambda w: again("write", w).masked_fill(slots_RL11[..., None], 0),
            on_state=lambda t, h: states.append(again("state", h, start + t)) or states[-1])
    else:
        y_RLHP, _ = mixer.backend.scan(*args, h0=h0, keep_h=False, **how)
    dense_RL = torch.cat([removal.dense_BL for removal in removals]).to(u_RLC.device)
    read = clean._replace(v_BLHP=skip_RLHP, C_BLGN=C_RLGN)
    return mixer.output(again, y_RLHP, read, past, states, dense_RL), C_RLGN


def _is_watched(mixer, trace) -> bool:
    """Whether an edit acts on what this layer's scan writes or on its state."""
    return any(trace.edits(Site(mixer.layer, name)) for name in mixer.SCANNED)


def starts(past, row_R: Tensor):
    """The state these rows of the batch start from; as it is where they fall in step (row r from r % len)."""
    return type(past)(*(_start(x, row_R) for x in past))


def _start(x: Tensor, row_R: Tensor) -> Tensor:
    at_R = row_R.cpu() % len(x)
    return x if torch.equal(at_R, torch.arange(len(at_R)) % len(x)) else x[at_R]


def gone(trace, layer: int, rows: int, length: int, config) -> list[tuple[int, Gone]]:
    """What this layer's knockouts remove, with the number of the block of `rows` rows each acts in. For a mixer that
    takes sources out by itself; masks of sources end where the pass ends, and may begin before it."""
    found = trace.knockouts(layer, rows)
    return [(block, each) for block, knockouts in found
            for each in _once(trace, "gone", knockouts, lambda knockouts=knockouts: _gone(knockouts, length, config))]


def _remembered(trace, knockouts: Sequence[tuple], length: int, config) -> list[Removal]:
    """`_gone` cut at the pass's start."""
    return _once(trace, "removals", knockouts, lambda: [
        _removal(trace, *each, length, config.d_conv) for each in _gone(knockouts, length, config)])


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
        *masks, own, dense_BT = _together(acting, config.d_conv)
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
    inside = own or any(bool(mask.any()) for mask in masks)
    return Removal(queries_BLH, *masks, own, trace.memory[key], inside, dense_BT[:, before:])


def _together(knockouts, width: int) -> tuple[Tensor, Tensor, Tensor, bool, Tensor]:
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


def _refuse_two_gradients(mixer, trace, removals) -> None:
    names = [*mixer.SCANNED, *mixer.ROUTED]
    if any((removal.tokens_BL | removal.sides_BL).any() for removal in removals):
        names += ["conv", "B"] + ["C"] * any(removal.own for removal in removals)
        names += ["dt"] * hasattr(mixer, "dt_proj")  # made of the conv's output
    refuse_gradients(mixer, trace, names)


def refuse_gradients(layer, trace, names: Sequence[str]) -> None:
    """Raise where a gradient is asked for at a site whose value a knockout makes a second time."""
    if kept := [str(site) for site in trace.keep if site.layer == layer.layer and site.name in names]:
        raise UserError(f"gradient at {', '.join(sorted(kept))} under a knockout of layer {layer.layer}: the value is made "
                        f"twice there, with and without the sources; keep in_proj, {layer.MIXED} or another layer's site")
