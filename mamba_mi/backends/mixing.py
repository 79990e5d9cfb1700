"""The matrix M of y = M v that a scan is (Ali et al. 2024, Dao & Gu 2024), by row and by head, in plain torch.

Shape legend: B batch, L length, T query rows, S source positions, H heads, N state, G groups.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from mamba_mi.config import UserError

BLOCK = 1 << 16  # entries of M made at once: they stay in cache
OVER = ("mean", "norm")  # how heads are taken together


def mixing(dt_BLH, A_HN, B_BLGN, C_BLGN, *, rows: Sequence[int] | None = None, heads: Sequence[int] | None = None,
           dt_write=None) -> Tensor:
    """M_BHTS of one layer, y_t = Σ_s M[t, s] v_s: the query rows and heads asked for, by default all.

    M[t, s] = Σ_n C_t[n] exp(A[n] Σ_{s+1..t} dt) dt_s B_s[n], and 0 for s > t. The D of the model is not in it. A head
    of Mamba-1 is a channel: ask for some of them (`blocks`), all are length² × channels numbers.
    """
    w_BLH = dt_BLH if dt_write is None else dt_write
    kind = torch.promote_types(dt_BLH.dtype, torch.float32)
    dt, w, A, B_, C_ = (x.to(kind) for x in (dt_BLH, w_BLH, A_HN, B_BLGN, C_BLGN))
    at_T, at_H = picked(rows, dt.shape[1], "rows"), picked(heads, dt.shape[2], "heads")
    group_H = groups_of(dt.shape[2], B_)
    parts = blocks(at_H.tolist(), len(dt) * len(at_T) * dt.shape[1])
    return torch.cat([written_out(dt[:, :, at], w[:, :, at], A[at], B_, C_, group_H[at], at_T) for at in parts], dim=1)


def mixing_over_heads(dt_BLH, A_HN, B_BLGN, C_BLGN, *, how: str, rows: Sequence[int] | None = None,
                      dt_write=None) -> Tensor:
    """All heads' M in one, M_BTS: their signed mean, or the root of the mean of their squares ("norm")."""
    given = dt_BLH, A_HN, B_BLGN, C_BLGN
    return over_heads(lambda at: mixing(*given, rows=rows, heads=at, dt_write=dt_write), dt_BLH.shape[2],
                      len(dt_BLH) * len(picked(rows, dt_BLH.shape[1], "rows")) * dt_BLH.shape[1], how)


def over_heads(matrix: Callable[[list[int]], Tensor], heads: int, entries: int, how: str) -> Tensor:
    """M_BTS of all `heads` in one, of which `matrix(at)` makes those in `at`, B H T S; M has so many `entries` a head."""
    check_how(how)
    total = 0
    for at in blocks(range(heads), entries):
        M_BHTS = matrix(at)
        total = total + (M_BHTS if how == "mean" else M_BHTS.square()).sum(dim=1)
    return total / heads if how == "mean" else root(total / heads)


def root(x: Tensor) -> Tensor:
    """√x, whose gradient where x is 0, as M is of every source after its query, is 0 and not infinite."""
    some = x != 0
    return x.where(some, 1).sqrt() * some


def check_how(how: str) -> None:
    if how not in OVER:
        raise UserError(f"how={how!r}: heads are taken together by {' or '.join(OVER)}")


def blocks(heads: Sequence[int], entries: int) -> Iterable[list[int]]:
    """The heads a few at a time, so that M's `entries` a head stay within a bound."""
    size = max(1, BLOCK // max(entries, 1))
    return [list(heads[i:i + size]) for i in range(0, len(heads), size)]


def picked(asked: Sequence[int] | None, size: int, what: str) -> Tensor:
    """The indices asked for of 0 … size-1, all when None; negative ones count from the end."""
    if asked is None:
        return torch.arange(size)
    asked = [asked] if isinstance(asked, int) else asked
    try:
        asked = [int(i) for i in asked]
    except (TypeError, ValueError):
        raise UserError(f"{what}={asked}: give whole numbers, such as [0, -1]") from None
    if not asked:
        raise UserError(f"{what}=[]: at least one is needed; there are 0-{size - 1}")
    if not all(-size <= i < size for i in asked):
        raise UserError(f"{what}={asked}: there are 0-{size - 1}, and from the end -1 to -{size}")
    return torch.arange(size)[asked]


def groups_of(heads, B_BLGN):
    """The group each head reads B and C from."""
    return torch.arange(heads) // (heads // B_BLGN.shape[2])


def written_out(dt_BLH, w_BLH, A_HN, B_BLGN, C_BLGN, group_H, at_T):
    """M_BHTS of these heads; with many decays one state at a time, so that no length² × state tensor is made."""
    span_BHTS = spans(dt_BLH, at_T).to(dt_BLH.dtype)  # once summed, rounding it moves a decay by 2e-8 at most
    causal_TS = at_T[:, None] >= torch.arange(dt_BLH.shape[1])
    C_BGTN, B_BGNS = C_BLGN[:, at_T].transpose(1, 2), B_BLGN.permute(0, 2, 3, 1)
    if A_HN.shape[1] == 1:
        M = _decay(A_HN[:, 0], span_BHTS) * _of(C_BGTN @ B_BGNS, group_H)
    else:
        M = sum(_decay(A_HN[:, n], span_BHTS) * _of(C_BGTN[..., n, None] * B_BGNS[:, :, None, n], group_H)
                for n in range(A_HN.shape[1]))
    return M * w_BLH.transpose(1, 2)[:, :, None] * causal_TS.to(M)


def spans(dt_BLH, at_T):
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
