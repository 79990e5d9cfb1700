"""What the backend says where it cannot run; in a process whose kernels are not interpreted."""
from importlib.util import find_spec

import pytest
import torch

from mamba_mi import UserError, backends
from mamba_mi.backends import cuda, proving, triton

pytestmark = pytest.mark.skipif(triton.INTERPRETED, reason="TRITON_INTERPRET=1: it runs here")


@pytest.fixture
def there(monkeypatch):
    """A machine that has all it needs, one thing of which each test takes away."""
    monkeypatch.setattr(triton, "find_spec", lambda name: True)
    monkeypatch.setattr(triton, "which", lambda name: name)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    return monkeypatch


def test_a_card_of_sm_80_or_later_is_enough_and_once_proved_there_auto_takes_it(there):
    assert not triton.missing()
    there.setattr(cuda, "missing", lambda: "not here")
    there.setattr(proving, "prove", lambda name, device: "")
    assert "triton" in backends.available("cuda") and "triton" not in backends.available("cpu")
    assert backends.choose("auto", "cuda:1") == (
        "auto", "triton", "the fastest installed kernel for cuda:1; not cuda: not here", "ieee")


def test_one_that_computes_something_else_there_is_passed_over(there):
    there.setattr(cuda, "missing", lambda: "not here")
    there.setattr(proving, "prove", lambda name, device: f"{name} is off on {device}")
    assert backends.choose("auto", "cuda:1") == (
        "auto", "chunked", "the fastest installed kernel for cuda:1; not cuda: not here; not triton: triton is off on cuda:1", "torch")


@pytest.mark.parametrize(("owner", "name", "gives", "said"), [
    (triton, "find_spec", None, r"triton is not installed \(pip install triton\)"),
    (torch.cuda, "is_available", False, "there is no CUDA device"),
    (triton, "which", None, "there is no C compiler"),
    (torch.cuda, "get_device_capability", (7, 5), "the CUDA device is sm_75, and the kernels need sm_80 or later")])
def test_what_is_absent_is_said_in_a_line(there, owner, name, gives, said):
    there.setattr(owner, name, lambda *args: gives)
    with pytest.raises(UserError, match=f"^backend=triton cannot run: {said}.*; backend=chunked runs everywhere$"):
        backends.get("triton")
    assert "triton" not in backends.available("cuda")


def test_a_compiler_of_ones_own_will_do(there):
    there.setattr(triton, "which", lambda name: None)
    there.setenv("CC", "mycc")
    assert not triton.missing()


def test_it_is_refused_on_a_cpu(there):
    with pytest.raises(UserError, match="^backend=triton cannot run: it runs on cuda, not on cpu; backend=auto"):
        backends.choose("triton", "cpu")


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_package_of_the_same_name_is_still_the_library():
    import triton as library
    assert library.__name__ == "triton" and hasattr(library, "jit")
