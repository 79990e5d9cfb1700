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
    """Of a layer that nobody watches, which may be one call, what it gives and keeps."""
    from mamba_mi.models import mamba1, mamba2  # which import this package
    for of, keep, sizes in ((mamba1, False, {"dt_rank": 2}),
                            (mamba2, True, {"expand": 4, "headdim": 16, "ngroups": 2, "dt_limit": (0.05, 1.0)})):
        config = of.Config(d_model=32, n_layer=1, vocab_size=1, padded_vocab=1, d_state=16, **sizes)
        what = f"a layer of {config.variant} that nobody watches"
        resid_BLD = _normal(what)(2, LENGTH, config.d_model).float()
        layer, wide = of.Block(config, 0, backend), of.Block(config, 0, reference).double()
        layer.initialise(stream(0, "proving", what))
        wide.load_state_dict(layer.state_dict())
        got, kept = layer.to(device)(resid_BLD.to(device), keep=keep)
        want, wanted = wide(resid_BLD.double(), keep=keep)
        yield what, got - resid_BLD.to(device), want - resid_BLD.double()
        if keep:
            yield from zip((f"the conv's tail of {what}", f"the last state of {what}"), kept, wanted)


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
