import pytest

from mamba_mi.config import UserError
from mamba_mi.measure.effects import effects
from mamba_mi.report.tables import read_run

from .synthetic import PROMPT, patching_summary, write_run


def test_a_runs_folder_is_read_as_it_was_written(tmp_path):
    summary = patching_summary(2, 1)
    tables = read_run(write_run(tmp_path / "run", summary, curve=[{"step": 1}]))
    assert tables.summary == summary and tables.effects is None
    assert tables.config["method"] == {"name": "patching", "lr": 0.004}
    assert tables.manifest["run_id"] == "3f9c2a7e" and tables.prompts[0]["text"] == PROMPT
    assert tables.artifact("training_curve.json") == [{"step": 1}]


def test_effects_are_read_where_there_are_any(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    folder = write_run(tmp_path / "run", [])
    table = effects({"prompt_id": ["a"], "layer": [3], "metric": ["hit"], "value": [1.0], "baseline": [0.0]})
    pq.write_table(table, folder / "effects.parquet")
    assert read_run(folder).effects.equals(table)


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json", "prompts.json", "summary.json"])
def test_a_missing_file_is_one_clear_line(tmp_path, name):
    folder = write_run(tmp_path / "run", [])
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file") as error:
        read_run(folder)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_one_clear_line(tmp_path):
    folder = write_run(tmp_path / "run", patching_summary(2, 1))
    whole = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(whole[:len(whole) // 2])
    with pytest.raises(UserError, match="summary.json: not a complete JSON file") as error:
        read_run(folder)
    assert "\n" not in str(error.value)


def test_a_metric_that_is_not_there_is_named_with_those_that_are(tmp_path):
    tables = read_run(write_run(tmp_path / "run", patching_summary(2, 1)))
    assert {row["metric"] for row in tables.rows("probability")} == {"probability"}
    with pytest.raises(UserError, match="_difference, probability; did you mean 'probability'"):
        tables.rows("probabilty")
