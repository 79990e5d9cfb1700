"""What a run was made with: the commit, the code itself, the libraries, the machine."""
from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from .. import __version__

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "transformers", "numpy", "scipy", "pyarrow", "hydra-core", "omegaconf", "numba", "triton", "mamba-ssm", "causal-conv1d")


def versions() -> dict[str, str | None]:
    """Python's, the libraries' and our own version; None for a library that is not installed."""
    libraries = {name: _version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **libraries, "mamba_mi": __version__}


def code_fingerprint(package: Path = PACKAGE) -> str:
    """A sha256 over the names and bytes of every .py file of the package, wherever it is installed."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py"), key=lambda p: p.relative_to(package).as_posix()):
        source = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(source)}\0".encode() + source)
    return digest.hexdigest()


def git(package: Path = PACKAGE) -> dict | None:
    """The commit of mamba_mi's own checkout and whether it was changed since; None outside one."""
    top = _git(package, "rev-parse", "--show-toplevel")
    # installed in an environment inside somebody's repository, that repository's commit would say nothing
    if top is None or Path(top) != package.parent:
        return None
    dirty = bool(_git(package.parent, "status", "--porcelain"))
    return {"commit": _git(package, "rev-parse", "HEAD"), "dirty": dirty}


def machine() -> dict:
    """The host, its processor, and how many of its cores this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"host": platform.node(), "system": platform.platform(), "cpu": _cpu(), "cores": allowed}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *asked: str) -> str | None:
    try:
        ran = subprocess.run(["git", "-C", folder, *asked], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return ran.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
