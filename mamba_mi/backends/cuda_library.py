"""mamba-ssm and causal-conv1d, imported once, when they are first asked for; of what they lack, why.

Both are old or new: mamba-ssm has the scan and the gated norm of Mamba-2 since 2.0, when its norm moved to another file, and since
2.4 the scan of Mamba-1 only where it is built for it. Its calls of whole layers take causal-conv1d from where it was found
when they were imported.
"""
from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import torch

INSTALL = "pip install mamba-ssm causal-conv1d, which needs nvcc"
SCANS, CONV = ("mamba_ssm", "mamba-ssm"), ("causal_conv1d", "causal-conv1d")  # as imported, as installed
TYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_STATES = 256  # of selective_scan_fn and mamba_inner_fn
CHUNK = 64  # decays are summed in float32 within a chunk: the shorter, the less is lost; and short prompts are not padded to 256
MOST_BYTES = 65536  # of what is normed together
MOST_NUMBERS = 2**31  # of a tensor: the kernels reckon places in 32 bits, and say nothing where these do not do
# what is None in a module of theirs that its function needs
BUILT = {"selective_scan_cuda": "is built without selective_scan_cuda (MAMBA_KEEP_CUDA_BUILD=TRUE builds it)",
         "causal_conv1d_fwd_function": "finds no causal-conv1d that it can call", "causal_conv1d_cuda": "finds no causal-conv1d that it can call"}


class Library(NamedTuple):
    """The kernels there are; where one is not, None, and in `lacks` why under its name."""

    selective_scan: Callable | None
    chunk_scan: Callable | None
    conv: Callable | None
    norm: Callable | None
    gated_norm: Callable | None
    whole_mamba1: Callable | None
    whole_mamba2: Callable | None
    lacks: dict[str, str]


def missing() -> str:
    """Why mamba-ssm cannot be used; empty when it can. What only one of its parts lacks is told where it is missed."""
    return _absent(*SCANS)


@cache
def library() -> Library:
    """What can be had of both. Triton takes float32 products in TF32 unless told otherwise, which is off by 1e-3: it is told."""
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")  # read where a kernel is compiled, and part of what it is cached by
    lacks: dict[str, str] = {}

    def kernel(module, name, *needs, before=None):
        """The function of that name; `before` is where older libraries had it."""
        found, why = _found(module, name, needs)
        if found is None and before:
            found, _ = _found(before, name, needs)
        if found is None:
            lacks[name] = why
        return found

    conv, mamba1 = ("causal_conv1d_fwd_function", "causal_conv1d_cuda"), "mamba_ssm.ops.selective_scan_interface"
    mamba2, norms = "mamba_ssm.ops.triton.ssd_combined", "mamba_ssm.ops.triton.layer_norm"
    return Library(
        kernel(mamba1, "selective_scan_fn", "selective_scan_cuda"), kernel(mamba2, "mamba_chunk_scan_combined"),
        kernel("causal_conv1d", "causal_conv1d_fn"), kernel(norms, "rms_norm_fn", before="mamba_ssm.ops.triton.layernorm"),
        kernel("mamba_ssm.ops.triton.layernorm_gated", "rmsnorm_fn"),
        kernel(mamba1, "mamba_inner_fn", "selective_scan_cuda", *conv),
        kernel(mamba2, "mamba_split_conv1d_scan_combined", *conv), lacks)


def narrow(*given: torch.Tensor) -> str:
    """Why the library cannot take these types; empty when it can."""
    wide = [x.dtype for x in given if x.dtype not in TYPES]
    return f"the library has no {str(wide[0]).removeprefix('torch.')}" if wide else ""


def too_many(name: str, *given: torch.Tensor, made: int = 0) -> str:
    """Why its kernel cannot reckon the places of these, or of `made` numbers it makes on the way; empty when it can."""
    asked = max(made, *(_reach(x) for x in given))
    return f"{name} reckons places in 32 bits, and {asked} numbers are asked for" if asked >= MOST_NUMBERS else ""


def states_made(rows: int, length: int, channels: int, states: int) -> int:
    """How many numbers Mamba-2's states at the borders of its chunks are."""
    return rows * -(-length // CHUNK) * channels * states


def _reach(x: torch.Tensor) -> int:
    """How many places its numbers take, or theirs who is made of them."""
    return max(x.numel(), 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride())))


def _found(module: str, name: str, needs: tuple[str, ...]) -> tuple[Callable | None, str]:
    """The function and nothing, or None and why; of `needs` none may be None in its module."""
    package = CONV if module == CONV[0] else SCANS
    if why := _absent(*package):
        return None, why
    theirs, where = f"{package[1]} {_version(package[0])}", _imported(module)
    if not isinstance(where, ModuleType):
        return None, f"{theirs} has no {name} ({where})"
    for need in needs:
        if getattr(where, need, True) is None:
            return None, _absent(*CONV) * (need != "selective_scan_cuda") or f"{theirs} {BUILT[need]}"
    if not hasattr(where, name):
        return None, f"{theirs} has no {name}"
    return getattr(where, name), ""


def _absent(package: str, installed_as: str) -> str:
    if find_spec(package) is None:
        return f"{installed_as} is not installed ({INSTALL})"
    found = _imported(package)
    if isinstance(found, ModuleType):
        return ""
    return f"{installed_as} is installed, but its import fails: {found}"


@cache
def _imported(name: str) -> ModuleType | str:
    """The module, or the first line of what its import raised; what it prints and warns of is its own affair."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return import_module(name)
        except Exception as error:  # a broken build raises whatever it likes
            return f"{type(error).__name__}: {error}".partition("\n")[0]


def _version(package: str) -> str:
    return getattr(_imported(package), "__version__", "of no version")
