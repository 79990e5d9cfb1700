"""A run's folder as tables: everything the figures and the report may read."""
from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mamba_mi.config import UserError, did_you_mean


@dataclass(frozen=True)
class RunTables:
    """One run, read from its folder. `effects` is None for a run that measured none.

    `controls` are the summary's rows of random draws, `summary` all the others.
    """

    config: dict
    manifest: dict
    prompts: list[dict]
    effects: pa.Table | None
    summary: list[dict]
    artifacts: Path
    controls: list[dict] = field(default_factory=list)

    def rows(self, metric: str) -> list[dict]:
        """The summary's rows in one metric; none is a UserError that lists the metrics there are."""
        rows = [row for row in self.summary if row["metric"] == metric]
        if not rows:
            known = sorted({row["metric"] for row in self.summary})
            there = f"it has {', '.join(known)}" if known else "it is empty"
            raise UserError(f"summary.json has no rows with metric {metric!r}; {there}"
                            f"{did_you_mean(metric, known)}")
        return rows

    def artifact(self, name: str):
        """The content of artifacts/<name>, a JSON file."""
        return _json(self.artifacts / name)


def read_run(folder: str | Path) -> RunTables:
    """The tables of a run's folder. Only effects.parquet may be missing: not every run measures effects."""
    folder = Path(folder)
    config = _existing(folder / "config.yaml")
    effects = folder / "effects.parquet"
    summary = {True: [], False: []}
    for row in _json(folder / "summary.json"):
        summary[row["conditions"].get("draw") is not None].append(row)
    return RunTables(
        config=yaml.safe_load(config.read_text(encoding="utf-8")),
        manifest=_json(folder / "manifest.json"),
        prompts=_json(folder / "prompts.json"),
        effects=pq.read_table(effects) if effects.exists() else None,
        summary=summary[False],
        artifacts=folder / "artifacts",
        controls=summary[True],
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file; a run's folder holds it once the run is done: the same command "
                        "goes on with an interrupted run, and with force=true makes a damaged one again")
    return path


def _json(path: Path):
    try:
        return json.loads(_existing(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise UserError(f"{path}: not a complete JSON file ({e.msg}, line {e.lineno}); "
                        "run the same command with force=true to write it again") from None
