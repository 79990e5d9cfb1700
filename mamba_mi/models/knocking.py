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
from mamba_mi.config import UserError
from mamba_mi.trace import Site

BEFORE = ("in_proj", "conv", "dt")  # sites from which a second scan can be made


class Selected(NamedTuple):
    """What a layer's scan is made of: its input, its step, B and C."""

    v_BLHP: Tensor
    dt_BLH: Tensor
    B_BLGN: Tensor
    C_BLGN: Tensor


class Removal(NamedTuple):
    """Queries, and what is removed for them: slots of the scan, tokens of the conv, tokens of all conv taps but the
    last; `own_B11` says whether the queries' own C and D-skip are made without the tokens too."""

    queries_BLH: Tensor
    slots_BL: Tensor
    tokens_BL: Tensor
    sides_BL: Tensor
    own_B11: Tensor


def knock_out(mixer, trace, y_BLHP: Tensor, u_BLC: Tensor, selected: Selected, A_HN: Tensor, past) -> Tensor:
    """`y_BLHP` (with the D-skip in it) after this layer's knockouts; `u_BLC` is what the conv took in."""
    here = [(block, removal) for block, knockouts in trace.knockouts(mixer.layer, len(y_BLHP))
            for removal in _removals(knockouts, mixer.config)]
    if not here:
        return y_BLHP
    blocks = [block for block, _ in here]
    removal = Removal(*(torch.cat(parts).to(y_BLHP.device) for parts in zip(*(removal for _, removal in here), strict=True)))
    if trace.grad:
        _refuse_two_gradients(mixer, trace, removal)
    size = len(removal.queries_BLH) // len(blocks)
    row_R = torch.cat([torch.arange(block * size, (block + 1) * size) for block in blocks])
    u_RLC, clean, length = u_BLC[row_R], Selected(*(x[row_R] for x in selected)), y_BLHP.shape[1]
    if removal.slots_BL.shape[1] > length:  # a source lies before the pass, and the trace holds what was taken in there
        again_RLHP = _scan_again(mixer, trace, blocks, removal, *_whole(mixer, trace, row_R, u_RLC, clean), A_HN, None, 0)
    else:
        past = None if past is None else type(past)(*(_starts(x, row_R) for x in past))
        again_RLHP = _scan_again(mixer, trace, blocks, removal, u_RLC, clean, A_HN, past, trace.offset)
    queries_RLH = removal.queries_BLH[:, -length:]
    at = queries_RLH.nonzero(as_tuple=True)
    at = at if queries_RLH.shape[2] > 1 else at[:2]
    return y_BLHP.index_put((row_R.to(y_BLHP.device)[at[0]], *at[1:]), again_RLHP[:, -length:][at])


def _whole(mixer, trace, row_R, u_RLC, clean) -> tuple[Tensor, Selected]:
    """The conv's input and the scan's of the whole prompt: of a prefix that all rows share, then of this pass."""
    u_BLC, conv_BLC, dt_BLH = trace.before(mixer.layer)
    prefix, at_R = mixer.select(lambda name, x: x, conv_BLC, dt_BLH), row_R % len(u_BLC)
    joined = [torch.cat([first[at_R], then], dim=1) for first, then in zip((u_BLC, *prefix), (u_RLC, *clean), strict=True)]
    return joined[0], Selected(*joined[1:])


def _scan_again(mixer, trace, blocks, removal, u_RLC, clean, A_HN, past, start: int) -> Tensor:
    """The scan and the D-skip with the sources removed: what is written changes, what decays does not."""
    def again(name, x, at=start):
        return trace.again(Site(mixer.layer, name), x, blocks, at)

    made = clean
    tokens_RL, sides_RL = removal.tokens_BL, removal.sides_BL
    if (tokens_RL | sides_RL).any():
        c_RLC, _ = mixer.convolve(u_RLC.masked_fill((tokens_RL | sides_RL)[..., None], 0), past,
                                  own_BLC=u_RLC.masked_fill(~sides_RL[..., None], 0))
        made = mixer.select(again, again("conv", c_RLC), clean.dt_BLH)
    slots_RL11 = removal.slots_BL[..., None, None]
    own_R111 = removal.own_B11[..., None]
    C_RLGN, skip_RLHP = (torch.where(own_R111, new, old) for new, old in (
        (made.C_BLGN, clean.C_BLGN), (made.v_BLHP, clean.v_BLHP)))
    how = {} if made.dt_BLH is clean.dt_BLH else {"dt_write": made.dt_BLH}
    args = made.v_BLHP.masked_fill(slots_RL11, 0), clean.dt_BLH, A_HN, made.B_BLGN, C_RLGN
    h0 = None if past is None else past.h_BHPN
    if any(trace.edits(Site(mixer.layer, name)) for name in ("write", "state")):
        y_RLHP, _ = reference.watched_scan(
            *args, h0=h0, **how, on_write=lambda w: again("write", w).masked_fill(slots_RL11[..., None], 0),
            on_state=lambda t, h: again("state", h, start + t))
    else:
        y_RLHP, _ = mixer.backend.scan(*args, h0=h0, keep_h=False, **how)
    return mixer.skip(y_RLHP, skip_RLHP)


def _starts(x: Tensor, row_R: Tensor) -> Tensor:
    """The rows of a past for these rows of the batch; as they are where they fall in step (row r from r % len)."""
    at_R = row_R % len(x)
    return x if torch.equal(at_R, torch.arange(len(at_R)) % len(x)) else x[at_R]


def _removals(knockouts: Sequence[tuple], config) -> list[Removal]:
    """One for each distinct set of sources that some query of a block loses; a query of several loses all theirs."""
    by_head = any(knockout.heads or knockout.channels for *_, knockout in knockouts)
    acting_KBLH = torch.stack([queries_BL[..., None] & _heads(knockout, config, by_head)
                               for queries_BL, _, knockout in knockouts])
    patterns_XK = torch.unique(acting_KBLH.flatten(1), dim=1).T if len(knockouts) > 1 else torch.ones(1, 1, dtype=torch.bool)
    found: dict[tuple, Removal] = {}
    for pattern_K in patterns_XK:
        queries_BLH = (acting_KBLH == pattern_K[:, None, None, None]).all(dim=0)
        if not pattern_K.any() or not queries_BLH.any():
            continue
        removal = _together([k for k, acts in zip(knockouts, pattern_K, strict=True) if acts], queries_BLH, config.d_conv)
        key = tuple(x.numpy().tobytes() for x in removal[1:])
        if key in found:
            removal = removal._replace(queries_BLH=found[key].queries_BLH | queries_BLH)
        found[key] = removal
    return list(found.values())


def _together(knockouts, queries_BLH, width: int) -> Removal:
    """The union of what knockouts remove from the same queries."""
    gone = {conv: torch.zeros(queries_BLH.shape[:2], dtype=torch.bool) for conv in ("scan", "both", "conv")}
    for _, sources_BL, knockout in knockouts:
        wide_BL = sources_BL.clone()
        for lag in range(1, width if knockout.span == "token+conv" else 1):
            wide_BL[:, lag:] |= sources_BL[:, :-lag]
        gone[knockout.conv] |= wide_BL
    own = {knockout.query_conv for *_, knockout in knockouts if knockout.conv != "scan"}
    if len(own) > 1:
        raise UserError("two knockouts take tokens out of the conv for the same query, one with query_conv and one without: "
                        "give both the same")
    own_B11 = torch.full((len(queries_BLH), 1, 1), True in own)
    return Removal(queries_BLH, gone["scan"], gone["both"], gone["conv"] & ~gone["both"], own_B11)


def _heads(knockout, config, by_head: bool) -> Tensor:
    """The heads a knockout is about, as a mask of H; one True when every knockout here is about all."""
    mamba2 = hasattr(config, "heads")
    count, own, other = (config.heads, "heads", "channels") if mamba2 else (config.d_inner, "channels", "heads")
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


def _refuse_two_gradients(mixer, trace, removal) -> None:
    names = ["write", "state"]
    if (removal.tokens_BL | removal.sides_BL).any():
        names += ["conv", "B"] + ["C"] * bool(removal.own_B11.any()) + ["dt"] * (mixer.config.variant == "mamba1")
    if kept := [str(site) for site in trace.keep if site.layer == mixer.layer and site.name in names]:
        raise UserError(f"gradient at {', '.join(sorted(kept))} under a knockout of layer {mixer.layer}: the value is made "
                        "twice there, with and without the sources; keep in_proj, scan_out or another layer's site")
