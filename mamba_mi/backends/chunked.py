"""The scan in plain torch, fast on CPU: matrix products inside chunks for Mamba-2, a cache-resident loop for Mamba-1.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, R heads a group, T chunk, E = H·P.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mamba_mi.backends.long_conv import long_conv
from mamba_mi.backends.reference import spread, widened
from mamba_mi.backends.retention import retain

__all__ = ["conv", "long_conv", "missing", "retain", "scan"]
CHUNK = 64
WORK = 2**18  # numbers; four bytes each, half of what a core's second cache commonly holds
UNDERFLOW = -800.0  # exp(-800) is 0 in float64 too; the clamp keeps cumulated decays small enough to subtract


def missing() -> str:
    """Why this backend cannot run here; empty when it can."""
    return ""


def scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, *, h0=None, keep_h=True,
         dt_write=None) -> tuple[Tensor, Tensor | None]:
    """The contract of `mamba_mi.backends`: one decay a head in chunks, many decays token by token."""
    v, dt, A, B_, C_, h0, w = widened(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0, dt_write)
    mix = _one_decay if A.shape[1] == 1 else _many_decays
    parts = [mix(v[part], dt[part], w[part], A, B_[part], C_[part], start, keep_h)
             for part, start in _row_groups(v, A, h0, (v, dt, w, A, B_, C_, h0))]
    ys, hs = zip(*parts)
    return _joined(ys).to(v_BLHP.dtype), _joined(hs) if keep_h else None


def _row_groups(v, A, h0, given) -> Iterator[tuple[slice, Tensor | None]]:
    """The rows a few at a time, each few with their own start; all at once where gradients will be asked for.

    What is made for a few rows stays in cache, and under the size from which the allocator hands out fresh pages.
    """
    rows, length, inner = len(v), v.shape[1], v.shape[2] * v.shape[3]
    held = inner * (min(length, CHUNK) if A.shape[1] == 1 else 2 * A.shape[1])  # a chunk; or a state and its decay
    size = rows if _needs_grad(given) else max(1, WORK // held)
    starts = rows if h0 is None else len(h0)
    if starts < rows:  # whole rounds, so that row r of every few starts from state r % starts and none is copied
        size = max(starts, size // starts * starts)
    for r in range(0, rows, size):
        yield slice(r, r + size), h0 if h0 is None or starts < rows or size >= rows else h0[r:r + size]


def _needs_grad(given) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)


def _joined(parts, dim=0):
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _one_decay(v, dt, w, A_H1, B_BLGN, C_BLGN, h0, keep_h):
    """Mamba-2's dual form, a chunk after another: what one chunk makes stays in cache until it is read."""
    length, ys, h = v.shape[1], [], h0
    if length == 1 and h0 is not None and not keep_h:
        return _one_token(v, dt, w, A_H1, B_BLGN, C_BLGN, h0), None
    # an edited dt may be negative, and then what it spans grows
    spanned = _growing if _needs_grad((v, dt, w, A_H1, B_BLGN, C_BLGN, h0)) or bool((dt < 0).any()) else _fading
    for start in range(0, length, CHUNK):
        part = slice(start, start + CHUNK)
        y, h = _chunk(v[:, part], dt[:, part], w[:, part], A_H1, B_BLGN[:, part], C_BLGN[:, part], h,
                      keep_h or start + CHUNK < length, spanned)
        ys.append(y)
    return _joined(ys, 1), h


def _one_token(v, dt, w, A_H1, B_BLGN, C_BLGN, h):
    """A token that goes on from a state: exp(dt A) C h + (C B) dt v."""
    groups = B_BLGN.shape[2]
    own = (C_BLGN * B_BLGN).sum(-1, keepdim=True) * w.unflatten(2, (groups, -1))  # B 1 G R
    before = _read(C_BLGN.transpose(1, 2), h) * torch.exp(dt * A_H1[:, 0]).unflatten(2, (groups, -1))[..., None]
    return torch.addcmul(before, v.unflatten(2, (groups, -1)), own[..., None]).flatten(2, 3)


def _chunk(v, dt, w, A_H1, B_BTGN, C_BTGN, h, keep_h, spanned):
    """Inside: y = ((C Bᵀ) ∘ decay) x; from before: C h, decayed. The state after it unless not `keep_h`."""
    groups = B_BTGN.shape[2]
    x = (v * w[..., None]).unflatten(2, (groups, -1))  # B T G R P
    B_, C_ = B_BTGN.transpose(1, 2), C_BTGN.transpose(1, 2)  # B G T N
    # float64: differences of a long float32 sum are off by 1e-2 in logits at L = 300
    cum = torch.clamp_min(dt * A_H1[:, 0], UNDERFLOW).double().cumsum(1).unflatten(2, (groups, -1))  # B T G R
    y = spanned(cum.permute(0, 2, 3, 1).contiguous(), C_ @ B_.transpose(2, 3)) @ x.permute(0, 2, 3, 1, 4)
    y = y.permute(0, 3, 1, 2, 4)  # B T G R P
    if h is not None:
        y = torch.addcmul(y, _read(C_, h), cum.exp().to(x.dtype)[..., None])
    y = y.flatten(2, 3)
    return y, _after(x, cum, B_, h) if keep_h else None


def _growing(cum_BGRT, CB_BGTT):
    """(C_t · B_s) times what is left at t of s, 0 for s after t; of any dt, with gradients."""
    size = cum_BGRT.shape[-1]
    future = torch.ones(size, size, dtype=torch.bool, device=cum_BGRT.device).triu(1)
    span = (cum_BGRT[..., :, None] - cum_BGRT[..., None, :]).to(CB_BGTT.dtype).masked_fill(future, -torch.inf)
    return span.exp() * CB_BGTT[:, :, None]


def _fading(cum_BGRT, CB_BGTT):
    """The same where every span between s and a later t is a decay, so that those of the future can be cut off at 1."""
    size = cum_BGRT.shape[-1]
    span = torch.empty(*cum_BGRT.shape, size, dtype=CB_BGTT.dtype, device=CB_BGTT.device)
    torch.sub(cum_BGRT[..., :, None], cum_BGRT[..., None, :], out=span)  # in float64, kept in x's type
    return span.clamp_max_(0).exp_().mul_(CB_BGTT.tril_()[:, :, None])


def _after(x, cum, B_, h):
    """The state after a chunk: what its tokens wrote, and what is left of the one before."""
    rest = torch.exp(cum[:, -1:] - cum).to(x.dtype)[..., None]
    wrote = (x * rest).flatten(3).permute(0, 2, 3, 1) @ B_  # B G (R P) N
    wrote = wrote.unflatten(2, x.shape[3:]).flatten(1, 2)  # B H P N
    if h is None:
        return wrote
    return torch.addcmul(wrote, cum[:, -1].exp().to(x.dtype).flatten(1)[..., None, None], spread(h, len(x)))


def _read(C_, h):
    """C_t · h, B T G R P. A state with fewer rows than the batch is read without copying it."""
    groups, size = C_.shape[1:3]
    h = h.unflatten(1, (groups, -1))  # b G R P N
    c = C_.unflatten(0, (-1, len(h))).permute(1, 2, 0, 3, 4).flatten(2, 3)  # b G (S T) N
    y = (c @ h.flatten(2, 3).transpose(2, 3)).unflatten(2, (-1, size))  # b G S T (R P)
    return y.permute(2, 0, 3, 1, 4).flatten(0, 1).unflatten(3, h.shape[2:4])


def _many_decays(v, dt, w, A_HN, B_BLGN, C_BLGN, h0, keep_h):
    """Mamba-1: the state B N E stays in cache while the tokens go by; no length × state tensor is ever made."""
    heads, width, groups = *v.shape[2:], B_BLGN.shape[2]
    x_BLE = (v * w[..., None]).flatten(2)
    dt_BLE, A_NE = dt.repeat_interleave(width, dim=2), A_HN.repeat_interleave(width, dim=0).T.contiguous()
    if v.shape[1] == 1 and h0 is not None and not keep_h:
        return _one_token_of_many(x_BLE, dt_BLE, A_NE, B_BLGN, C_BLGN, _to_NE(h0)).unflatten(2, (heads, width)), None
    h_BNE = v.new_zeros(len(v), *A_NE.shape) if h0 is None else spread(_to_NE(h0), len(v)).clone()
    ys, hs = zip(*(_one_group(*each) for each in zip(
        x_BLE.chunk(groups, 2), dt_BLE.chunk(groups, 2), A_NE.chunk(groups, 1), B_BLGN.unbind(2), C_BLGN.unbind(2),
        h_BNE.chunk(groups, 2))))
    y, h = _joined(ys, 2), _joined(hs, 2)
    return y.unflatten(2, (heads, width)), h.unflatten(2, (heads, width)).permute(0, 2, 3, 1)


def _one_token_of_many(x_B1E, dt_B1E, A_NE, B_B1GN, C_B1GN, h_bNE):
    """A token that goes on from a state which rows may share: C (exp(dt A) h) + (C B) x; the state after it is not made."""
    left_BNE = torch.mul(dt_B1E, A_NE).exp()
    left_BNE = (left_BNE.unflatten(0, (-1, len(h_bNE))) * h_bNE).flatten(0, 1)
    groups = B_B1GN.shape[2]
    before = [C_B1N[:, None] @ left for C_B1N, left in zip(C_B1GN[:, 0].unbind(1), left_BNE.chunk(groups, 2))]
    own_B1E = (C_B1GN * B_B1GN).sum(-1).repeat_interleave(x_B1E.shape[2] // groups, dim=2)
    return torch.addcmul(_joined(before, 2), own_B1E, x_B1E)


def _one_group(x_BLE, dt_BLE, A_NE, B_BLN, C_BLN, h_BNE):
    """y_BLE and the last state of channels that share B and C. The state is written over unless it has gradients."""
    advance = _grown if _needs_grad((x_BLE, dt_BLE, A_NE, B_BLN, h_BNE)) else _overwritten
    ys = []
    for x, dt, B_, C_ in zip(x_BLE[:, :, None].unbind(1), dt_BLE[:, :, None].unbind(1), B_BLN[..., None].unbind(1),
                             C_BLN[:, :, None].unbind(1)):
        h_BNE = advance(h_BNE, torch.mul(dt, A_NE).exp_(), B_, x)
        ys.append(C_ @ h_BNE)
    return torch.cat(ys, dim=1), h_BNE


def _grown(h, decay, B_, x):
    return torch.addcmul(B_ * x, decay, h)


def _overwritten(h, decay, B_, x):
    return h.mul_(decay).addcmul_(B_, x)


def _to_NE(h_BHPN):
    return h_BHPN.permute(0, 3, 1, 2).flatten(2)


def conv(u_BLC, weight_CK, bias_C, *, tail=None, keep_tail=True) -> tuple[Tensor, Tensor | None]:
    """The causal depthwise convolution as shifted sums: faster on CPU than a grouped conv1d."""
    length, width = u_BLC.shape[1], weight_CK.shape[1]
    tail = u_BLC.new_zeros(1, width - 1, u_BLC.shape[2]) if tail is None else tail
    add = _added if _needs_grad((u_BLC, weight_CK, bias_C, tail)) else _added_in_place
    tap_KC = weight_CK.T.contiguous()
    y = add(torch.addcmul(bias_C, u_BLC, tap_KC[width - 1]), u_BLC, tap_KC, tail)
    if not keep_tail:
        return y, None
    last = max(length - width + 1, 0)
    return y, torch.cat([spread(tail, len(u_BLC)), u_BLC[:, last:]], dim=1)[:, length - last:]


def _added(y, u_BLC, tap_KC, tail):
    """The earlier taps added to y, from one tensor of all inputs: what gradients go back through fastest."""
    u = torch.cat([spread(tail, len(y)), u_BLC], dim=1)
    for k in range(len(tap_KC) - 1):
        y = torch.addcmul(y, u[:, k:k + y.shape[1]], tap_KC[k])
    return y


def _added_in_place(y, u_BLC, tap_KC, tail):
    """The earlier taps added to y, which is ours until it is returned, without a copy of the inputs. What they read of a
    tail that many rows share is summed once."""
    length, width = y.shape[1], len(tap_KC)
    before = tail.new_zeros(len(tail), min(length, width - 1), tail.shape[2])
    for k in range(width - 1):
        back = width - 1 - k  # how many tokens before its own this tap reads
        y[:, back:].addcmul_(u_BLC[:, :max(length - back, 0)], tap_KC[k])
        before[:, :back].addcmul_(tail[:, k:k + length], tap_KC[k])
    y.unflatten(0, (-1, len(tail)))[:, :, :before.shape[1]] += before
    return y
