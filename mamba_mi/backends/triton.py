"""Our own kernels in Triton, for what no library has: the scans of Mamba-1 and Mamba-2 with their gradients, rows of the
hidden attention, states at chosen positions; beside the contract, knockouts of many sets of sources at once.

Mamba-2's matrix products are taken in full float32 (`ieee`, never TF32), its decays cumulated in float64. Arguments in
float64, and passes of few tokens, take the token loop for Mamba-2 too, which has no matrix product.
The convolutions and retention are those of `chunked`: plain torch, on any device.
With TRITON_INTERPRET=1 in the environment when it starts, the kernels are interpreted, on a CPU too: slow, for tests.
"""
from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from shutil import which

import torch
from torch import Tensor

from mamba_mi.backends import mixing as written_out
from mamba_mi.backends.chunked import conv
from mamba_mi.backends.kernels import INTERPRETED, PRECISION
from mamba_mi.backends.long_conv import long_conv
from mamba_mi.backends.mixing import check_how, groups_of, picked
from mamba_mi.backends.reference import gate, gated_norm, needs_grad, norm, own_types, softplus, widened
from mamba_mi.backends.retention import retain
from mamba_mi.backends.states import by_scan
from mamba_mi.config import UserError

__all__ = ["DEVICES", "conv", "gate", "gated_norm", "knockout_rows", "long_conv", "missing", "mixing",
           "mixing_over_heads", "norm", "products", "retain", "scan", "slow", "softplus", "states_at"]
DEVICES = ("cpu", "cuda") if INTERPRETED else ("cuda",)
PROVE = not INTERPRETED  # before it is used, on the device
FEW = 16  # tokens: fewer would leave most of a matrix product's tile empty


def missing() -> str:
    """Why this backend cannot run here; empty when it can."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if INTERPRETED:
        return ""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if not (os.environ.get("CC") or which("gcc") or which("clang")):
        return "there is no C compiler, which triton needs to launch a kernel (install gcc, or set CC)"
    if (found := torch.cuda.get_device_capability()) < (8, 0):
        return f"the CUDA device is sm_{found[0]}{found[1]}, and the kernels need sm_80 or later"
    return ""


def slow() -> str:
    """Why nobody should want it here; empty where it is fast."""
    return "its kernels are interpreted (TRITON_INTERPRET=1), which is slow: it is for tests" if INTERPRETED else ""


def products() -> str:
    """How products of float32 are taken."""
    return PRECISION


def scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, *, h0=None, keep_h=True,
         dt_write=None) -> tuple[Tensor, Tensor | None]:
    """The contract of `mamba_mi.backends`: one decay a head in chunks, many decays token by token."""
    from mamba_mi.backends.kernels import many_decays, many_decays_back, one_decay, one_decay_back
    w = dt_BLH if dt_write is None else dt_write
    in_chunks = _in_chunks(v_BLHP, A_HN)
    A_HN = A_HN if in_chunks else _many(A_HN, B_BLGN)
    given = v_BLHP, dt_BLH, w, A_HN, B_BLGN, C_BLGN, h0
    if needs_grad(given):
        v, dt, A, B_, C_, h0, w = widened(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0, w)
        y, h = (one_decay_back if in_chunks else many_decays_back).mix(v, dt, w, A, B_, C_, h0, keep_h)
        return y.to(v_BLHP.dtype), h
    y, h, _ = (one_decay if in_chunks else many_decays).mix(*given, keep_h)
    return y, h


def knockout_rows(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, gone_BJL: Tensor, queries: Sequence[int], *, h0=None,
                  dt_write=None) -> Tensor:
    """y_BJQHP at the queries, once without each of J sets of sources: what the tokens in a set write is not read.

    The scan of each set, read at the queries; a set may differ from row to row of the batch, or hold for all (1 J L). What
    the state before the pass says stays. No gradients.
    """
    from mamba_mi.backends.kernels import rows
    w, at_Q = dt_BLH if dt_write is None else dt_write, picked(queries, dt_BLH.shape[1], "queries").to(v_BLHP.device)
    kept_BLJ = (~gone_BJL).transpose(1, 2).to(torch.uint8).expand(len(v_BLHP), -1, -1)
    args = v_BLHP, dt_BLH, w, _many(A_HN, B_BLGN), B_BLGN, C_BLGN, h0, kept_BLJ, at_Q
    if needs_grad(args):
        raise UserError("knockout_rows has no gradients: call it under torch.no_grad(), or take them through scan")
    if A_HN.shape[1] > 1 or v_BLHP.dtype == torch.float64:
        return rows.knocked(*args).to(v_BLHP.dtype)
    with own_types(v_BLHP):
        return rows.knocked_one_decay(*args[:3], A_HN, *args[4:]).to(v_BLHP.dtype)


def mixing(dt_BLH, A_HN, B_BLGN, C_BLGN, *, rows: Sequence[int] | None = None, heads: Sequence[int] | None = None,
           dt_write=None) -> Tensor:
    """The contract of `mamba_mi.backends`: a row of M costs what a scan as far as there does. Gradients go through plain torch."""
    from mamba_mi.backends.kernels import rows as kernels
    w = dt_BLH if dt_write is None else dt_write
    if needs_grad((dt_BLH, w, A_HN, B_BLGN, C_BLGN)):
        return written_out.mixing(dt_BLH, A_HN, B_BLGN, C_BLGN, rows=rows, heads=heads, dt_write=dt_write)
    if heads is not None:
        at_H, group_H = picked(heads, dt_BLH.shape[2], "heads"), groups_of(dt_BLH.shape[2], B_BLGN)
        dt_BLH, w, A_HN = dt_BLH[:, :, at_H], w[:, :, at_H], A_HN[at_H]
        if B_BLGN.shape[2] > 1:  # each of these heads with a group of its own
            B_BLGN, C_BLGN = B_BLGN[:, :, group_H[at_H]], C_BLGN[:, :, group_H[at_H]]
    at_Q = picked(rows, dt_BLH.shape[1], "rows").to(dt_BLH.device)
    return kernels.mixing(dt_BLH, w, _many(A_HN, B_BLGN), B_BLGN, C_BLGN, at_Q).permute(0, 3, 1, 2)


def mixing_over_heads(dt_BLH, A_HN, B_BLGN, C_BLGN, *, how: str, rows: Sequence[int] | None = None, dt_write=None) -> Tensor:
    """The contract of `mamba_mi.backends`, M itself never being held. Gradients go through plain torch."""
    from mamba_mi.backends.kernels import rows as kernels
    check_how(how)
    w = dt_BLH if dt_write is None else dt_write
    if needs_grad((dt_BLH, w, A_HN, B_BLGN, C_BLGN)):
        return written_out.mixing_over_heads(dt_BLH, A_HN, B_BLGN, C_BLGN, how=how, rows=rows, dt_write=dt_write)
    at_Q = picked(rows, dt_BLH.shape[1], "rows").to(dt_BLH.device)
    given = dt_BLH, w, _many(A_HN, B_BLGN), B_BLGN, C_BLGN, at_Q
    return kernels.over_heads(*given, power=1) if how == "mean" else kernels.over_heads(*given, power=2).sqrt()


def states_at(v_BLHP, dt_BLH, A_HN, B_BLGN, positions: Sequence[int], *, h0=None, dt_write=None) -> Tensor:
    """The contract of `mamba_mi.backends`, all positions in one pass. Gradients go through the scan."""
    from mamba_mi.backends.kernels import many_decays, one_decay
    w = dt_BLH if dt_write is None else dt_write
    if needs_grad((v_BLHP, dt_BLH, w, A_HN, B_BLGN, h0)):
        return by_scan(scan)(v_BLHP, dt_BLH, A_HN, B_BLGN, positions, h0=h0, dt_write=dt_write)
    each, back = picked(positions, dt_BLH.shape[1], "positions").unique(return_inverse=True)
    v_BLHP, dt_BLH, w, B_BLGN = (x[:, :int(each[-1]) + 1] for x in (v_BLHP, dt_BLH, w, B_BLGN))
    each, back = each.to(v_BLHP.device), back.to(v_BLHP.device)
    if _in_chunks(v_BLHP, A_HN):
        with own_types(v_BLHP):
            return one_decay.states(v_BLHP, dt_BLH, w, A_HN, B_BLGN, h0, each)[:, back]
    return many_decays.states(v_BLHP, dt_BLH, w, _many(A_HN, B_BLGN), B_BLGN, h0, each)[:, back]


def _in_chunks(v_BLHP, A_HN) -> bool:
    return A_HN.shape[1] == 1 and v_BLHP.shape[1] >= FEW and v_BLHP.dtype != torch.float64


def _many(A_HN, B_BLGN):
    """One decay a head as many that are alike; no copy is made."""
    return A_HN.expand(-1, B_BLGN.shape[3])
