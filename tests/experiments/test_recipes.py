"""Whole runs through the command line's own door, in one process: the recipe, its folder, resuming, refusing."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mamba_mi.cli import main

REPO = Path(__file__).resolve().parents[2]
QUICK = ["dataset.n=12", "method.resamples=200", "method.sites=[resid]", "method.batch=4"]


def launch(monkeypatch, *overrides):
    monkeypatch.setattr(sys, "argv", ["launch.py", *overrides])
    main()


def only_run(logs: Path) -> Path:
    return next(logs.glob("*/*/*/manifest.json")).parent


def test_the_default_run_leaves_its_whole_folder_and_is_not_run_twice(tmp_path, monkeypatch, capsys):
    launch(monkeypatch, f"paths.logs={tmp_path}", *QUICK)
    folder = only_run(tmp_path)
    names = {"config.yaml", "manifest.json", "prompts.json", "effects.parquet", "summary.json", "report.html", "figures"}
    assert names <= {p.name for p in folder.iterdir()}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "done" and manifest["run_id"] == folder.name
    assert manifest["hook_counts"]["resid"] > 0 and manifest["deviation"]["relative"] < 1e-5
    prompts = {p["prompt_id"] for p in json.loads((folder / "prompts.json").read_text()) if p["kept"]}
    effects = pq.ParquetFile(folder / "effects.parquet").read()
    assert set(effects["prompt_id"].to_pylist()) <= prompts
    stamp = (folder / "effects.parquet").stat().st_mtime_ns
    launch(monkeypatch, f"paths.logs={tmp_path}", *QUICK)
    assert "already done" in capsys.readouterr().out
    assert (folder / "effects.parquet").stat().st_mtime_ns == stamp


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    launch(monkeypatch, f"paths.logs={tmp_path}/logs", "dry_run=true", *QUICK)
    said = capsys.readouterr().out
    assert "token-forwards" in said and "memory" in said and list(tmp_path.iterdir()) == []


def test_fifty_steps_of_training_make_a_report(tmp_path, monkeypatch):
    launch(monkeypatch, "experiment=train", "debug=fast", f"paths.logs={tmp_path}", "method.steps=6", "method.examined=8",
           "method.batch=2")
    folder = only_run(tmp_path)
    assert (folder / "artifacts" / "model.safetensors").exists() and (folder / "report.html").exists()
    assert len(json.loads((folder / "artifacts" / "training_curve.json").read_text())) == 6


@pytest.mark.slow
def test_killed_anywhere_it_ends_on_the_same_bytes(tmp_path):
    command = [sys.executable, str(REPO / "launch.py"), "dataset.n=40", "method.resamples=200", "method.batch=4",
               "threads=1"]
    subprocess.run([*command, f"paths.logs={tmp_path}/whole"], check=True, capture_output=True, cwd=tmp_path)
    want = (only_run(tmp_path / "whole") / "effects.parquet").read_bytes()
    logs, kills = tmp_path / "killed", 0
    for goal in range(1, 11):
        process = subprocess.Popen([*command, f"paths.logs={logs}"], stdout=subprocess.DEVNULL, cwd=tmp_path)
        while process.poll() is None and len(list(logs.glob("*/*/*/parts/*.parquet"))) < goal:
            time.sleep(0.02)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        print(f"killed with {len(list(logs.glob('*/*/*/parts/*.parquet')))} parts kept")
    subprocess.run([*command, f"paths.logs={logs}"], check=True, capture_output=True, cwd=tmp_path)
    assert kills == 10
    assert (only_run(logs) / "effects.parquet").read_bytes() == want
