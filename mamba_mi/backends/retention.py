"""Retention some query rows at a time: as much of its matrix as stays in cache, linear in length; or all of it at once.

Keys and values before the pass may be shared by many rows of the batch: they are read by one product a prompt.
Shape legend: B batch, b rows of the past (row r goes on from row r % b), L length of the pass, Q its query rows, P tokens
before it, T = P + L, H heads, K width of a key, V width of a head's value.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WORK = 2**20  # entries of the matrix made at once
LOW, HIGH = 1.0, 5e4  # what a row's sum of magnitudes is kept between before the row is divided by it


def retain(q_BQHK, k_BLHK, v_BLHV, decay_BLH, *, past=None, at=None, gone_BT=None) -> Tensor:
    """The contract of `mamba_mi.backends`, some rows of the matrix at a time."""
    before = 0 if past is None else past[0].shape[1]
    size = max(1, WORK // (len(q_BQHK) * q_BQHK.shape[2] * (before + k_BLHK.shape[1])))
    return _by_rows(size, q_BQHK, k_BLHK, v_BLHV, decay_BLH, past, at, gone_BT)


def whole(q_BQHK, k_BLHK, v_BLHV, decay_BLH, *, past=None, at=None, gone_BT=None) -> Tensor:
    """The same, with every row of the matrix made at once."""
    return _by_rows(q_BQHK.shape[1], q_BQHK, k_BLHK, v_BLHV, decay_BLH, past, at, gone_BT)


def matrix(q_BQHK, k_BLHK, decay_BLH, at_Q) -> Tensor:
    """M_BHQL of y_t = Σ_s M[t, s] v_s, of a pass with nothing before it: the rows of the positions `at_Q`."""
    kind = torch.promote_types(q_BQHK.dtype, torch.float32)
    q_BHQK, k_BHLK = (x.to(kind).transpose(1, 2) for x in (q_BQHK, k_BLHK))
    left_BHQL, _ = left(decay_BLH, at_Q)
    M_BHQL = q_BHQK @ k_BHLK.mT * (left_BHQL / left_BHQL.sum(-1, keepdim=True).sqrt()).to(kind)
    return M_BHQL / _bounded(M_BHQL.abs().sum(-1, keepdim=True))


def left(decay_BLH, at_Q) -> tuple[Tensor, Tensor]:
    """What is left at t of what each s of the pass wrote, left_BHQL = Π_{s+1..t} decay, 0 for s > t; and at t of all that
    came before the pass, BHQ. In float64: a product of a thousand factors is off by 1e-4 in float32."""
    seen_QL = at_Q[:, None] >= torch.arange(decay_BLH.shape[1], device=at_Q.device)
    decay_BHQL = torch.where(seen_QL, decay_BLH.double().transpose(1, 2)[:, :, None], 1.0)
    since_BHQL = decay_BHQL.flip(-1).cumprod(-1).flip(-1)  # no quotients: an edited decay may be 0
    return F.pad(since_BHQL[..., 1:], (0, 1), value=1.0) * seen_QL, since_BHQL[..., 0]


def _by_rows(size, q_BQHK, k_BLHK, v_BLHV, decay_BLH, past, at, gone_BT):
    kind, length = torch.promote_types(v_BLHV.dtype, torch.float32), k_BLHK.shape[1]
    at_Q = torch.arange(length) if at is None else at
    k_BHLK, v_BHLV = (x.to(kind).transpose(1, 2) for x in (k_BLHK, v_BLHV))
    past = past and [x.to(kind).transpose(1, 2) for x in past]
    ys = []
    for q_BQHK_, at_Q_ in zip(q_BQHK.to(kind).split(size, 1), at_Q.to(q_BQHK.device).split(size)):
        end = int(at_Q_.max()) + 1  # later tokens are in none of these rows
        rest = end - length
        gone = None if gone_BT is None else gone_BT[:, :rest or None]
        y_BHQV = _rows(q_BQHK_.transpose(1, 2), k_BHLK[:, :, :end], v_BHLV[:, :, :end], *left(decay_BLH[:, :end], at_Q_),
                       past, gone)
        ys.append(y_BHQV.transpose(1, 2))
    return torch.cat(ys, dim=1).to(v_BLHV.dtype)


def _rows(q_BHQK, k_BHLK, v_BHLV, left_BHQL, before_BHQ, past, gone_BT):
    """y of some query rows: their entries of M for the pass and for the past, scaled by what both sum to."""
    length, weight_BHQ = k_BHLK.shape[2], left_BHQL.sum(-1)
    own_BHQL = q_BHQK @ k_BHLK.mT
    if past is not None:
        left_BHP = past[2].repeat(len(q_BHQK) // len(past[2]), 1, 1) if len(before_BHQ) > 1 else past[2]
        weight_BHQ = weight_BHQ + before_BHQ * left_BHP.sum(-1, keepdim=True)
    # the scale before the weights: these have one row for all where nobody edits a decay
    own_BHQL = own_BHQL * _fit((left_BHQL / weight_BHQ.sqrt()[..., None]).to(own_BHQL), len(own_BHQL))
    total_BHQ1 = own_BHQL.abs().sum(-1, keepdim=True)
    if past is not None:
        share_BHQP = before_BHQ[..., None] * left_BHP[:, :, None] / weight_BHQ.sqrt()[..., None]
        far_BHQP = _shared(q_BHQK, past[0].mT) * _fit(share_BHQP.to(own_BHQL), len(own_BHQL))
        total_BHQ1 = total_BHQ1 + far_BHQP.abs().sum(-1, keepdim=True)
    scale_BHQ1 = _bounded(total_BHQ1)
    # after the sums: M is linear in v, and what is gone from it does not make the rest louder
    y_BHQV = _without(own_BHQL / scale_BHQ1, gone_BT, slice(-length, None)) @ v_BHLV
    if past is None:
        return y_BHQV
    far_BHQP = far_BHQP / scale_BHQ1
    if gone_BT is not None and gone_BT.shape[1] > length:
        far_BHQP = _without(far_BHQP, gone_BT, slice(0, -length))
    return y_BHQV + _shared(far_BHQP, past[1])


def _bounded(total):
    """What a row is divided by. Gradients take it as given, as the published model's do."""
    return total.detach().clamp(LOW, HIGH)


def _fit(x, rows):
    """x_bHQT for so many rows, row r being r % b; one row is left to broadcast."""
    return x if len(x) in (1, rows) else x.repeat(rows // len(x), *[1] * (x.ndim - 1))


def _without(M_BHQT, gone_BT, columns):
    return M_BHQT if gone_BT is None else M_BHQT.masked_fill(gone_BT[:, None, None, columns].to(M_BHQT.device), 0)


def _shared(x_BHQI, w_bHIO):
    """x @ w, where row r reads w's row r % b: all rows of one prompt in one product."""
    rows, size = len(w_bHIO), x_BHQI.shape[2]
    x_bHRI = x_BHQI.unflatten(0, (-1, rows)).permute(1, 2, 0, 3, 4).flatten(2, 3)
    return (x_bHRI @ w_bHIO).unflatten(2, (-1, size)).permute(2, 0, 1, 3, 4).flatten(0, 1)
