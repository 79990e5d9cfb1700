"""A backend of a GPU under the tests of all: what it is given goes there, what it gives comes back."""
from types import ModuleType

import torch
from torch import Tensor


class OnDevice:
    """`backend`, its verbs run on `device` for tensors of the CPU; gradients go there and back as well."""

    def __init__(self, backend: ModuleType, device: str):
        self._backend, self._device = backend, device

    def __getattr__(self, name: str):
        verb = getattr(self._backend, name)

        def run(*given, **how):
            made = verb(*map(self._there, given), **{key: self._there(x) for key, x in how.items()})
            return tuple(map(_back, made)) if isinstance(made, tuple) else _back(made)

        return run

    def _there(self, x):
        if isinstance(x, tuple):
            return tuple(map(self._there, x))
        return x.to(self._device) if isinstance(x, Tensor) else x


def _back(x):
    return x.to("cpu") if isinstance(x, Tensor) else x


def every_backend_of_a_gpu(available: tuple[str, ...]) -> list[str]:
    """Those that the CPU's tests do not reach."""
    return [name for name in available if name not in ("reference", "attention")] if torch.cuda.is_available() else []
