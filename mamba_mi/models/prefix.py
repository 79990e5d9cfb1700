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
from torch import Tensor, nn

WORK = 1 << 20  # numbers of writes made into states at a time
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


class Terms(NamedTuple):
    """Writes by slot: dt v, B, and the dt that passed since, in float64: exp(A dt) is left of each at the prefix's end."""

    x_BXHP: Tensor
    B_BXGN: Tensor
    since_BXH: Tensor


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


def lost(mixer, before: tuple[Tensor, Tensor], losses: Sequence[tuple[Loss, Tensor]], C_RLGN: Tensor, dt_RLH: Tensor,
         A_HN: Tensor) -> Tensor:
    """What is missing from each row's y, RLHP; `losses` say for which rows, `before` is the prefix's conv input and dt."""
    kind = torch.promote_types(C_RLGN.dtype, torch.float32)
    C_RLGN, dt_RLH = C_RLGN.to(kind), dt_RLH.to(kind)
    terms, picks = _table(mixer, before, [each for each, _ in losses])
    if A_HN.shape[1] > 1:
        return _by_loss(mixer, terms, picks, losses, _read_many_decays, C_RLGN, dt_RLH, A_HN)
    decay_RLH1 = torch.exp(dt_RLH.double().cumsum(1) * A_HN[:, 0].double()).to(kind)[..., None]
    terms = terms._replace(x_BXHP=terms.x_BXHP * _left(terms.since_BXH, A_HN, kind))
    if max(len(at_X) for at_X, _ in picks) <= FEW:
        return _read_few(terms, picks, losses, C_RLGN) * decay_RLH1
    return _by_loss(mixer, terms, picks, losses, _read_one_decay, C_RLGN, dt_RLH, A_HN) * decay_RLH1


def lost_states(mixer, before, losses: Sequence[tuple[Loss, Tensor]], rows: int, A_HN: Tensor) -> Tensor:
    """What is missing from the state each row starts from, RHPN."""
    terms, picks = _table(mixer, before, [each for each, _ in losses])
    x_BXHP, states = terms.x_BXHP, terms.B_BXGN.shape[3]
    out_RHPN = x_BXHP.new_zeros(rows, *x_BXHP.shape[2:], states)
    for (_, row_R), pick in zip(losses, picks, strict=True):
        h_BHPN = _state(_picked(terms, *pick), A_HN)
        out_RHPN[row_R] = h_BHPN.repeat(len(row_R) // len(h_BHPN), 1, 1, 1)
    return out_RHPN


def _table(mixer, before, losses: Sequence[Loss]) -> tuple[Terms, list[tuple[Tensor, Tensor]]]:
    """The writes that any of the losses takes or puts in, each made once; and for each loss which of them it is about,
    with weight 1 for what is gone, -1 for what is written in its place, 0 where not in that prompt."""
    u_BTC, dt_BTH = before
    slots_Y = torch.cat([each.gone_X for each in losses]).unique()
    terms, made = [_terms(mixer, mixer.convolve(u_BTC, None)[0][:, slots_Y], dt_BTH, slots_Y)], len(slots_Y)
    picks = [(torch.searchsorted(slots_Y, each.gone_X), each.gone_BX.to(terms[0].x_BXHP)) for each in losses]
    anew = [(i, each) for i, each in enumerate(losses) if len(each.anew_X)]
    if anew:
        conv_BYC = torch.cat([_conv_without(mixer, u_BTC, each) for _, each in anew], dim=1)
        terms.append(_terms(mixer, conv_BYC, dt_BTH, torch.cat([each.anew_X for _, each in anew])))
    for i, each in anew:
        (at_X, weight_BX), more = picks[i], len(each.anew_X)
        picks[i] = torch.cat([at_X, made + torch.arange(more)]), torch.cat([weight_BX, -each.anew_BX.to(weight_BX)], 1)
        made += more
    return Terms(*(torch.cat(parts, dim=1) for parts in zip(*terms, strict=True))), picks


def _terms(mixer, conv_BYC: Tensor, dt_BTH: Tensor, at_Y: Tensor) -> Terms:
    """What is written at some slots of the prefix, by what the conv gives there; what decays is the clean dt."""
    made = mixer.select(lambda name, x: x, conv_BYC, dt_BTH[:, at_Y])
    kind = torch.promote_types(conv_BYC.dtype, torch.float32)
    # summed inside the span in float64: differences of a long float32 sum are off where they matter
    since_BYH = dt_BTH.double().flip(1).cumsum(1).flip(1)[:, at_Y] - dt_BTH[:, at_Y].double()
    return Terms(made.v_BLHP.to(kind) * made.dt_BLH.to(kind)[..., None], made.B_BLGN.to(kind), since_BYH)


def _conv_without(mixer, u_BTC: Tensor, each: Loss) -> Tensor:
    """The conv at the slots written anew, BXC: no tap reads a token taken out, and only its own slot's a `side` token."""
    return F.silu(conv_without(mixer.conv1d, u_BTC, each.tokens_BT, each.sides_BT, each.anew_X))


def conv_without(conv: nn.Conv1d, u_BTC: Tensor, tokens_BT: Tensor, sides_BT: Tensor, at_X: Tensor) -> Tensor:
    """A causal depthwise conv at some slots of a prefix, BXC, without the tokens taken out; those of `sides` only by their
    own slot's tap."""
    weight_KC = conv.weight[:, 0].T
    width = len(weight_KC)
    at_XK = at_X[:, None] + torch.arange(width, device=at_X.device)  # in the prefix padded by width - 1 in front
    tokens_BXK, sides_BXK = (F.pad(mask_BT, (width - 1, 0))[:, at_XK] for mask_BT in (tokens_BT, sides_BT))
    gone_BXK = tokens_BXK | (sides_BXK & (torch.arange(width, device=at_X.device) < width - 1))
    taps_BXKC = F.pad(u_BTC, (0, 0, width - 1, 0))[:, at_XK].masked_fill(gone_BXK[..., None].to(u_BTC.device), 0)
    return (taps_BXKC * weight_KC).sum(dim=2) + conv.bias


def _left(since_BXH, A_HN, kind) -> Tensor:
    return (since_BXH[..., None] * A_HN).to(kind).exp_()


def _picked(terms: Terms, at_X: Tensor, weight_BX: Tensor) -> Terms:
    """One loss's writes, weighted."""
    x_BXHP, B_BXGN, since_BXH = (x[:, at_X] for x in terms)
    return Terms(x_BXHP * weight_BX[..., None, None], B_BXGN, since_BXH)


def _by_loss(mixer, terms, picks, losses, read, C_RLGN, dt_RLH, A_HN) -> Tensor:
    """`read` for the rows of each loss in turn."""
    out_RLHP = terms.x_BXHP.new_zeros(*dt_RLH.shape, terms.x_BXHP.shape[3])
    for (_, row_R), pick in zip(losses, picks, strict=True):
        out_RLHP[row_R] = read(mixer, _picked(terms, *pick), C_RLGN[row_R], dt_RLH[row_R], A_HN)
    return out_RLHP


def _read_few(terms: Terms, picks, losses, C_RLGN) -> Tensor:
    """Losses of a few slots each, all rows at once: Σ (C · B) x over each row's own slots."""
    prompts, groups = terms.B_BXGN.shape[0], C_RLGN.shape[2]
    # a row that loses nothing takes the entry after the last, which weighs nothing
    widest, of_R = max(len(at_X) for at_X, _ in picks), torch.full((len(C_RLGN),), len(losses))
    for number, (_, row_R) in enumerate(losses):
        of_R[row_R] = number
    at_UX = F.pad(torch.stack([F.pad(at_X, (0, widest - len(at_X))) for at_X, _ in picks]), (0, 0, 0, 1))
    weight_UBX = torch.stack([F.pad(weight_BX, (0, widest - len(at_X))) for at_X, weight_BX in picks])
    weight_UBX = F.pad(weight_UBX, (0, 0, 0, 0, 0, 1))
    prompt_R = torch.arange(len(C_RLGN)) % prompts
    out = 0
    for x in range(widest):
        at_R = at_UX[of_R, x]
        CB_RLG = (C_RLGN * terms.B_BXGN[prompt_R, at_R][:, None]).sum(-1) * weight_UBX[of_R, prompt_R, x][:, None, None]
        write_RGE = terms.x_BXHP[prompt_R, at_R].flatten(1).unflatten(1, (groups, -1))
        out = out + CB_RLG[..., None] * write_RGE[:, None]
    return out.flatten(2).unflatten(2, terms.x_BXHP.shape[2:])


def _read_one_decay(mixer, terms: Terms, C_RLGN, dt_RLH, A_H1) -> Tensor:
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
    return y_RLE.unflatten(2, (len(A_H1), -1))


def _read_many_decays(mixer, terms: Terms, C_RLGN, dt_RLH, A_HN) -> Tensor:
    """Mamba-1: the scan of a pass that writes nothing, from the state that is lost."""
    h_BHPN = _state(terms, A_HN)
    rows, length, groups, states = C_RLGN.shape
    nothing_RLHP = h_BHPN.new_zeros(rows, length, *h_BHPN.shape[1:3])
    return mixer.backend.scan(nothing_RLHP, dt_RLH, A_HN, C_RLGN, C_RLGN, h0=h_BHPN, keep_h=False)[0]


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
