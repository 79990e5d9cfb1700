"""The scan as attention: the matrix M of y = M v written out, head by head. Quadratic in length; shows its own work.

Shape legend: B batch, L length, T query rows, S source positions, H heads, P head width, N state, G groups.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mamba_mi.backends.chunked import conv
from mamba_mi.backends.long_conv import whole as long_conv
from mamba_mi.backends.reference import gate, gated_norm, norm, softplus, spread, widened
from mamba_mi.backends.retention import whole as retain
from mamba_mi.config import UserError

__all__ = ["blocks", "conv", "gate", "gated_norm", "long_conv", "missing", "mixing", "norm", "picked", "retain", "scan", "softplus"]
BLOCK = 1 << 16  # entries of M made at once: they stay in cache


def missing() -> str:
    """Why this backend cannot run here; empty when it can."""
    return ""


def scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, *, h0=None, keep_h=True,
         dt_write=None) -> tuple[Tensor, Tensor | None]:
    """The contract of `mamba_mi.backends`: y = M v, and what the state before the prompt adds to it."""
    v, dt, A, B_, C_, h0, w = widened(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0, dt_write)
    rows, length, heads, _ = v.shape
    h0 = None if h0 is None else spread(h0, rows)
    group_H = _groups(heads, B_)
    ys, states = [], []
    for at in blocks(range(heads), rows * length * length):
        v_BLHP_, dt_BLH_, w_BLH_, A_HN_ = v[:, :, at], dt[:, :, at], w[:, :, at], A[at]
        y = _mix(dt_BLH_, w_BLH_, A_HN_, B_, C_, group_H[at], torch.arange(length)) @ v_BLHP_.transpose(1, 2)
        before = None if h0 is None else h0[:, at]
        if before is not None:
            y = y + _from_start(dt_BLH_, A_HN_, C_[:, :, group_H[at]], before)
        ys.append(y.transpose(1, 2))
        if keep_h:
            states.append(_last_state(v_BLHP_, dt_BLH_, w_BLH_, A_HN_, B_[:, :, group_H[at]], before))
    return torch.cat(ys, dim=2).to(v_BLHP.dtype), torch.cat(states, dim=1) if keep_h else None


def mixing(dt_BLH, A_HN, B_BLGN, C_BLGN, *, rows: Sequence[int] | None = None,
           heads: Sequence[int] | None = None) -> Tensor:
    """M_BHTS of one layer, y_t = Σ_s M[t, s] v_s: the query rows and heads asked for, by default all.

    M[t, s] = Σ_n C_t[n] exp(A[n] Σ_{s+1..t} dt) dt_s B_s[n], and 0 for s > t. The D of the model is not in it. A head
    of Mamba-1 is a channel: ask for some of them (`blocks`), all are length² × channels numbers.
    """
    kind = torch.promote_types(dt_BLH.dtype, torch.float32)
    dt, A, B_, C_ = (x.to(kind) for x in (dt_BLH, A_HN, B_BLGN, C_BLGN))
    at_T, at_H = picked(rows, dt.shape[1], "rows"), picked(heads, dt.shape[2], "heads")
    group_H = _groups(dt.shape[2], B_)
    parts = blocks(at_H.tolist(), len(dt) * len(at_T) * dt.shape[1])
    return torch.cat([_mix(dt[:, :, at], dt[:, :, at], A[at], B_, C_, group_H[at], at_T) for at in parts], dim=1)


def blocks(heads: Sequence[int], entries: int) -> Iterable[list[int]]:
    """The heads a few at a time, so that M's `entries` a head stay within a bound."""
    size = max(1, BLOCK // max(entries, 1))
    return [list(heads[i:i + size]) for i in range(0, len(heads), size)]


def picked(asked: Sequence[int] | None, size: int, what: str) -> Tensor:
    """The indices asked for of 0 … size-1, all when None; negative ones count from the end."""
    if asked is None:
        return torch.arange(size)
    asked = [asked] if isinstance(asked, int) else [int(i) for i in asked]
    if not asked or not all(-size <= i < size for i in asked):
        raise UserError(f"{what}={asked}: there are 0-{size - 1}, and at least one is needed")
    return torch.arange(size)[asked]


def _groups(heads, B_BLGN):
    """The group each head reads B and C from."""
    return torch.arange(heads) // (heads // B_BLGN.shape[2])


def _mix(dt_BLH, w_BLH, A_HN, B_BLGN, C_BLGN, group_H, at_T):
    """M_BHTS of these heads; with many decays one state at a time, so that no length² × state tensor is made."""
    span_BHTS = _spans(dt_BLH, at_T).to(dt_BLH.dtype)  # once summed, rounding it moves a decay by 2e-8 at most
    causal_TS = at_T[:, None] >= torch.arange(dt_BLH.shape[1])
    C_BGTN, B_BGNS = C_BLGN[:, at_T].transpose(1, 2), B_BLGN.permute(0, 2, 3, 1)
    if A_HN.shape[1] == 1:
        M = _decay(A_HN[:, 0], span_BHTS) * _of(C_BGTN @ B_BGNS, group_H)
    else:
        M = sum(_decay(A_HN[:, n], span_BHTS) * _of(C_BGTN[..., n, None] * B_BGNS[:, :, None, n], group_H)
                for n in range(A_HN.shape[1]))
    return M * w_BLH.transpose(1, 2)[:, :, None] * causal_TS.to(M)


def _spans(dt_BLH, at_T):
    """Σ_{s+1..t} dt, 0 where s >= t. Summed from t down, in float64: a difference of two long sums would drown a
    span of 1e-10 behind a dt of 1, and A may be -3e8."""
    dt_BHL = dt_BLH.double().transpose(1, 2)
    seen_TS = at_T[:, None] >= torch.arange(dt_BLH.shape[1])
    up_to_t = (dt_BHL[:, :, None] * seen_TS.to(dt_BHL)).flip(-1)
    after = up_to_t.cumsum(-1).flip(-1)[..., 1:]
    return torch.nn.functional.pad(after, (0, 1))


def _decay(A_H, span_BHTS):
    return (A_H[:, None, None] * span_BHTS).exp()


def _of(x_BGTS, group_H):
    return x_BGTS if x_BGTS.shape[1] == 1 else x_BGTS[:, group_H]


def _from_start(dt_BLH, A_HN, C_BLHN, h0_BHPN):
    """C_t exp(A Σ_{1..t} dt) h_0, B H L P."""
    passed_BLH = dt_BLH.double().cumsum(1).to(dt_BLH.dtype)
    kept_BLHN = (A_HN * passed_BLH[..., None]).exp()
    return (C_BLHN * kept_BLHN).transpose(1, 2) @ h0_BHPN.transpose(2, 3)


def _last_state(v_BLHP, dt_BLH, w_BLH, A_HN, B_BLHN, h0_BHPN):
    rest_BLH = _spans(dt_BLH, torch.tensor([dt_BLH.shape[1] - 1]))[:, :, 0].transpose(1, 2).to(dt_BLH.dtype)
    left_BLHN = (A_HN * rest_BLH[..., None]).exp() * B_BLHN
    h = (v_BLHP * w_BLH[..., None]).permute(0, 2, 3, 1) @ left_BLHN.transpose(1, 2)
    if h0_BHPN is None:
        return h
    kept_BHN = (A_HN * dt_BLH.double().sum(1).to(dt_BLH.dtype)[..., None]).exp()
    return h + kept_BHN[:, :, None] * h0_BHPN
