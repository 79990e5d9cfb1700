"""The wheel holds what the product needs away from its repository."""
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(wheel_file) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel_file)


def below(folder: str, pattern: str) -> set[str]:
    found = (p.relative_to(REPO).as_posix() for p in (REPO / folder).rglob(pattern) if p.is_file())
    return {name for name in found if "__pycache__" not in name}


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    """Modules, the tiny model's weights and vocabulary, the report's templates."""
    missing = below("mamba_mi", "*") - set(wheel.namelist())
    assert not missing, "not shipped: name them under package-data in pyproject.toml"


def test_the_configuration_ships_as_a_part_of_the_package(wheel):
    asked = {f"mamba_mi/{name}" for name in below("conf", "*.yaml")}
    assert "mamba_mi/conf/config.yaml" in asked
    assert asked <= set(wheel.namelist())


def test_nothing_else_is_in_the_wheel(wheel):
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"mamba_mi"}


def test_the_wheel_brings_the_console_command(wheel):
    entry = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "mamba-mi = mamba_mi.cli:main" in wheel.read(entry).decode()
