"""How a backend is found, chosen and refused."""
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from mamba_mi import UserError, backends
from mamba_mi.backends import chunked, compiled
from tests.backends.on_device import OnDevice
from tests.backends.test_scan import drawn


def test_the_plain_backends_are_found_and_every_one_found_keeps_the_contract():
    assert {"reference", "chunked", "attention"} <= set(backends.names())
    for name in ("reference", "chunked", "attention"):
        assert not backends.get(name).missing()
        assert backends.choose(name, "cpu")[:2] == (name, name)


def test_auto_chooses_one_that_runs_and_says_which():
    choice = backends.choose("auto", "cpu")
    assert choice.asked == "auto" and choice.why
    assert not backends.get(choice.used).missing()


def test_auto_takes_the_compiled_loops_on_a_cpu_and_without_numba_says_why_not(monkeypatch, request):
    assert backends.choose("auto", "cpu") == ("auto", "compiled", "the fastest installed kernel for cpu", "torch")
    compiled.missing.cache_clear()
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    request.addfinalizer(compiled.missing.cache_clear)
    choice = backends.choose("auto", "cpu")
    assert choice.used == "chunked"
    assert choice.why.endswith("not compiled: numba is not installed (pip install numba)")
    assert "compiled" in backends.names() and "compiled" not in backends.available()
    with pytest.raises(UserError, match="^backend=compiled cannot run: numba is not installed .*; backend=chunked runs everywhere$"):
        backends.choose("compiled", "cpu")


@pytest.mark.parametrize("error", ["ImportError('Numba needs NumPy 2.3 or less')", "RuntimeError('no LLVM')"])
def test_a_numba_that_does_not_load_is_as_good_as_none(error, tmp_path):
    (tmp_path / "numba.py").write_text(f"raise {error}")
    program = "from mamba_mi import backends; print(backends.choose('auto', 'cpu')); backends.choose('compiled', 'cpu')"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, cwd=tmp_path)
    kind, said = error.split("(")[0], error.split("'")[1]
    assert f"used='chunked', why='the fastest installed kernel for cpu; not compiled: numba is installed, but its import fails: " \
           f"{kind}: {said}'" in done.stdout.replace('"', "'")
    assert done.stderr.splitlines()[-1].endswith(f"import fails: {kind}: {said}; backend=chunked runs everywhere")


INTERPRETED = """
import warnings
from mamba_mi import backends
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    print(backends.choose("triton", "cpu"), [str(each.message) for each in told], backends.choose("auto", "cpu").used, sep="\\n")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_kernels_that_are_interpreted_say_so_and_auto_passes_them_over():
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], capture_output=True, text=True, env=env, check=True)
    choice, told, used = done.stdout.splitlines()
    why = "its kernels are interpreted (TRITON_INTERPRET=1), which is slow: it is for tests"
    assert f"used='triton', why='asked for; {why}'" in choice
    assert told == str([f"backend=triton: {why}"]) and used != "triton"


def test_one_that_was_asked_for_and_is_not_slow_says_no_more():
    assert backends.choose("chunked", "cpu").why == "asked for"


def test_a_backend_of_another_device_is_refused():
    with pytest.raises(UserError, match="^backend=compiled cannot run: it runs on cpu, not on cuda; backend=auto takes what "
                                        "runs on cuda:1$"):
        backends.choose("compiled", "cuda:1")
    assert backends.choose("auto", "cuda:1").used != "compiled"


def test_the_way_to_a_device_and_back_changes_nothing():
    """What the tests of a GPU go through, here without one."""
    there = OnDevice(chunked, "cpu")
    args, h0 = drawn("mamba1", 9)
    v = args.v_BLHP.clone().requires_grad_()
    for got, want in zip(there.scan(*args, h0=h0), chunked.scan(*args, h0=h0), strict=True):
        assert torch.equal(got, want)
    there.scan(v, *args[1:], h0=h0)[0].sum().backward()
    assert v.grad is not None and there.gate(v, v).shape == v.shape


def test_a_name_that_is_far_from_all_is_given_no_guess():
    with pytest.raises(UserError, match=f"^backend=tpu: no such backend; there are auto, {', '.join(backends.names())}$"):
        backends.choose("tpu", "cpu")


@pytest.mark.parametrize(("asked", "near"), [("chunk", "did you mean 'chunked'"), ("refrence", "'reference'"),
                                             ("__init__", "no such backend"), ("", "no such backend")])
def test_a_backend_that_is_none_is_refused_with_those_there_are(asked, near):
    with pytest.raises(UserError, match=near) as caught:
        backends.choose(asked, "cpu")
    assert "\n" not in str(caught.value) and "chunked" in str(caught.value)
