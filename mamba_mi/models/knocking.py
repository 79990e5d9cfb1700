"""Knockouts inside a layer: a query reads a second scan, in which its sources were never written.

y[Q] := scan(v, sources removed)[Q], one more scan for each distinct set of sources, never a length² matrix. Edits at
sites that the second scan makes anew (conv, dt, B, C, write, state) act there as they do in the first.
Shape legend: B rows of a block, R rows scanned again (a block for each removal), L length, C conv channels, H heads
(1: all alike), P head width, N state, G groups, Q entries that change.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mamba_mi.backends import reference
from mamba_mi.backends.reference import spread
from mamba_mi.config import UserError
from mamba_mi.models.prefix import lost, lost_states
from mamba_mi.models.removals import Together, together
from mamba_mi.trace import Site


class Selected(NamedTuple):
    """What a layer's scan is made of: its input, its step, B and C."""

    v_BLHP: Tensor
    dt_BLH: Tensor
    B_BLGN: Tensor
    C_BLGN: Tensor


def knock_out(mixer, trace, y_BLHP: Tensor, u_BLC: Tensor, selected: Selected, A_HN: Tensor, past) -> Tensor:
    """`y_BLHP` (with the D-skip in it) after this layer's knockouts; `u_BLC` is what the conv took in."""
    found = trace.knockouts(mixer.layer, len(y_BLHP))
    if not found:
        return y_BLHP
    # edits on what the scan writes act on the state itself: there the second scan starts from the state without the loss
    watched = _is_watched(mixer, trace)
    quiet, loud = together(trace, found, watched, y_BLHP, A_HN.shape[1], mixer.config)
    for rows, again in ((quiet, None), (loud, _scanned_again)):
        if rows:
            y_BLHP = _replaced(mixer, trace, rows, found[0][0], again, watched, y_BLHP, u_BLC, selected, A_HN, past)
    return y_BLHP


def _replaced(mixer, trace, rows: Together, first: int, again, watched, y_BLHP, u_BLC, selected, A_HN, past) -> Tensor:
    """y with the queries of removals put in, of blocks counted from `first`; `again` scans their rows a second time."""
    row_R, losses = rows.row_R + first * rows.size, rows.losses
    y_RLHP, dt_RLH, C_RLGN = y_BLHP[row_R], selected.dt_BLH[row_R], selected.C_BLGN[row_R]
    if again:
        if trace.grad:
            _refuse_two_gradients(mixer, trace, rows.removals)
        if watched and losses:
            gone_RHPN = lost_states(mixer, trace.before(mixer.layer, mixer.BEFORE), losses, A_HN)
            past = past._replace(h_BHPN=spread(past.h_BHPN, len(row_R)) - gone_RHPN)
            losses = None
        clean = type(selected)(selected.v_BLHP[row_R], dt_RLH, selected.B_BLGN[row_R], C_RLGN, *(x[row_R] for x in selected[4:]))
        y_RLHP, C_RLGN = again(mixer, trace, rows, first, u_BLC[row_R], clean, A_HN, past)
    if losses:
        y_RLHP = y_RLHP - lost(mixer, trace.before(mixer.layer, mixer.BEFORE), losses, C_RLGN, dt_RLH, A_HN).to(y_RLHP.dtype)
    if rows.apart:
        # in place where it may be: y is this layer's own until it is handed on
        put = y_BLHP.index_copy if y_BLHP.requires_grad or y_RLHP.requires_grad else y_BLHP.index_copy_
        return put(0, row_R, y_RLHP if rows.everywhere else torch.where(rows.queries_RLH1, y_RLHP, y_BLHP[row_R]))
    at_Q, *more = rows.at_Q
    return y_BLHP.index_put((row_R[at_Q], *more), y_RLHP[rows.at_Q])


def _scanned_again(mixer, trace, rows: Together, first: int, u_RLC, clean, A_HN, past) -> tuple[Tensor, Tensor]:
    """The scan and the D-skip with the sources of the pass removed (what is written changes, what decays does not), and
    the C it was read by."""
    start, blocks = trace.offset, [first + block for block in rows.blocks]

    def again(name, x, at=start):
        return trace.again(Site(mixer.layer, name), x, blocks, at)

    slots_RL, out_RL, sides_RL, tail_RK, dense_RL = rows.masks
    made, slots_RL11 = clean, slots_RL[..., None, None]
    if rows.convolved:
        if past is not None:
            past = past._replace(tail_BKC=spread(past.tail_BKC, len(u_RLC)).masked_fill(tail_RK[..., None], 0))
        c_RLC, _ = mixer.convolve(u_RLC.masked_fill(out_RL[..., None], 0), past,
                                  own_BLC=u_RLC.masked_fill(~sides_RL[..., None], 0))
        made = mixer.select(again, again("conv", c_RLC), clean.dt_BLH)
    C_RLGN, skip_RLHP = (new if new is old else torch.where(rows.own_R111, new, old) for new, old in (
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
    read = clean._replace(v_BLHP=skip_RLHP, C_BLGN=C_RLGN)
    return mixer.output(again, y_RLHP, read, past, states, dense_RL), C_RLGN


def _is_watched(mixer, trace) -> bool:
    """Whether an edit acts on what this layer's scan writes or on its state."""
    return any(trace.edits(Site(mixer.layer, name)) for name in mixer.SCANNED)


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
