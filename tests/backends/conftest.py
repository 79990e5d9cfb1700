"""Every test here that takes `backend` runs on each one there is, and on `cuda` through a stand-in for the libraries it calls."""
import pytest

from mamba_mi import backends
from tests.available import BACKENDS
from tests.backends import stand_in


@pytest.fixture(params=[*BACKENDS, "cuda-stand-in"])
def backend(request, stood_in):
    return stood_in() if request.param == "cuda-stand-in" else backends.get(request.param)


@pytest.fixture
def stood_in(monkeypatch):
    """`stood_in(modules)` is the backend `cuda` with stand-ins for its libraries, the newest ones by default."""
    yield lambda *args, **kwargs: stand_in.install(monkeypatch, *args, **kwargs)
    monkeypatch.undo()
    stand_in.forget(monkeypatch)
