"""Where a benchmark ran, in words that name no host and no path, and its results written down."""
from __future__ import annotations

import json
import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path


def describe(*packages: str) -> dict:
    """The processor, its cores, Python, and the versions of `packages`."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.is_file() else []
    return {"cpu": names[0] if names else platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "system": platform.system(), "python": platform.python_version(), **{p: version(p) for p in packages}}


def spread_of(numbers: list[float]) -> dict[str, float]:
    """Their median, least and most."""
    return {"median": statistics.median(numbers), "min": min(numbers), "max": max(numbers)}


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def write(folder: Path, name: str, result: dict, page: str) -> None:
    """`name`.json and `name`.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / f"{name}.md").write_text(page)
