"""Stand-ins for mamba-ssm and causal-conv1d, put where the backend `cuda` finds them."""
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch

from mamba_mi.backends import cuda, cuda_gradients, cuda_library
from tests.backends import stand_in_seams
from tests.backends.stand_in_seams import (
    CALLS,
    causal_conv1d_fn,
    mamba_chunk_scan_combined,
    selective_scan_fn,
)
from tests.backends.stand_in_whole import (
    mamba_inner_fn,
    mamba_split_conv1d_scan_combined,
    rms_norm_fn,
    rmsnorm_fn,
)

NEW = {"mamba_ssm": {}, "mamba_ssm.ops": {}, "mamba_ssm.ops.triton": {}, "causal_conv1d": {"causal_conv1d_fn": causal_conv1d_fn},
       "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": selective_scan_fn, "mamba_inner_fn": mamba_inner_fn,
                                                  "selective_scan_cuda": object(), "causal_conv1d_fwd_function": object()},
       "mamba_ssm.ops.triton.ssd_combined": {"mamba_chunk_scan_combined": mamba_chunk_scan_combined,
                                             "mamba_split_conv1d_scan_combined": mamba_split_conv1d_scan_combined,
                                             "causal_conv1d_fwd_function": object()},
       "mamba_ssm.ops.triton.layer_norm": {"rms_norm_fn": rms_norm_fn}, "mamba_ssm.ops.triton.layernorm_gated": {"rmsnorm_fn": rmsnorm_fn}}


def install(monkeypatch, modules=None, *, types=(torch.float64,)):
    """The backend with these modules in the libraries' place on a device that is said to be there; `types` are taken as well."""
    for name, holds in (modules or NEW).items():
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        vars(module).update({"__version__": "0", **holds})
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_library, "TYPES", (*cuda_library.TYPES, *types))
    monkeypatch.setattr(stand_in_seams, "TYPES", [*stand_in_seams.TYPES, *types])
    forget(monkeypatch)
    return cuda


def forget(monkeypatch):
    """What was imported, called and told."""
    cuda_library.library.cache_clear()
    cuda_library._imported.cache_clear()
    CALLS.clear()
    monkeypatch.setattr(cuda_gradients, "told", set())
