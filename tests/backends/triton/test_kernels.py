"""The Triton kernels, each in a process of its own: how a kernel runs is settled when triton is imported."""
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

HERE, REPO = Path(__file__).parent, Path(__file__).parents[3]
CHECKS = sorted(path.stem for path in HERE.glob("*_checks.py"))

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def checked(files, *more, interpreted):
    """What pytest says of these files, with the kernels interpreted on a CPU or compiled for the device."""
    env = {**os.environ, "TRITON_INTERPRET": str(int(interpreted)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *files, *more],
                          cwd=REPO, env=env, text=True, capture_output=True)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", CHECKS)
def test_the_kernels_interpreted_on_a_cpu(name):
    assert " passed" in checked([HERE / f"{name}.py"], interpreted=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", CHECKS)
def test_the_kernels_on_the_device(name):
    assert " passed" in checked([HERE / f"{name}.py"], interpreted=False)


@pytest.mark.slow
def test_all_that_holds_of_any_backend_holds_of_the_interpreted_one():
    out = checked([REPO / "tests/backends" / name for name in ("test_scan.py", "test_conv.py")], "-k", "triton", interpreted=True)
    assert " passed" in out
