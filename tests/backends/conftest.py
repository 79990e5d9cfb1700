"""Every test here that takes `backend` runs on each one there is, on `cuda` through a stand-in for the libraries it calls, and
where there is a GPU on those that it has."""
import pytest

from mamba_mi import backends
from tests.available import BACKENDS
from tests.backends import stand_in
from tests.backends.on_device import OnDevice, every_backend_of_a_gpu

ON_A_GPU = [pytest.param(f"{name} on a GPU", marks=pytest.mark.gpu) for name in every_backend_of_a_gpu(backends.available("cuda"))]


@pytest.fixture(params=[*BACKENDS, "cuda-stand-in", *ON_A_GPU])
def backend(request, stood_in):
    if request.param.endswith(" on a GPU"):
        return OnDevice(backends.get(request.param.removesuffix(" on a GPU")), "cuda")
    return stood_in() if request.param == "cuda-stand-in" else backends.get(request.param)


@pytest.fixture
def stood_in(monkeypatch):
    """`stood_in(modules)` is the backend `cuda` with stand-ins for its libraries, the newest ones by default."""
    yield lambda *args, **kwargs: stand_in.install(monkeypatch, *args, **kwargs)
    monkeypatch.undo()
    stand_in.forget(monkeypatch)
