"""mamba-ssm's norms, at the seams between a model's sites: `rms_norm_fn` over the whole width, `rmsnorm_fn` by group and of what
is gated. Both sum in float32. What they cannot do is done in plain torch, and told once.

Shape legend: B batch, L length, D and E widths.
"""
from __future__ import annotations

from functools import partial

from torch import Tensor

from mamba_mi.backends import chunked
from mamba_mi.backends.cuda_gradients import borrowed, dense, tell
from mamba_mi.backends.cuda_library import MOST_BYTES, library, narrow, too_many


def norm(x_BLD, weight_D, eps, *, groups=1) -> Tensor:
    """The contract of `mamba_mi.backends`."""
    x_BLD, name = x_BLD.to(weight_D.dtype), "rms_norm_fn" if groups == 1 else "rmsnorm_fn"
    if reason := _refused(name, groups, x_BLD, weight_D):
        tell("a norm is computed", reason)
        return chunked.norm(x_BLD, weight_D, eps, groups=groups)
    kernel = partial(_norm, eps) if groups == 1 else partial(_gated, eps, groups)
    return borrowed(kernel, partial(_norm_in_torch, eps, groups), (x_BLD, weight_D), states=True)[0]


def gated_norm(y_BLE, z_BLE, weight_E, eps, *, groups=1) -> Tensor:
    """The contract of `mamba_mi.backends`; what is gated is not rounded before it is normed."""
    given = y_BLE, z_BLE, weight_E
    if reason := _refused("rmsnorm_fn", groups, y_BLE, z_BLE, weight_E):
        tell("a gated norm is computed", reason)
        return chunked.gated_norm(*given, eps, groups=groups)
    return borrowed(partial(_gated_in_order, eps, groups), partial(_gated_in_torch, eps, groups), given, states=True)[0]


def _refused(name: str, groups: int, x, *others) -> str:
    """Why the library cannot norm these; empty when it can."""
    if reason := narrow(x, *others) or library().lacks.get(name, ""):
        return reason
    width, most = x.shape[-1] // groups, MOST_BYTES // x.element_size()
    if width > most:
        return f"{name} is at most {most} wide, and {width} are asked for"
    return too_many(name, x, *others)


def _norm(eps, x_BLD, weight_D):
    return library().norm(_in_rows(x_BLD), weight_D, None, eps=eps),


def _gated(eps, groups, y_BLE, weight_E, z_BLE=None):
    z_BLE = None if z_BLE is None else _in_rows(z_BLE)
    return library().gated_norm(_in_rows(y_BLE), weight_E, None, z=z_BLE, eps=eps, group_size=y_BLE.shape[-1] // groups,
                                norm_before_gate=False),


def _gated_in_order(eps, groups, y_BLE, z_BLE, weight_E):
    return _gated(eps, groups, y_BLE, weight_E, z_BLE)


def _norm_in_torch(eps, groups, x_BLD, weight_D):
    return chunked.norm(x_BLD, weight_D, eps, groups=groups),


def _gated_in_torch(eps, groups, y_BLE, z_BLE, weight_E):
    return chunked.gated_norm(y_BLE, z_BLE, weight_E, eps, groups=groups),


def _in_rows(x: Tensor) -> Tensor:
    """Its numbers side by side; an axis of length 1 may have any stride, and the kernels ask for 1."""
    return x if x.stride(-1) == 1 else dense(x)
