"""The scan as attention: the matrix M of y = M v written out, head by head. Quadratic in length; shows its own work.

Shape legend: B batch, L length, H heads, P head width, N state, G groups.
"""
from __future__ import annotations

import torch
from torch import Tensor

from mamba_mi.backends.chunked import conv
from mamba_mi.backends.long_conv import whole as long_conv
from mamba_mi.backends.mixing import blocks, groups_of, mixing, mixing_over_heads, spans, written_out
from mamba_mi.backends.reference import gate, gated_norm, norm, softplus, spread, widened
from mamba_mi.backends.retention import whole as retain
from mamba_mi.backends.states import by_scan

__all__ = ["conv", "gate", "gated_norm", "long_conv", "missing", "mixing", "mixing_over_heads", "norm", "retain", "scan",
           "softplus", "states_at"]


def missing() -> str:
    """Why this backend cannot run here; empty when it can."""
    return ""


def scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, *, h0=None, keep_h=True,
         dt_write=None) -> tuple[Tensor, Tensor | None]:
    """The contract of `mamba_mi.backends`: y = M v, and what the state before the prompt adds to it."""
    v, dt, A, B_, C_, h0, w = widened(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0, dt_write)
    rows, length, heads, _ = v.shape
    h0 = None if h0 is None else spread(h0, rows)
    group_H = groups_of(heads, B_)
    ys, states = [], []
    for at in blocks(range(heads), rows * length * length):
        v_BLHP_, dt_BLH_, w_BLH_, A_HN_ = v[:, :, at], dt[:, :, at], w[:, :, at], A[at]
        y = written_out(dt_BLH_, w_BLH_, A_HN_, B_, C_, group_H[at], torch.arange(length)) @ v_BLHP_.transpose(1, 2)
        before = None if h0 is None else h0[:, at]
        if before is not None:
            y = y + _from_start(dt_BLH_, A_HN_, C_[:, :, group_H[at]], before)
        ys.append(y.transpose(1, 2))
        if keep_h:
            states.append(_last_state(v_BLHP_, dt_BLH_, w_BLH_, A_HN_, B_[:, :, group_H[at]], before))
    return torch.cat(ys, dim=2).to(v_BLHP.dtype), torch.cat(states, dim=1) if keep_h else None


states_at = by_scan(scan)


def _from_start(dt_BLH, A_HN, C_BLHN, h0_BHPN):
    """C_t exp(A Σ_{1..t} dt) h_0, B H L P."""
    passed_BLH = dt_BLH.double().cumsum(1).to(dt_BLH.dtype)
    kept_BLHN = (A_HN * passed_BLH[..., None]).exp()
    return (C_BLHN * kept_BLHN).transpose(1, 2) @ h0_BHPN.transpose(2, 3)


def _last_state(v_BLHP, dt_BLH, w_BLH, A_HN, B_BLHN, h0_BHPN):
    rest_BLH = spans(dt_BLH, torch.tensor([dt_BLH.shape[1] - 1]))[:, :, 0].transpose(1, 2).to(dt_BLH.dtype)
    left_BLHN = (A_HN * rest_BLH[..., None]).exp() * B_BLHN
    h = (v_BLHP * w_BLH[..., None]).permute(0, 2, 3, 1) @ left_BLHN.transpose(1, 2)
    if h0_BHPN is None:
        return h
    kept_BHN = (A_HN * dt_BLH.double().sum(1).to(dt_BLH.dtype)[..., None]).exp()
    return h + kept_BHN[:, :, None] * h0_BHPN
