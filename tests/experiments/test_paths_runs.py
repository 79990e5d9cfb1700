"""Both experiments through the command line's own door: what they leave, killed and gone on with, and a fault found."""
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from mamba_mi.backends import attention
from mamba_mi.cli import main
from mamba_mi.experiments import _paths

QUICK = ["dataset.n=24", "method.batch=4", "method.resamples=50", "threads=1"]
MADE = {"construct": "construct.parquet", "compare_paths": "mismatches.json"}


def launch(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["launch.py", *words])
    main()


def only_run(logs: Path) -> Path:
    return next(logs.glob("*/*/*/manifest.json")).parent


@pytest.mark.parametrize("name", MADE)
def test_a_killed_run_goes_on_to_the_same_bytes(name, tmp_path, monkeypatch):
    words = [f"experiment={name}", "model=tiny-mamba1", *QUICK]
    launch(monkeypatch, *words, f"paths.logs={tmp_path / 'whole'}")
    steps, step = [], _paths.Paths.step

    def killed(self, batch):
        steps.append(batch.key)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(self, batch)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(_paths.Paths, "step", killed)
        launch(monkeypatch, *words, f"paths.logs={tmp_path / 'killed'}")
    folder = only_run(tmp_path / "killed")
    assert ended.value.code == 130 and len(list((folder / "parts").glob("*.parquet"))) == 2
    launch(monkeypatch, *words, f"paths.logs={tmp_path / 'killed'}")
    whole = only_run(tmp_path / "whole")
    for file in ("effects.parquet", "summary.json", "prompts.json", f"artifacts/{MADE[name]}", "figures/paths_violins.png"):
        assert (whole / file).read_bytes() == (folder / file).read_bytes(), file


def test_construct_takes_prompts_the_model_gets_wrong(tmp_path, monkeypatch):
    launch(monkeypatch, "experiment=construct", "dataset.relations=birth_country", "method.resamples=50",
           f"paths.logs={tmp_path}")
    folder = only_run(tmp_path)
    table = pd.read_parquet(folder / "artifacts" / "construct.parquet")
    ordinary = table[table.path == "ordinary"]
    assert 0 < ordinary.hit.mean() < 1 and len(table) == 2 * len(ordinary)
    assert set(ordinary.prompt_id) == {p["prompt_id"] for p in json.loads((folder / "prompts.json").read_text())}
    hit = next(row for row in json.loads((folder / "summary.json").read_text())
               if row["metric"] == "hit" and row["conditions"]["path"] == "ordinary")
    assert hit["mean"] == pytest.approx(ordinary.hit.mean()) and hit["hits"] == ordinary.hit.sum()
    assert (table.hit == (table.pred_id == table.target_id)).all()


def test_one_wrong_entry_of_the_matrix_fails_the_run_with_one_line_and_keeps_it_all(tmp_path, monkeypatch, capsys):
    whole = attention.written_out

    def spoilt(*args):
        M = whole(*args).clone()
        M[:, 0, -1, -2] += 3.0
        return M
    monkeypatch.setattr(attention, "written_out", spoilt)
    words = ["experiment=compare_paths", "model=tiny", *QUICK, f"paths.logs={tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        launch(monkeypatch, *words)
    said, folder = capsys.readouterr().err, only_run(tmp_path)
    assert ended.value.code == 1 and said.startswith("error: the two paths differ by up to ") and said.count("\n") == 1
    assert "method.tolerance=0.0001" in said and str(folder) in said
    assert json.loads((folder / "manifest.json").read_text())["status"] == "failed"
    summary = json.loads((folder / "summary.json").read_text())
    worst = max((row for row in summary if "over_tolerance" in row), key=lambda row: row["largest"])
    assert worst["largest_at"] in said
    listed, report = json.loads((folder / "artifacts" / "mismatches.json").read_text()), (folder / "report.html").read_text()
    assert listed and "Prompts whose first choice differs" in report and listed[0]["prompt_id"] in report
    monkeypatch.setattr(attention, "written_out", whole)
    launch(monkeypatch, *words, "method.tolerance=1.0")
