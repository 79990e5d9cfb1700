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


SUBSPACE = ["experiment=subspace", "dataset.n=8", "method.train=24", "method.rank=2", "method.layers=[1,4]",
            "method.roles=[last]", "method.directions=[denoising]", "method.resamples=100", "method.batch=8", "threads=1"]


def test_a_subspace_beside_its_controls_in_one_run_and_a_job_a_draw(tmp_path, monkeypatch):
    launch(monkeypatch, *SUBSPACE, "method.draws=20", f"paths.logs={tmp_path / 'whole'}")
    folder = only_run(tmp_path / "whole")
    rows = json.loads((folder / "summary.json").read_text())
    fitted = [row for row in rows if row["conditions"]["subspace"] == "mean_difference" and row["metric"].startswith("norm")]
    assert len(fitted) == 2 and all(0 < row["control_p"] <= 1 and row["draws"] == 20 for row in fitted)
    strongest = max(fitted, key=lambda row: row["mean"])
    assert strongest["control_p"] == pytest.approx(1 / 21) and strongest["mean"] > strongest["control_high"]
    prompts = json.loads((folder / "prompts.json").read_text())
    assert any(p["why"] == "used to fit, not measured" for p in prompts)
    fitted_on = {p["prompt_id"].split("-", 2)[2] for p in prompts if p["why"] == "used to fit, not measured"}
    assert not fitted_on & {p["prompt_id"].split("-", 2)[2] for p in prompts if p["kept"]}
    assert (folder / "artifacts" / "directions.safetensors").exists()

    launch(monkeypatch, *SUBSPACE, "method.draws=0", "method.draw=7", f"paths.logs={tmp_path / 'job'}")
    job = only_run(tmp_path / "job")
    assert not (job / "report.html").exists() and not (job / "figures").exists()
    drawn = {key(row): row["mean"] for row in json.loads((job / "summary.json").read_text()) if row["conditions"]["draw"] == 7}
    same = {key(row): row["mean"] for row in rows if row["conditions"]["draw"] == 7}
    assert len(same) == 2 * 4 * 2 and drawn == {cell: pytest.approx(mean, abs=1e-5) for cell, mean in same.items()}


def key(row) -> tuple:
    return row["metric"], *row["conditions"].values()


@pytest.mark.parametrize("preset", ["causal_tracing", "patching"])
def test_corruptions_head_by_head_and_by_noise_make_reports(tmp_path, monkeypatch, preset):
    own = {"causal_tracing": ["method.samples=2", "method.sites=[resid]", "method.metrics=[logit_difference,kl]"],
           "patching": ["method.sites=[scan_out]", "method.heads=all", "method.corruption=resample", "method.roles=[last]"]}
    launch(monkeypatch, f"experiment={preset}", *own[preset], "dataset.n=6", "method.resamples=100", "method.layers=[0,4]",
           f"paths.logs={tmp_path}")
    folder = only_run(tmp_path)
    assert folder.parts[-3] == "patching" and (folder / "report.html").exists() and list((folder / "figures").glob("*.png"))


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
