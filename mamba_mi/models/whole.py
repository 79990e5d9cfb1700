"""Whether a layer may be done in one call of its backend's, which leaves no sites and knows one kind of layer alone."""
from __future__ import annotations

from torch import Tensor, nn

from mamba_mi.backends.reference import needs_grad
from mamba_mi.models.mixer import RMSNorm
from mamba_mi.trace import BLIND

PLAIN = (RMSNorm, nn.Linear, nn.Conv1d)


def in_one_call(layer: nn.Module, kind: type, verb: str, x: Tensor, trace, past) -> bool:
    """Whether nobody watches or goes on from anything, and `layer` is of this very kind.

    A subclass is not: whatever it changes, the call would pass over. Nor is a layer with other parts or parameters than those
    the call is given (`WHOLE`), or where a hook waits for a part to run.
    """
    if trace is not BLIND or past is not None or type(layer) is not kind or not hasattr(layer.backend, verb):
        return False
    parameters = dict(layer.named_parameters())
    return (parameters.keys() == set(layer.WHOLE) and not needs_grad((x, *parameters.values()))
            and all(type(part) in PLAIN and not _hooked(part) for part in layer.children()))


def _hooked(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)
