"""mamba-ssm's calls of whole layers, for those that nobody watches and that start from nothing: they leave no sites.

`mamba_split_conv1d_scan_combined` keeps what is left of its states in the type it is given, so that is float32 whatever the
model's. `mamba_inner_fn` sums in float32 in any type, and hands no state out. Where either cannot do what is asked the steps
run one by one, each in a kernel of the same libraries: that is told only where the library lacks the call.

Shape legend: B batch, L length, D width, E inner, H heads, N state, R rank of dt, G groups, C conv channels, K conv width;
W all of them side by side, as one projection makes them.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mamba_mi.backends import chunked, cuda_library
from mamba_mi.backends.cuda_gradients import dense, tell
from mamba_mi.backends.cuda_library import CHUNK, MOST_BYTES, MOST_STATES, library, narrow


def whole_mamba1(uz_BLW, conv_CK, conv_C, x_proj, dt_proj_ER, dt_E, A_EN, D_E, out_proj_DE) -> Tensor | None:
    """The contract of `mamba_mi.backends`."""
    exact = torch.promote_types(uz_BLW.dtype, torch.float32)
    short = all(x.dtype == uz_BLW.dtype for x in (conv_CK, conv_C, x_proj, dt_proj_ER, out_proj_DE))
    if not (_fits(uz_BLW, conv_CK) and short and all(x.dtype == exact for x in (dt_E, A_EN, D_E)) and A_EN.shape[1] <= MOST_STATES):
        return None
    return _called("mamba_inner_fn", lambda call: call(
        dense(uz_BLW.transpose(1, 2)), dense(conv_CK[:, None]), dense(conv_C), x_proj, dt_proj_ER, out_proj_DE, None, dense(A_EN),
        None, None, dense(D_E), delta_bias=dense(dt_E), delta_softplus=True), library().whole_mamba1)


def whole_mamba2(zuBCdt_BLW, conv_CK, conv_C, dt_H, A_H, D_H, norm_E, eps, *, groups, dt_limit,
                 keep) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """The contract of `mamba_mi.backends`."""
    channels, width = conv_CK.shape
    inner = len(norm_E)
    numbers = cuda_library.states_made(*zuBCdt_BLW.shape[:2], inner, (channels - inner) // (2 * groups))
    # of the conv's input, a part of all: strides of whole eights, from where a load of 16 bytes may start
    if not _fits(zuBCdt_BLW, conv_CK, numbers) or zuBCdt_BLW.shape[2] % 8 or channels % 8 or inner % 4:
        return None
    kind = torch.promote_types(zuBCdt_BLW.dtype, torch.float32)
    if inner // groups > MOST_BYTES // kind.itemsize:
        return None
    made = _called("mamba_split_conv1d_scan_combined", lambda call: call(
        *(dense(x.to(kind)) for x in (zuBCdt_BLW, conv_CK, conv_C, dt_H, A_H, D_H)), CHUNK, dt_limit=dt_limit, activation="silu",
        return_final_states=True, rmsnorm_weight=dense(norm_E.to(kind)), rmsnorm_eps=eps, headdim=inner // len(A_H),
        ngroups=groups, norm_before_gate=False), library().whole_mamba2)
    if made is None:
        return None
    gated_BLE, h_BHPN = made[0].to(zuBCdt_BLW.dtype), made[1]
    if not keep:
        return gated_BLE, None, None
    u_BLC = zuBCdt_BLW[..., inner:inner + channels]
    return gated_BLE, chunked.last_inputs(u_BLC, u_BLC.new_zeros(1, width - 1, channels)), h_BHPN


def _fits(x_BLW, conv_CK, made: int = 0) -> bool:
    """Whether the calls can take it; under autocast they would take products in a short type."""
    return (not narrow(x_BLW) and not cuda_library.too_many("", x_BLW, made=made) and 2 <= conv_CK.shape[1] <= 4
            and not torch.is_autocast_enabled(x_BLW.device.type))


def _called(name: str, run: Callable, call: Callable | None):
    """What `run(call)` gives; None, which is told, where the library has no call, or hands causal-conv1d what that does not take."""
    lacks = library().lacks
    if name not in lacks:
        try:
            return run(call)
        except TypeError as error:  # raised before anything ran: two versions that do not fit
            lacks[name] = f"mamba-ssm and causal-conv1d as installed do not fit together ({error})".partition("\n")[0]
    tell("a layer that nobody watches is computed", lacks[name], by="step by step")
    return None
