"""What `make` does before there is an environment: which Python it takes, and what it says without one."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
# not the variables of the `make test` that may be running this
ENVIRON = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "CONSTRAINTS", "PIP_ARGS")
           and not key.startswith("MAKE")}
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")

BROKEN = "exit 127"  # as a pyenv shim of a version that is not active
OLD = 'case "$*" in *version_info*) exit 1;; esac'
BARE = 'case "$*" in *ensurepip*) exit 1;; esac'  # Debian without python3-venv
GOOD = 'if [ "$1" = -V ]; then echo "Python 3.12.1"; fi'


def made(tmp_path, *arguments: str, **pythons: str) -> tuple[int, str]:
    """Exit status and lines of `make` where these scripts are all the Pythons there are."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("make", "sh", "touch"):
        (programs / name).symlink_to(shutil.which(name))
    for name, script in pythons.items():
        (programs / name.replace("_", ".")).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name.replace("_", ".")).chmod(0o755)
    environment = tmp_path / "environment"
    ran = subprocess.run(["make", *arguments, f"VENV={environment}", f"{environment}/bin/python"], cwd=REPO,
                         env=ENVIRON | {"PATH": str(programs)}, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT)
    lines = [line for line in ran.stdout.splitlines() if not line.startswith("make: ")]
    return ran.returncode, "\n".join(lines)


def test_the_first_python_that_runs_and_suits_is_taken(tmp_path):
    status, said = made(tmp_path, python3_13=BROKEN, python3_12=OLD, python3_11=GOOD, python3=GOOD)
    assert (status, said) == (0, f"creating {tmp_path}/environment with python3.11 (Python 3.12.1)")


def test_a_named_python_is_taken_and_no_other(tmp_path):
    status, said = made(tmp_path, "PYTHON=python3", python3_13=GOOD, python3=OLD)
    assert status != 0 and said.startswith("no Python >= 3.11 and < 3.14 among python3: ")


@pytest.mark.parametrize("pythons, command", [
    ({}, "sudo apt install python3 python3-venv"),
    ({"python3": OLD, "python3_12": BROKEN}, "sudo apt install python3 python3-venv"),
    ({"python3_11": BARE}, "sudo apt install python3.11-venv"),
])
def test_where_no_environment_can_be_made_one_line_says_what_to_run(tmp_path, pythons, command):
    status, said = made(tmp_path, **pythons)
    assert status != 0 and command in said and "\n" not in said


@pytest.mark.parametrize("arguments, install", [
    ([], "-m pip install -c constraints.txt  -e '.[test]'"),
    (["CONSTRAINTS=", "PIP_ARGS=--pre"], "-m pip install  --pre -e '.[test]'"),
])
def test_the_constraints_go_into_the_command_that_brings_torch(tmp_path, arguments, install):
    ran = subprocess.run(["make", "-n", f"VENV={tmp_path}/new", *arguments, "test"], cwd=REPO, env=ENVIRON,
                         text=True, check=True, capture_output=True)
    installs = [line for line in ran.stdout.splitlines() if "pip install" in line]
    assert len(installs) == 1 and installs[0].endswith(install)


def test_the_pins_are_plain_versions():
    pins = [line for line in (REPO / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert "torch==2.13.0" in pins
    assert not [pin for pin in pins if "==" not in pin or set(pin) & set("+@/ ")]
