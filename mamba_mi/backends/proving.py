"""A backend held against the recurrence before it is used: a broken build of a kernel imports, and computes something else.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, C channels, K conv width, D and E widths.
"""
from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_mi.backends import reference
from mamba_mi.config import stream

BOUND = 2e-3  # of the largest number: what products in TF32 come to, far below what a wrong kernel gives
LENGTH = 70  # more than a chunk, and no multiple of anything
AT = (65, 2)  # in the second chunk and in the first
# rows, heads, head width, state, groups, decays a head
SCANS = {"the scan of one decay a head": (2, 4, 16, 16, 2, 1), "the scan of many decays a head": (2, 32, 1, 16, 1, 16)}


@cache
def prove(name: str, device: str) -> str:
    """What backend `name` gets wrong on this device, in a line; empty when it is right. Tried once a process, in float32,
    against the reference on the CPU in float64."""
    backend = import_module(f"mamba_mi.backends.{name}")
    try:
        for what, got, want in _tried(backend, torch.device(device)):
            off = float((got.double().cpu() - want).abs().max() / want.abs().max())
            if not off <= BOUND:  # nan too
                return f"{what} is off by {off:.0e} from the recurrence, as a fraction of the largest number"
    except Exception as error:  # whatever a kernel raises, the backend cannot be used
        return f"it was tried and raised {type(error).__name__}: {error}".partition("\n")[0]
    return ""


@torch.no_grad()
def _tried(backend: ModuleType, device: torch.device) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What is computed, by the backend and by the reference."""
    for what, sizes in SCANS.items():
        given = _scan_arguments(what, *sizes)
        there = [x.float().to(device) for x in given]
        want = _made(reference, [x.float().double() for x in given])
        yield from ((of + what, got, want[of]) for of, got in _made(backend, there).items())
    u_BLC, weight_CK, bias_C, tail_BKC = given = [x.float() for x in _conv_arguments()]
    there = [x.to(device) for x in given]
    want = reference.conv(u_BLC.double(), weight_CK.double(), bias_C.double(), tail=tail_BKC.double())
    yield from zip(("the conv", "the conv's tail"), backend.conv(*there[:3], tail=there[3]), want)
    y_BLE, z_BLE, weight_E = given = [x.float() for x in _norm_arguments()]
    there, wide, how = [x.to(device) for x in given], [x.double() for x in given], {"eps": 1e-5}
    yield "the norm", backend.norm(there[0], there[2], **how), reference.norm(wide[0], wide[2], **how)
    yield "the gated norm", backend.gated_norm(*there, groups=2, **how), reference.gated_norm(*wide, groups=2, **how)
    yield from _layers_tried(backend, device)


def _layers_tried(backend: ModuleType, device: torch.device) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What a backend's calls of whole layers give, if it has them and takes these."""
    many, one = _whole_arguments()
    for verb, given, plain, how in (("whole_mamba1", many, _whole_mamba1, {}),
                                    ("whole_mamba2", one, _whole_mamba2, {"groups": 2, "dt_limit": (0.05, 1.0), "keep": True})):
        call = getattr(backend, verb, None)
        got = call and call(*_cast(given, lambda x: x.to(device)), **how)
        if got is not None:
            names = (what := f"a layer of {verb.removeprefix('whole_')} that nobody watches", f"the conv's tail of {what}",
                     f"the last state of {what}")
            want = plain(*_cast(given, Tensor.double), **{name: x for name, x in how.items() if name != "keep"})
            yield from zip(names, got if isinstance(got, tuple) else (got,), want)


def _whole_mamba1(uz_BLW, conv_CK, conv_C, x_proj, dt_proj_ER, dt_E, A_EN, D_E, out_proj_DE) -> tuple[Tensor]:
    """A layer of Mamba-1 between its projections, step by step."""
    u_BLE, z_BLE = uz_BLW.chunk(2, dim=-1)
    v_BLE = reference.conv(u_BLE, conv_CK, conv_C, silu=True)[0]
    dt_BLR, B_BLN, C_BLN = (v_BLE @ x_proj.T).split([dt_proj_ER.shape[1], A_EN.shape[1], A_EN.shape[1]], dim=-1)
    dt_BLE = reference.softplus(dt_BLR @ dt_proj_ER.T, dt_E)
    y_BLEP, _ = reference.scan(v_BLE[..., None], dt_BLE, A_EN, B_BLN[:, :, None], C_BLN[:, :, None])
    return reference.gate(y_BLEP[..., 0] + D_E * v_BLE, z_BLE) @ out_proj_DE.T,


def _whole_mamba2(zuBCdt_BLW, conv_CK, conv_C, dt_H, A_H, D_H, norm_E, eps, *, groups, dt_limit) -> tuple[Tensor, Tensor, Tensor]:
    """A layer of Mamba-2 between its projections, step by step."""
    inner, heads, state = len(norm_E), len(A_H), (len(conv_C) - len(norm_E)) // 2
    z_BLE, u_BLC, dt_BLH = zuBCdt_BLW.split([inner, len(conv_C), heads], dim=-1)
    c_BLC, tail = reference.conv(u_BLC, conv_CK, conv_C, silu=True)
    v_BLHP, B_BLGN, C_BLGN = (x.unflatten(-1, (n, -1)) for x, n in zip(c_BLC.split([inner, state, state], -1), (heads, groups, groups)))
    y_BLHP, h = reference.scan(v_BLHP, reference.softplus(dt_BLH, dt_H).clamp(*dt_limit), A_H[:, None], B_BLGN, C_BLGN)
    y_BLE = (y_BLHP + D_H[:, None] * v_BLHP).flatten(2)
    return reference.gated_norm(y_BLE, z_BLE, norm_E, eps, groups=groups), tail, h


def _whole_arguments(E=64, N=16, R=2, D=32, H=8, G=2, K=4) -> tuple[list, list]:
    """Of Mamba-1 and of Mamba-2, in float32."""
    normal, C = _normal("whole layers"), E + 2 * G * N
    many = [normal(2, LENGTH, 2 * E), normal(E, K), normal(E), normal(R + 2 * N, E) / 4, normal(E, R), normal(E) - 1,
            -normal(E, N).exp(), normal(E), normal(D, E)]
    one = [normal(2, LENGTH, E + C + H), normal(C, K), normal(C), normal(H) - 1, -normal(H).exp(), normal(H), normal(E), 1e-5]
    return tuple(_cast(given, Tensor.float) for given in (many, one))


def _cast(given: list, how) -> list:
    return [how(x) if isinstance(x, Tensor) else x for x in given]


def _made(backend: ModuleType, given: list[Tensor]) -> dict[str, Tensor]:
    """All that is asked of a scan; what it starts from, both rows share."""
    v, dt, A, B_, C_, h0 = given
    y, h = backend.scan(v, dt, A, B_, C_, h0=h0)
    return {"": y, "the last state of ": h, "a state within ": backend.states_at(v, dt, A, B_, AT, h0=h0),
            "a row of the matrix of ": backend.mixing(dt, A, B_, C_, rows=AT),
            "the heads taken together of ": backend.mixing_over_heads(dt, A, B_, C_, how="norm", rows=AT)}


def _scan_arguments(what, B, H, P, N, G, decays) -> list[Tensor]:
    normal = _normal(what)
    return [normal(B, LENGTH, H, P), F.softplus(normal(B, LENGTH, H) - 1), -normal(H, decays).exp(), normal(B, LENGTH, G, N),
            normal(B, LENGTH, G, N), normal(1, H, P, N)]


def _conv_arguments(B=2, C=32, K=4) -> list[Tensor]:
    normal = _normal("conv")
    return [normal(B, LENGTH, C), normal(C, K), normal(C), normal(1, K - 1, C)]


def _norm_arguments(B=2, E=96) -> list[Tensor]:
    normal = _normal("norm")
    return [normal(B, LENGTH, E), normal(B, LENGTH, E), normal(E)]


def _normal(what: str):
    generator = stream(0, "proving", what)
    return lambda *size: torch.randn(*size, dtype=torch.float64, generator=generator)
