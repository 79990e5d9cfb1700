"""mamba-ssm and causal-conv1d, imported once, when they are first asked for; of what they lack, why.

Both are old or new: mamba-ssm has the scan of Mamba-2 since 2.0, and since 2.4 that of Mamba-1 only where it is built for it.
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

INSTALL = "pip install mamba-ssm causal-conv1d, which needs nvcc"
SCANS, CONV = ("mamba_ssm", "mamba-ssm"), ("causal_conv1d", "causal-conv1d")  # as imported, as installed


class Library(NamedTuple):
    """The kernels there are; where one is not, None, and in `lacks` why under its name."""

    selective_scan: Callable | None
    chunk_scan: Callable | None
    conv: Callable | None
    lacks: dict[str, str]


def missing() -> str:
    """Why mamba-ssm cannot be used; empty when it can. What only one of its parts lacks is told where it is missed."""
    return _absent(*SCANS)


@cache
def library() -> Library:
    """What can be had of both. Triton takes float32 products in TF32 unless told otherwise, which is off by 1e-3: it is told."""
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")  # read where a kernel is compiled, and part of what it is cached by
    lacks: dict[str, str] = {}

    def kernel(package, module, name, built=None):
        why = _absent(*package)
        if not why:
            where = _imported(module)
            if not isinstance(where, ModuleType):
                why = f"{package[1]} {_version(package[0])} has no {name} ({where})"
            elif built and getattr(where, built, True) is None:
                why = f"{package[1]} {_version(package[0])} is built without {built} (MAMBA_KEEP_CUDA_BUILD=TRUE builds it)"
            else:
                return getattr(where, name)
        lacks[name] = why
        return None

    return Library(kernel(SCANS, "mamba_ssm.ops.selective_scan_interface", "selective_scan_fn", "selective_scan_cuda"),
                   kernel(SCANS, "mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined"),
                   kernel(CONV, "causal_conv1d", "causal_conv1d_fn"), lacks)


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
