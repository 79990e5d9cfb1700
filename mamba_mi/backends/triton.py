"""Our own kernels in Triton, for what no library has: the scans of Mamba-1 and Mamba-2 with their gradients.

Mamba-2's matrix products are taken in full float32 (`ieee`, never TF32), its decays cumulated in float64. Arguments in
float64, and passes of few tokens, take the token loop for Mamba-2 too, which has no matrix product.
The convolutions and retention are those of `chunked`: plain torch, on any device.
With TRITON_INTERPRET=1 in the environment when it starts, the kernels are interpreted, on a CPU too: slow, for tests.
"""
from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from mamba_mi.backends.chunked import conv
from mamba_mi.backends.kernels import INTERPRETED
from mamba_mi.backends.long_conv import long_conv
from mamba_mi.backends.reference import own_types, widened
from mamba_mi.backends.retention import retain

__all__ = ["DEVICES", "conv", "long_conv", "missing", "retain", "scan"]
DEVICES = ("cpu", "cuda") if INTERPRETED else ("cuda",)
FEW = 16  # tokens: fewer would leave most of a matrix product's tile empty


def missing() -> str:
    """Why this backend cannot run here; empty when it can."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install 'mamba_mi[triton]')"
    if INTERPRETED:
        return ""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if (found := torch.cuda.get_device_capability()) < (8, 0):
        return f"the CUDA device is sm_{found[0]}{found[1]}, and the kernels need sm_80 or later"
    return ""


def scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, *, h0=None, keep_h=True,
         dt_write=None) -> tuple[Tensor, Tensor | None]:
    """The contract of `mamba_mi.backends`: one decay a head in chunks, many decays token by token."""
    from mamba_mi.backends.kernels import many_decays, many_decays_back, one_decay, one_decay_back
    w = dt_BLH if dt_write is None else dt_write
    in_chunks = A_HN.shape[1] == 1 and v_BLHP.shape[1] >= FEW and v_BLHP.dtype != torch.float64
    A_HN = A_HN if in_chunks else A_HN.expand(-1, B_BLGN.shape[3])
    given = v_BLHP, dt_BLH, w, A_HN, B_BLGN, C_BLGN, h0
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given):
        v, dt, A, B_, C_, h0, w = widened(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0, w)
        with own_types(v):
            y, h = (one_decay_back if in_chunks else many_decays_back).mix(v, dt, w, A, B_, C_, h0, keep_h)
        return y.to(v_BLHP.dtype), h
    y, h, _ = (one_decay if in_chunks else many_decays).mix(*given, keep_h)
    return y, h
