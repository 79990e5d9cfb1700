"""The scan, conv and norms of mamba-ssm and causal-conv1d, at the seams between a model's sites, and mamba-ssm's calls of whole
layers where nobody watches them. What they cannot do is done by `chunked` on the same device, and told once.

Mamba-2 is `mamba_chunk_scan_combined`; Mamba-1 is `selective_scan_fn`, which starts from zero: what is left of a start,
C_t exp(A Σ_{1..t} dt) h_0, is added. Both get float32 whatever the model's type, since the contract takes sums in it.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, E = H·P, C channels, K conv width, T a part of L.
"""
from __future__ import annotations

import os
from functools import partial

import torch
from torch import Tensor

from mamba_mi.backends import chunked, cuda_library
from mamba_mi.backends.chunked import long_conv, mixing, mixing_over_heads, retain
from mamba_mi.backends.cuda_gradients import borrowed, dense, tell
from mamba_mi.backends.cuda_library import CHUNK, MOST_STATES, library, narrow, states_made, too_many
from mamba_mi.backends.cuda_norms import gated_norm, norm
from mamba_mi.backends.cuda_whole import whole_mamba1, whole_mamba2
from mamba_mi.backends.reference import gate, joined, needs_grad, own_types, softplus, spread, widened
from mamba_mi.backends.states import by_scan

__all__ = ["conv", "gate", "gated_norm", "long_conv", "missing", "mixing", "mixing_over_heads", "norm", "products",
           "retain", "scan", "softplus", "states_at", "whole_mamba1", "whole_mamba2"]
DEVICES = ("cuda",)
PROVE = True  # before it is used, on the device: a broken build imports, and computes something else
WORK = 2**26  # numbers that are made at once of what is left of a start


def missing() -> str:
    """Why this backend cannot run here; empty when it can."""
    return cuda_library.missing() if torch.cuda.is_available() else "there is no CUDA device here"


def products() -> str:
    """How Triton takes products of float32 for the library; its CUDA kernels take none."""
    library()  # sets what is not said
    return os.environ["TRITON_F32_DEFAULT"]


def scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, *, h0=None, keep_h=True,
         dt_write=None) -> tuple[Tensor, Tensor | None]:
    """The contract of `mamba_mi.backends`."""
    one = A_HN.shape[1] == 1 < max(v_BLHP.shape[3], B_BLGN.shape[3])
    given = v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0
    if reason := _refused(one, *given, dt_write):
        tell("a scan is computed", reason)
        return chunked.scan(*given[:5], h0=h0, keep_h=keep_h, dt_write=dt_write)
    with own_types(v_BLHP):
        y, h = borrowed(_one_decay if one else _many_decays, _by_chunks, tuple(widened(*given, None)[:6]), states=one)
    return y.to(v_BLHP.dtype), h if keep_h else None


states_at = by_scan(scan)


def conv(u_BLC, weight_CK, bias_C, *, tail=None, keep_tail=True, silu=False) -> tuple[Tensor, Tensor | None]:
    """The contract of `mamba_mi.backends`. The tail is put before the inputs: the older library takes none."""
    given, width = (u_BLC, weight_CK, bias_C), weight_CK.shape[1]
    if reason := _conv_refused(*given):
        tell("a conv is computed", reason)
        return chunked.conv(*given, tail=tail, keep_tail=keep_tail, silu=silu)
    kind = torch.promote_types(u_BLC.dtype, weight_CK.dtype)  # under autocast the inputs are short and the weights are not
    seen_BLC = u_BLC if tail is None else torch.cat([spread(tail, len(u_BLC)), u_BLC], dim=1)
    y_BLC, = borrowed(partial(_conv, "silu" if silu else None), partial(_shifted_sums, silu),
                      (seen_BLC.to(kind), weight_CK.to(kind), bias_C.to(kind)), states=True)
    if not keep_tail:
        return y_BLC[:, -u_BLC.shape[1]:], None
    before = u_BLC.new_zeros(1, width - 1, u_BLC.shape[2]) if tail is None else tail
    return y_BLC[:, -u_BLC.shape[1]:], chunked.last_inputs(u_BLC, before)


def _refused(one, v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0, dt_write) -> str:
    """Why the library cannot run this scan; empty when it can."""
    given = [x for x in (v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, h0) if x is not None]
    if dt_write is not None and dt_write is not dt_BLH:
        return "the library writes with the dt that decays"
    if reason := narrow(*given):
        return reason
    name = "mamba_chunk_scan_combined" if one else "selective_scan_fn"
    if name in library().lacks:
        return library().lacks[name]
    made = states_made(*dt_BLH[..., 0].shape, v_BLHP.shape[2:].numel(), B_BLGN.shape[3]) if one else 0
    if reason := too_many(name, *given, made=made):
        return reason
    if one:
        return "mamba_chunk_scan_combined takes a negative dt for 0" if bool((dt_BLH < 0).any()) else ""
    if A_HN.shape[1] > MOST_STATES:
        return f"selective_scan_fn has at most {MOST_STATES} states, and {A_HN.shape[1]} are asked for"
    if h0 is not None and needs_grad(given):
        return "selective_scan_fn has no gradients where it starts from a state"
    return ""


def _by_chunks(v, dt, A, B_, C_, h0):
    return chunked.scan(v, dt, A, B_, C_, h0=h0)


def _one_decay(v, dt, A_H1, B_BLGN, C_BLGN, h0):
    """Mamba-2, which can start from a state and has all gradients."""
    start_BHPN = None if h0 is None else dense(spread(h0, len(v)))
    given = (dense(x) for x in (v, dt, A_H1[:, 0], B_BLGN, C_BLGN))
    return library().chunk_scan(*given, CHUNK, initial_states=start_BHPN, return_final_states=True)


def _many_decays(v, dt, A_HN, B_BLGN, C_BLGN, h0):
    """Mamba-1, channels first. Channels of one head would share its dt and A."""
    heads, width = v.shape[2:]
    u_BEL, dt_BEL = (dense(x.flatten(2).transpose(1, 2)) for x in (v, dt[..., None].expand_as(v)))
    B_BGNL, C_BGNL = (dense(x.permute(0, 2, 3, 1)) for x in (B_BLGN, C_BLGN))
    A_EN = dense(A_HN[:, None].expand(-1, width, -1).flatten(0, 1))
    y_BEL, h_BEN = library().selective_scan(u_BEL, dt_BEL, A_EN, B_BGNL, C_BGNL, return_last_state=True)
    y_BLHP = y_BEL.transpose(1, 2).unflatten(2, (heads, width))
    h_BHPN = dense(h_BEN).unflatten(1, (heads, width))  # of its own: theirs is a part of all that is kept for a backward
    if h0 is None:
        return y_BLHP, h_BHPN
    passed_BLH, start_BHPN = dt.double().cumsum(1), spread(h0, len(v))
    left_BHN = _left(passed_BLH[:, -1:], A_HN)[:, 0]
    return y_BLHP + _from_start(passed_BLH, A_HN, C_BLGN, start_BHPN), h_BHPN + left_BHN[:, :, None] * start_BHPN


def _from_start(passed_BLH, A_HN, C_BLGN, h0_BHPN):
    """C_t exp(A Σ_{1..t} dt) h_0, B L H P, some tokens at a time."""
    rows, length, heads = passed_BLH.shape
    size, ys = max(1, WORK // (rows * A_HN.numel())), []
    for start in range(0, length, size):
        part = slice(start, start + size)
        C_BTHN = C_BLGN[:, part].repeat_interleave(heads // C_BLGN.shape[2], dim=2)
        read_BHTN = (C_BTHN * _left(passed_BLH[:, part], A_HN)).transpose(1, 2)
        ys.append((read_BHTN @ h0_BHPN.transpose(2, 3)).transpose(1, 2))
    return joined(ys, 1)


def _left(passed_BLH, A_HN):
    """exp(A Σ dt), B L H N; Σ dt comes in float64."""
    return (A_HN * passed_BLH[..., None].to(A_HN.dtype)).exp()


def _conv_refused(u_BLC, weight_CK, bias_C) -> str:
    """Why the library cannot run this conv; empty when it can."""
    if reason := narrow(u_BLC, weight_CK, bias_C):
        return reason
    if not 2 <= weight_CK.shape[1] <= 4:
        return f"causal_conv1d_fn is 2 to 4 wide, and {weight_CK.shape[1]} is asked for"
    return library().lacks.get("causal_conv1d_fn", "") or too_many("causal_conv1d_fn", u_BLC)


def _conv(activation, u_BLC, weight_CK, bias_C):
    """Channels last where the library takes it: eight at a time, from where a load of 16 bytes may start."""
    if u_BLC.shape[2] % 8:
        x_BCL = dense(u_BLC.transpose(1, 2))
    else:
        fit = u_BLC.stride(2) == 1 and not (u_BLC.stride(0) % 8 or u_BLC.stride(1) % 8 or u_BLC.data_ptr() % 16)
        x_BCL = (u_BLC if fit else dense(u_BLC)).transpose(1, 2)
    return library().conv(x_BCL, dense(weight_CK), dense(bias_C), activation=activation).transpose(1, 2),


def _shifted_sums(silu, u_BLC, weight_CK, bias_C):
    return chunked.conv(u_BLC, weight_CK, bias_C, keep_tail=False, silu=silu)[:1]
