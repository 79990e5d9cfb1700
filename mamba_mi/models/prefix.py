"""What a query loses of the prompt before its pass: writes of the clean prefix, made again from what its layers took in.

A pass that starts at its first query holds the state the prefix left. What sources wrote into that state is a sum over
their slots, so it is taken off: y -= C_t exp(A Σ_pass dt) Σ_s exp(A Σ_{s+1..end} dt) dt_s B_s v_s. A job costs no more
than its own tokens, whatever the prompt's length.
Shape legend: B prompts, R rows (jobs of prompts, job by job), L the pass's length, T the prefix's, X slots of it,
C conv channels, H heads, P head width, N state, G groups, K conv width, J jobs.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SLOTS = 64  # of a Mamba-1 at a time: each makes a state


class Loss(NamedTuple):
    """What one set of sources takes out of the prefix: the slots whose write goes, and those that are written anew
    without the tokens (`tokens`, and `sides` by all taps but their own); masks B by slots."""

    gone_X: Tensor
    gone_BX: Tensor
    anew_X: Tensor
    anew_BX: Tensor
    tokens_BT: Tensor
    sides_BT: Tensor


class Terms(NamedTuple):
    """Writes by slot: dt v, B, and what is left of each at the prefix's end."""

    x_BXHP: Tensor
    B_BXGN: Tensor
    left_BXHN: Tensor


def loss(slots_BT: Tensor, tokens_BT: Tensor, sides_BT: Tensor, width: int) -> Loss | None:
    """The loss of a removal of slots, tokens and sides; None where it touches nothing of the prefix."""
    reached_BT = tokens_BT | sides_BT
    for lag in range(1, width):
        reached_BT[:, lag:] |= (tokens_BT | sides_BT)[:, :-lag]
    gone_BT, anew_BT = slots_BT | reached_BT, reached_BT & ~slots_BT
    gone_X, anew_X = (mask_BT.any(dim=0).nonzero()[:, 0] for mask_BT in (gone_BT, anew_BT))
    return Loss(gone_X, gone_BT[:, gone_X], anew_X, anew_BT[:, anew_X], tokens_BT, sides_BT) if len(gone_X) else None


def lost(mixer, before: tuple[Tensor, Tensor], losses: Sequence[tuple[Loss, Tensor]], C_RLGN: Tensor, dt_RLH: Tensor,
         A_HN: Tensor) -> Tensor:
    """What is missing from each row's y, RLHP; `losses` say for which rows, `before` is the prefix's conv input and dt."""
    kind = torch.promote_types(C_RLGN.dtype, torch.float32)
    slots_X = torch.cat([each.gone_X for each, _ in losses]).unique()
    clean = _terms(mixer, before, slots_X, A_HN)
    out_RLHP = None
    for each, row_R in losses:
        terms = _signed(mixer, before, each, _picked(clean, torch.searchsorted(slots_X, each.gone_X)), A_HN)
        read = _read_one_decay if A_HN.shape[1] == 1 else _read_many_decays
        y_RLHP = read(mixer, terms, C_RLGN[row_R].to(kind), dt_RLH[row_R].to(kind), A_HN)
        if out_RLHP is None:
            out_RLHP = y_RLHP.new_zeros(len(C_RLGN), *y_RLHP.shape[1:])
        out_RLHP[row_R] = y_RLHP
    return out_RLHP


def lost_states(mixer, before, losses: Sequence[tuple[Loss, Tensor]], rows: int, A_HN: Tensor) -> Tensor:
    """What is missing from the state each row starts from, RHPN."""
    out_RHPN = None
    for each, row_R in losses:
        h_BHPN = _state(_signed(mixer, before, each, _terms(mixer, before, each.gone_X, A_HN), A_HN))
        if out_RHPN is None:
            out_RHPN = h_BHPN.new_zeros(rows, *h_BHPN.shape[1:])
        out_RHPN[row_R] = h_BHPN.repeat(len(row_R) // len(h_BHPN), 1, 1, 1)
    return out_RHPN


def _terms(mixer, before, at_X: Tensor, A_HN: Tensor, without: Loss | None = None) -> Terms:
    """The writes at slots of the prefix; `without` the tokens of a loss, its decays are the clean ones all the same."""
    u_BTC, dt_BTH = before
    weight_KC, at_XK = mixer.conv1d.weight[:, 0].T, _taps(at_X, mixer.config.d_conv)
    taps_BXKC = F.pad(u_BTC, (0, 0, len(weight_KC) - 1, 0))[:, at_XK]
    if without is not None:
        gone_BXK = _gone(without, at_XK, len(weight_KC))
        taps_BXKC = taps_BXKC.masked_fill(gone_BXK[..., None].to(u_BTC.device), 0)
    c_BXC = F.silu((taps_BXKC * weight_KC).sum(dim=2) + mixer.conv1d.bias)
    made = mixer.select(lambda name, x: x, c_BXC, dt_BTH[:, at_X])
    kind = torch.promote_types(c_BXC.dtype, torch.float32)
    # summed inside the span in float64: differences of a long float32 sum are off where they matter
    after_BTH = dt_BTH.double().flip(1).cumsum(1).flip(1)[:, at_X] - dt_BTH[:, at_X].double()
    left_BXHN = torch.exp(after_BTH[..., None] * A_HN.double()).to(kind)
    return Terms(made.v_BLHP.to(kind) * made.dt_BLH.to(kind)[..., None], made.B_BLGN.to(kind), left_BXHN)


def _taps(at_X: Tensor, width: int) -> Tensor:
    """The places each slot's conv reads, in the prefix padded by width - 1 in front."""
    return at_X[:, None] + torch.arange(width, device=at_X.device)


def _gone(without: Loss, at_XK: Tensor, width: int) -> Tensor:
    """Which taps read nothing: those on a token taken out, and on a `side` token those that are not its own slot's."""
    tokens_BXK, sides_BXK = (F.pad(mask_BT, (width - 1, 0))[:, at_XK] for mask_BT in (without.tokens_BT, without.sides_BT))
    return tokens_BXK | (sides_BXK & (torch.arange(width) < width - 1))


def _picked(terms: Terms, at: Tensor) -> Terms:
    return terms if len(at) == terms.x_BXHP.shape[1] else Terms(*(x[:, at] for x in terms))


def _signed(mixer, before, each: Loss, clean: Terms, A_HN) -> Terms:
    """What is gone, and with a minus what is written in its place."""
    gone = clean._replace(x_BXHP=_masked(clean.x_BXHP, each.gone_BX))
    if not len(each.anew_X):
        return gone
    anew = _terms(mixer, before, each.anew_X, A_HN, without=each)
    anew = anew._replace(x_BXHP=-_masked(anew.x_BXHP, each.anew_BX))
    return Terms(*(torch.cat(parts, dim=1) for parts in zip(gone, anew, strict=True)))


def _masked(x_BXHP: Tensor, mask_BX: Tensor) -> Tensor:
    return x_BXHP if mask_BX.all() else x_BXHP * mask_BX.to(x_BXHP)[..., None, None]


def _read_one_decay(mixer, terms: Terms, C_RLGN, dt_RLH, A_H1) -> Tensor:
    """Mamba-2: (C Bᵀ) x, or C (Bᵀ x) where the slots are many; then what the pass's own decay leaves of it."""
    prompts, groups = terms.B_BXGN.shape[0], terms.B_BXGN.shape[2]
    rows, length = C_RLGN.shape[:2]
    x_BGXE = (terms.x_BXHP * terms.left_BXHN).unflatten(2, (groups, -1)).flatten(3).transpose(1, 2)
    B_BGXN = terms.B_BXGN.transpose(1, 2)
    C_BGJN = C_RLGN.unflatten(0, (-1, prompts)).permute(1, 3, 0, 2, 4).flatten(2, 3)
    slots, (jobs, states), wide = B_BGXN.shape[2], C_BGJN.shape[2:], x_BGXE.shape[3]
    if jobs * slots * (states + wide) <= (slots + jobs) * states * wide:
        y_BGJE = (C_BGJN @ B_BGXN.transpose(2, 3)) @ x_BGXE
    else:
        y_BGJE = C_BGJN @ (B_BGXN.transpose(2, 3) @ x_BGXE)
    y_RLE = y_BGJE.unflatten(2, (-1, length)).permute(2, 0, 3, 1, 4).flatten(0, 1).flatten(2)
    decay_RLH = torch.exp(dt_RLH.double().cumsum(1) * A_H1[:, 0].double()).to(y_RLE.dtype)
    return y_RLE.unflatten(2, (len(A_H1), -1)) * decay_RLH[..., None]


def _read_many_decays(mixer, terms: Terms, C_RLGN, dt_RLH, A_HN) -> Tensor:
    """Mamba-1: the scan of a pass that writes nothing, from the state that is lost."""
    h_BHPN = _state(terms)
    rows, length, groups, states = C_RLGN.shape
    nothing_RLHP = h_BHPN.new_zeros(rows, length, *h_BHPN.shape[1:3])
    return mixer.backend.scan(nothing_RLHP, dt_RLH, A_HN, C_RLGN, C_RLGN, h0=h_BHPN, keep_h=False)[0]


def _state(terms: Terms) -> Tensor:
    """Σ over slots of left · x ⊗ B, BHPN; a few slots at a time."""
    x_BXHP, B_BXGN, left_BXHN = terms
    heads, out = x_BXHP.shape[2], 0
    for at in range(0, x_BXHP.shape[1], SLOTS):
        part = slice(at, at + SLOTS)
        B_BXHN = B_BXGN[:, part].repeat_interleave(heads // B_BXGN.shape[2], dim=2) * left_BXHN[:, part]
        out = out + torch.einsum("bxhp,bxhn->bhpn", x_BXHP[:, part], B_BXHN)
    return out
