"""Imports go down the floors only, configuration stops at the runner, and files stay in bounds."""
import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import mamba_mi

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "mamba_mi"
FLOORS = ["config", "together", "hook_names", "trace", "backends", "models", "data", "references", "interventions", "measure", "training", "sae",
          "circuits", "runs", "report", "experiments", "runner", "cli"]
MODULES = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"})
LONGEST = 320
# each has a letter in brackets, so that this file does not name them either
MACHINES = r"/[w]ork/|/[r]oot/|/[f]arm/|/[t]mp/wt|/[h]ome/[a-z]"
REGISTRIES = r"[p]ypi\.org|[p]ythonhosted|[n]pmjs|[d]ownload\.pytorch"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, source: str | None = None) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of all imports of a file, those inside functions and import_module("…") too."""
    package = module_name(path).split(".")[:None if path.stem == "__init__" else -1]
    for node in ast.walk(ast.parse(source or path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *filter(None, [node.module])])
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            if isinstance(node.args[0], ast.Constant):
                yield node.lineno, node.args[0].value


def room(dotted: str) -> str | None:
    """The room a name of ours belongs to, `mamba_mi.load` to the one it is fetched from. None: not ours."""
    parts = dotted.split(".")
    if parts[0] != "mamba_mi" or len(parts) == 1:
        return None
    home = mamba_mi._HOMES.get(parts[1], f"mamba_mi.{parts[1]}")
    return home.split(".")[1]


def upward(path: Path, source: str | None = None) -> list[str]:
    own = room(module_name(path))
    below = FLOORS[:FLOORS.index(own)]
    return [f"{path.name}:{line} imports {name}" for line, name in imports(path, source)
            if room(name) not in (None, "__version__", own, *below)]


def tracked() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPO, text=True,
                                capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"the list of files comes from git, and git says: {e}")
    return [REPO / name for name in listed.split("\0") if name and (REPO / name).is_file()]


def test_a_room_imports_only_from_floors_below_its_own():
    nowhere = [path.name for path in MODULES if room(module_name(path)) not in FLOORS]
    assert not nowhere, f"{', '.join(nowhere)}: rooms of no floor; give them one in FLOORS"
    assert not [wrong for path in MODULES for wrong in upward(path)]


def test_configuration_stops_at_the_runner():
    found = [path.name for path in MODULES for _, name in imports(path) if name.split(".")[0] in ("hydra", "omegaconf")
             and room(module_name(path)) not in ("config", "runner", "cli")]
    assert not found


@pytest.mark.parametrize("source, wrong", [
    ("from mamba_mi.interventions import Edit", True),
    ("from ..interventions.edits import Edit", True),
    ("from .. import interventions", True),
    ("from mamba_mi import Edit", True),
    ("import mamba_mi.runner", True),
    ("def f():\n    from ..data import prompt", True),
    ("importlib.import_module('mamba_mi.measure')", True),
    ("from .mamba1 import Mamba1", False),
    ("from ..backends.reference import scan", False),
    ("from mamba_mi import Site, __version__", False),
    ("import torch", False),
])
def test_the_walk_sees_every_way_to_import(source, wrong):
    assert bool(upward(PACKAGE / "models" / "mamba2.py", source)) is wrong


def test_modules_stay_short():
    long = {module_name(p): n for p in MODULES if (n := p.read_text().count("\n")) > LONGEST}
    assert not long, f"more than {LONGEST} lines: one room, or two?"


def test_no_file_names_a_machine_or_a_registry():
    found = []
    for path in tracked():
        text = path.read_bytes().decode(errors="replace")
        found += [f"{path.relative_to(REPO)}: {m}" for m in re.findall(f"{MACHINES}|{REGISTRIES}", text)]
    assert not found
