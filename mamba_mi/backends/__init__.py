"""The kernels behind the models: one contract, one module a kernel, chosen by name once a model is loaded.

    scan(v_BLHP, dt_BLH, A_HN, B_BLGN, C_BLGN, *, h0=None, keep_h=True, dt_write=None) -> y_BLHP, h_BHPN
        h_t = exp(dt_t A) h_{t-1} + dt_t B_t v_t,   y_t = C_t . h_t
        `dt_write` (BLH) stands in for dt in the second term alone: a write is changed, what decays is not
    states_at(v_BLHP, dt_BLH, A_HN, B_BLGN, positions, *, h0=None, dt_write=None) -> h_BSHPN
        the scan's states after the tokens at `positions`, in their order and as often as they are named
    mixing(dt_BLH, A_HN, B_BLGN, C_BLGN, *, rows=None, heads=None, dt_write=None) -> M_BHTS
        y_t = Σ_s M[t, s] v_s of a scan from zero, at the query rows and of the heads asked for (all), in their order
    mixing_over_heads(dt_BLH, A_HN, B_BLGN, C_BLGN, *, how, rows=None, dt_write=None) -> M_BTS
        the mean of M over all heads, or the root of that of its squares (`how` is mean or norm)
    conv(u_BLC, weight_CK, bias_C, *, tail=None, keep_tail=True, silu=False) -> y_BLC, tail_BKC
        causal and depthwise; weight[:, K-1] is the current token's tap; the tail is the last K-1 inputs; `silu` is over y
    softplus(z_BLE, bias_E) -> log(1 + exp(z + bias)), in the bias's type
    gate(y_BLE, z_BLE) -> y ∘ silu(z)
    norm(x_BLD, weight_D, eps, *, groups=1) -> weight x / sqrt(mean(x²) + eps), in the weight's type
        the mean is over each of `groups` equal parts of the width
    gated_norm(y_BLE, z_BLE, weight_E, eps, *, groups=1) -> the norm of gate(y, z), in y's type
    long_conv(w_BLD, k_TD, *, past_bPD=None) -> y_BLD
        y_t = Σ_{s<=t} k_{t-s} w_s; `past` is w before the pass, and k has a tap for every token of both. k_BTD has its own
        taps for every row
    retain(q_BQHK, k_BLHK, v_BLHV, decay_BLH, *, past=None, at=None, gone_BT=None) -> y_BQHV
        y_t = Σ_{s<=t} M[t, s] v_s,   M[t, s] = S[t, s] / clamp(Σ_s |S[t, s]|, 1, 5e4), the sum being cut from gradients
        S[t, s] = (q_t . k_s) left[t, s] / sqrt(Σ_s left[t, s]),   left[t, s] = Π_{s+1..t} decay
        `past` is the keys, the values and what is left of each at the last token before the pass (bPHK, bPHV, bPH)
        `at` says in order which positions of the pass the queries are at (all); `gone_BT` for which sources M is 0 in these
        rows, the last L columns being the pass. `decay` may have one row for all

Mamba-1 is H = E heads of P = 1 with N decays each; Mamba-2 has one decay a head (A_HN with one column).
`h0` and `tail` may hold fewer rows than the batch: row r then starts from row r % len(h0), so that many jobs on one
prompt share its state. `keep_h=False` and `keep_tail=False` let a kernel leave the last state or tail out (None). Sums are taken in at least
float32, the state is returned in that type, y in v's. A module is a backend when it defines `scan`. It may say on which
kinds of device it runs (DEVICES; any), and `missing()` says why it cannot run on this machine, `slow()` why it should only
where it is asked for. One that says PROVE is tried there before it is used (`proving`).

A backend may also have a call for all that a plain layer does between its projections, for one that nobody watches and that
starts from nothing. It gives None where it cannot do what is asked, and the layer then goes step by step:
    whole_mamba1(uz_BLW, conv_CK, conv_C, x_proj, dt_proj_ER, dt_E, A_EN, D_E, out_proj_DE) -> out_BLD
        u and z are the conv's input and the gate, side by side; x_proj is a matrix, onto dt's R numbers, B and C
    whole_mamba2(zuBCdt_BLW, conv_CK, conv_C, dt_H, A_H, D_H, norm_E, eps, *, groups, dt_limit, keep) -> gated_BLE, tail, h_BHPN
        tail and h are None unless `keep`; dt_E and dt_H are the biases of dt, before its softplus
"""
from __future__ import annotations

import warnings
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import NamedTuple

from mamba_mi.config import UserError, did_you_mean

FASTEST = ("cuda", "triton", "compiled", "chunked")  # what `auto` takes, if it is there and runs on the device


class Choice(NamedTuple):
    """Which backend runs, what was asked for, and why this one; how it takes products of float32: `torch`, as torch is set to,
    or what Triton calls it."""

    asked: str
    used: str
    why: str
    products: str = "torch"


def names() -> tuple[str, ...]:
    """Every backend in this package, whether or not it can run on this machine."""
    found = (info.name for info in iter_modules(__path__))
    return tuple(name for name in found if hasattr(import_module(f"{__name__}.{name}"), "scan"))


def get(name: str) -> ModuleType:
    """The backend called `name`; UserError if there is none, or if it cannot run here."""
    if name not in names():
        raise UserError(f"backend={name}: no such backend; there are auto, {', '.join(names())}"
                        f"{did_you_mean(name, ('auto', *names()))}")
    backend = import_module(f"{__name__}.{name}")
    if reason := backend.missing():
        raise UserError(f"backend={name} cannot run: {reason}; backend=chunked runs everywhere")
    return backend


def available(device: str = "cpu") -> tuple[str, ...]:
    """The backends that can run on this machine, on this kind of device."""
    return tuple(name for name in names() if not _refusal(name, device))


def choose(asked: str, device: str) -> Choice:
    """Resolve `auto` to the first of FASTEST that runs on `device`, and say why the ones before it do not."""
    if asked != "auto":
        get(asked)
        if reason := _refusal(asked, device):
            raise UserError(f"backend={asked} cannot run: {reason}; backend=auto takes what runs on {device}")
        if slow := _slow(asked):
            warnings.warn(f"backend={asked}: {slow}", stacklevel=2)
        return Choice(asked, asked, "; ".join(["asked for", *filter(None, [slow])]), *_products(asked))
    passed = []
    for name in FASTEST:
        if device.partition(":")[0] in _devices(name):
            if not (reason := _refusal(name, device) or _slow(name)):
                return Choice(asked, name, "; ".join([f"the fastest installed kernel for {device}", *passed]), *_products(name))
            passed.append(f"not {name}: {reason}")
    raise UserError(f"backend=auto: no backend runs on {device}; backend=reference runs everywhere")


def _products(name: str) -> tuple[str, ...]:
    own = getattr(import_module(f"{__name__}.{name}"), "products", None)
    return (own(),) if own else ()


def _slow(name: str) -> str:
    return getattr(import_module(f"{__name__}.{name}"), "slow", str)()


def _devices(name: str) -> tuple[str, ...]:
    return getattr(import_module(f"{__name__}.{name}"), "DEVICES", ("cpu", "cuda"))


def _refusal(name: str, device: str) -> str:
    backend, kind = import_module(f"{__name__}.{name}"), device.partition(":")[0]
    if kind not in _devices(name):
        return f"it runs on {' and '.join(_devices(name))}, not on {kind}"
    if reason := backend.missing():
        return reason
    return import_module(f"{__name__}.proving").prove(name, device) if getattr(backend, "PROVE", False) else ""
