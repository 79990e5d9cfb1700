"""The Triton kernels, in processes of their own: how a kernel runs is settled when triton is imported."""
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

HERE, REPO = Path(__file__).parent, Path(__file__).parents[3]
CHECKS = sorted(HERE.glob("*_checks.py"))

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def said(*command, interpreted, **env):
    """What a Python of its own prints, with the kernels interpreted on a CPU or compiled."""
    env = {**os.environ, "TRITON_INTERPRET": str(int(interpreted)), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), **env}
    done = subprocess.run([sys.executable, "-W", "ignore", *command], cwd=REPO, env=env, text=True, capture_output=True)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def checked(*files, interpreted):
    assert " passed" in said("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, interpreted=interpreted)


def test_the_kernels_interpreted_on_a_cpu():
    checked(*CHECKS, "-m", "not slow", interpreted=True)


@pytest.mark.slow
@pytest.mark.parametrize("file", CHECKS, ids=lambda path: path.stem)
def test_more_of_the_kernels_interpreted_on_a_cpu(file):
    checked(file, "-m", "slow", interpreted=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("file", CHECKS, ids=lambda path: path.stem)
def test_the_kernels_on_the_device(file):
    checked(file, interpreted=False)


@pytest.mark.slow
def test_every_kernel_compiles_for_the_cards_it_is_for_and_multiplies_in_full_float32(tmp_path):
    lines = said(HERE / "compiled.py", interpreted=False, TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    made = [json.loads(line) for line in lines]
    kernels = {path.stem: path.read_text().count("@triton.jit\ndef ") for path in (REPO / "mamba_mi/backends/kernels").glob("*.py")}
    assert {each["kernel"] for each in made} and len({each["kernel"] for each in made}) == sum(kernels.values())
    for each in made:
        assert each["cubin"] > 1000 and not each["products"], each
        assert each["stack"] <= 64 and each["shared"] <= 48 * 1024, each  # what spills is slow
    assert {each["sm"] for each in made} == {80, 90}
