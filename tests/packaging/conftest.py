"""The wheel, built once from a copy of the sources: a build leaves its droppings where it runs."""
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="session")
def wheel_file(tmp_path_factory) -> Path:
    copy, dist = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(REPO / name, copy)
    for name in ("mamba_mi", "conf"):
        shutil.copytree(REPO / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    built = subprocess.run([sys.executable, "-c", BUILD, str(dist)], cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(dist.glob("*.whl"))
