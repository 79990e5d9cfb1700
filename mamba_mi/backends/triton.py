"""Our own kernels in Triton, for what no library has: the scans of Mamba-1 and Mamba-2 with their gradients; beside the
contract, knockouts of many sets of sources at once, rows of the hidden attention, and states at chosen positions.

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

from mamba_mi.backends.attention import picked
from mamba_mi.backends.chunked import conv
from mamba_mi.backends.kernels import INTERPRETED, PRECISION
from mamba_mi.backends.long_conv import long_conv
from mamba_mi.backends.reference import gate, gated_norm, needs_grad, norm, own_types, softplus, widened
from mamba_mi.backends.retention import retain
from mamba_mi.config import UserError

__all__ = ["DEVICES", "conv", "gate", "gated_norm", "knockout_rows", "long_conv", "missing", "mixing_rows", "norm", "products", "retain", "scan",
           "softplus", "states_at"]
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
    _refuse_gradients("knockout_rows", args)
    if A_HN.shape[1] > 1 or v_BLHP.dtype == torch.float64:
        return rows.knocked(*args).to(v_BLHP.dtype)
    with own_types(v_BLHP):
        return rows.knocked_one_decay(*args[:3], A_HN, *args[4:]).to(v_BLHP.dtype)


def mixing_rows(dt_BLH, A_HN, B_BLGN, C_BLGN, queries: Sequence[int], *, dt_write=None, mean: bool = False) -> Tensor:
    """Rows of the matrix M of y = M v, B H Q L; with `mean` the mean of |M| over heads, B Q L, M itself never being held.

    As `attention.mixing`; a head of Mamba-1 is a channel. No gradients.
    """
    from mamba_mi.backends.kernels import rows
    w, at_Q = dt_BLH if dt_write is None else dt_write, picked(queries, dt_BLH.shape[1], "queries").to(dt_BLH.device)
    _refuse_gradients("mixing_rows", (dt_BLH, w, A_HN, B_BLGN, C_BLGN))
    M = rows.mixing(dt_BLH, w, _many(A_HN, B_BLGN), B_BLGN, C_BLGN, at_Q, mean=mean)
    return M if mean else M.permute(0, 3, 1, 2)


def states_at(v_BLHP, dt_BLH, A_HN, B_BLGN, positions: Sequence[int], *, h0=None, dt_write=None) -> Tensor:
    """The states h_BSHPN after the tokens at `positions`, in one pass; one asked for twice is given twice. No gradients."""
    from mamba_mi.backends.kernels import many_decays, one_decay
    w = dt_BLH if dt_write is None else dt_write
    _refuse_gradients("states_at", (v_BLHP, dt_BLH, w, A_HN, B_BLGN, h0))
    each, back = picked(positions, dt_BLH.shape[1], "positions").to(v_BLHP.device).unique(return_inverse=True)
    if _in_chunks(v_BLHP, A_HN):
        with own_types(v_BLHP):
            return one_decay.states(v_BLHP, dt_BLH, w, A_HN, B_BLGN, h0, each)[:, back]
    return many_decays.states(v_BLHP, dt_BLH, w, _many(A_HN, B_BLGN), B_BLGN, h0, each)[:, back]


def _refuse_gradients(verb: str, given) -> None:
    if needs_grad(given):
        raise UserError(f"{verb} has no gradients: call it under torch.no_grad(), or take them through scan")


def _in_chunks(v_BLHP, A_HN) -> bool:
    return A_HN.shape[1] == 1 and v_BLHP.shape[1] >= FEW and v_BLHP.dtype != torch.float64


def _many(A_HN, B_BLGN):
    """One decay a head as many that are alike; no copy is made."""
    return A_HN.expand(-1, B_BLGN.shape[3])
