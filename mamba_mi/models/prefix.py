"""What a query loses of the prompt before its pass: writes of the clean prefix, made again from what its layers took in.

A pass that starts at its first query holds the state the prefix left. What sources wrote into that state is a sum over
their slots, so it is taken off: y -= C_t exp(A Σ_pass dt) Σ_s exp(A Σ_{s+1..end} dt) dt_s B_s v_s. A job costs no more
than its own tokens, whatever the prompt's length.
Shape legend: B prompts, R rows (jobs of prompts, job by job), L the pass's length, T the prefix's, X slots of it,
C conv channels, H heads, P head width, N state, G groups, K conv width, J jobs.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_mi.models.losses import Losses, Part

WORK = 1 << 20  # numbers of writes made into states at a time


class Terms(NamedTuple):
    """Writes by slot: dt v, B, and the dt that passed since, in float64: exp(A dt) is left of each at the prefix's end."""

    x_BXHP: Tensor
    B_BXGN: Tensor
    since_BXH: Tensor


def lost(mixer, before: tuple[Tensor, Tensor], losses: Losses, C_RLGN: Tensor, dt_RLH: Tensor, A_HN: Tensor) -> Tensor:
    """What is missing from each row's y, RLHP; `before` is the prefix's conv input and dt."""
    C_RLGN, dt_RLH = C_RLGN.to(losses.kind), dt_RLH.to(losses.kind)
    terms = _table(mixer, before, losses)
    if A_HN.shape[1] > 1:
        return _read_many_decays(mixer, terms, losses, C_RLGN, dt_RLH, A_HN)
    decay_RLH1 = torch.exp(dt_RLH.double().cumsum(1) * A_HN[:, 0].double()).to(losses.kind)[..., None]
    terms = terms._replace(x_BXHP=terms.x_BXHP * _left(terms.since_BXH, A_HN, losses.kind))
    if losses.few:
        return _read_few(terms, losses, C_RLGN) * decay_RLH1
    out_RLHP = terms.x_BXHP.new_zeros(*dt_RLH.shape, terms.x_BXHP.shape[3])
    for row_R, pick in zip(losses.row_R, losses.picks, strict=True):
        out_RLHP[row_R] = _read_one_decay(_picked(terms, *pick), C_RLGN[row_R], len(A_HN))
    return out_RLHP * decay_RLH1


def lost_states(mixer, before, losses: Losses, A_HN: Tensor) -> Tensor:
    """What is missing from the state each row starts from, RHPN."""
    terms = _table(mixer, before, losses)
    out_RHPN = terms.x_BXHP.new_zeros(losses.rows, *terms.x_BXHP.shape[2:], terms.B_BXGN.shape[3])
    for part in losses.parts:
        h_VHPN = _states(terms, losses, part, A_HN)
        each = len(out_RHPN[part.row_R]) // len(h_VHPN)
        out_RHPN[part.row_R] = h_VHPN.repeat(each, 1, 1, 1) if part.at_R is None else h_VHPN[part.at_R]
    return out_RHPN


def _table(mixer, before, losses: Losses) -> Terms:
    """The writes that any of the losses takes or puts in, each made once."""
    u_BTC, dt_BTH = before
    conv_BYC = mixer.convolve(u_BTC, None)[0][:, losses.slots_Y]
    if losses.anew:
        conv_BYC = torch.cat([conv_BYC, F.silu(conv_without(mixer.conv1d, u_BTC, *losses.anew))], dim=1)
    return _terms(mixer, conv_BYC, dt_BTH, losses.at_Y)


def _terms(mixer, conv_BYC: Tensor, dt_BTH: Tensor, at_Y: Tensor) -> Terms:
    """What is written at some slots of the prefix, by what the conv gives there; what decays is the clean dt."""
    made = mixer.select(lambda name, x: x, conv_BYC, dt_BTH[:, at_Y])
    kind = torch.promote_types(conv_BYC.dtype, torch.float32)
    # summed inside the span in float64: differences of a long float32 sum are off where they matter
    since_BYH = dt_BTH.double().flip(1).cumsum(1).flip(1)[:, at_Y] - dt_BTH[:, at_Y].double()
    return Terms(made.v_BLHP.to(kind) * made.dt_BLH.to(kind)[..., None], made.B_BLGN.to(kind), since_BYH)


def conv_without(conv: nn.Conv1d, u_BTC: Tensor, at_X: Tensor, cut_BXK: Tensor) -> Tensor:
    """A causal depthwise conv at some slots of a prefix, BXC, without some of its taps."""
    weight_KC = conv.weight[:, 0].T
    u_BTC, out = F.pad(u_BTC, (0, 0, len(weight_KC) - 1, 0)), conv.bias
    for tap, weight_C in enumerate(weight_KC):  # one after another: all at once are as many times as large
        out = out + u_BTC[:, at_X + tap].masked_fill(cut_BXK[..., tap, None], 0) * weight_C
    return out


def _left(since_BXH, A_HN, kind) -> Tensor:
    return (since_BXH[..., None] * A_HN).to(kind).exp_()


def _picked(terms: Terms, at_X: Tensor, weight_BX: Tensor) -> Terms:
    """One loss's writes, weighted."""
    x_BXHP, B_BXGN, since_BXH = (x[:, at_X] for x in terms)
    return Terms(x_BXHP * weight_BX[..., None, None], B_BXGN, since_BXH)


def _read_few(terms: Terms, losses: Losses, C_RLGN) -> Tensor:
    """Losses of a few slots each, all rows at once: Σ (C · B) x over each row's own slots."""
    groups, out = C_RLGN.shape[2], 0
    x_FGE, B_FGN = terms.x_BXHP.flatten(0, 1).flatten(1).unflatten(1, (groups, -1)), terms.B_BXGN.flatten(0, 1)
    for at_R, weight_R in zip(*losses.of_rows, strict=True):
        CB_RLG1 = (C_RLGN * B_FGN[at_R][:, None]).sum(-1, keepdim=True) * weight_R[:, None, None, None]
        out = out + CB_RLG1 * x_FGE[at_R][:, None]
    return out.flatten(2).unflatten(2, terms.x_BXHP.shape[2:])


def _read_one_decay(terms: Terms, C_RLGN, heads: int) -> Tensor:
    """Mamba-2: (C Bᵀ) x, or C (Bᵀ x) where the slots are many."""
    prompts, groups = terms.B_BXGN.shape[0], terms.B_BXGN.shape[2]
    x_BGXE = terms.x_BXHP.unflatten(2, (groups, -1)).flatten(3).transpose(1, 2)
    B_BGXN = terms.B_BXGN.transpose(1, 2)
    C_BGJN = C_RLGN.unflatten(0, (-1, prompts)).permute(1, 3, 0, 2, 4).flatten(2, 3)
    slots, (jobs, states), wide = B_BGXN.shape[2], C_BGJN.shape[2:], x_BGXE.shape[3]
    if jobs * slots * (states + wide) <= (slots + jobs) * states * wide:
        y_BGJE = (C_BGJN @ B_BGXN.transpose(2, 3)) @ x_BGXE
    else:
        y_BGJE = C_BGJN @ (B_BGXN.transpose(2, 3) @ x_BGXE)
    y_RLE = y_BGJE.unflatten(2, (-1, C_RLGN.shape[1])).permute(2, 0, 3, 1, 4).flatten(0, 1).flatten(2)
    return y_RLE.unflatten(2, (heads, -1))


def _read_many_decays(mixer, terms: Terms, losses: Losses, C_RLGN, dt_RLH, A_HN) -> Tensor:
    """Mamba-1: the scan of a pass that writes nothing, from the state that is lost."""
    out_RLHP = terms.x_BXHP.new_zeros(*dt_RLH.shape, terms.x_BXHP.shape[3])
    for part in losses.parts:
        h_VHPN, C, row_R = _states(terms, losses, part, A_HN), C_RLGN[part.row_R], part.row_R
        h0 = h_VHPN if part.at_R is None else h_VHPN[part.at_R]
        y_RLHP, _ = mixer.backend.scan(torch.zeros_like(out_RLHP[row_R]), dt_RLH[row_R], A_HN, C, C, h0=h0, keep_h=False)
        out_RLHP[row_R] = y_RLHP
    return out_RLHP


def _states(terms: Terms, losses: Losses, part: Part, A_HN) -> Tensor:
    """The states that some losses take away, VHPN, V their prompts, loss after loss."""
    if not losses.few:
        return torch.cat([_state(_picked(terms, *pick), A_HN) for pick in losses.picks[part.losses]])
    (x_FHP, B_FGN, since_FH), out = (x.flatten(0, 1) for x in terms), 0
    for at_V, weight_V in zip(*losses.of_states(part.losses), strict=True):
        B_VHN = B_FGN[at_V].repeat_interleave(len(A_HN) // B_FGN.shape[1], dim=1)
        wrote_VHN = B_VHN * _left(since_FH[at_V], A_HN, B_VHN.dtype)
        out = out + (x_FHP[at_V] * weight_V[:, None, None])[..., None] * wrote_VHN[:, :, None]
    return out


def _state(terms: Terms, A_HN) -> Tensor:
    """Σ over slots of what is left of x ⊗ B, BHPN; some slots at a time, for each makes a state."""
    x_BXHP, B_BXGN, since_BXH = terms
    prompts, slots, heads, width = x_BXHP.shape
    size, out = max(1, WORK // (prompts * heads * B_BXGN.shape[3])), 0
    for at in range(0, slots, size):
        part = slice(at, at + size)
        B_BXHN = B_BXGN[:, part].repeat_interleave(heads // B_BXGN.shape[2], dim=2)
        wrote_BXHN = B_BXHN * _left(since_BXH[:, part], A_HN, B_BXHN.dtype)
        out = out + torch.einsum("bxhp,bxhn->bhpn", x_BXHP[:, part], wrote_BXHN)
    return out
