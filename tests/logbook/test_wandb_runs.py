"""Whole runs with logger=wandb, through the command line's door; what they told W&B is read back from the file."""
import json
import sys

import pytest
from oracles import wandb_file

from mamba_mi.cli import main

QUICK = ["dataset.n=8", "method.sites=[resid]", "method.layers=[0,3]", "method.resamples=100", "logger=wandb"]
TRAINING = ["experiment=train", "method.steps=3", "method.batch=2", "method.eval_every=3", "method.checkpoint_every=1",
            "method.examined=4", "method.resamples=20", "logger=wandb"]


def launch(*overrides) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["launch.py", *overrides])
        try:
            main()
        except SystemExit as ended:
            return ended.code
    return 0


def only_run(logs):
    (manifest,) = logs.glob("*/*/*/manifest.json")
    return manifest.parent


def read_json(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def ran(alone, tmp_path_factory):
    """The folder of one small run, and what its .wandb file tells."""
    logs = tmp_path_factory.mktemp("logs")
    assert launch(*QUICK, f"paths.logs={logs}", "logger.tags=[mine]", "logger.project=p", "logger.entity=e") == 0
    return only_run(logs), wandb_file.only(only_run(logs))


def test_the_run_is_filed_under_what_it_is(ran):
    folder, told = ran
    assert (told.run.run_id, told.run.project, told.run.entity) == (folder.name, "p", "e")
    assert (told.run.job_type, told.run.run_group) == ("patching", "")
    assert told.run.display_name == "patching tiny facts seed 0"
    assert set(told.run.tags) == {"tiny", "facts", "patching", "mine"} and told.exit_code == 0


def test_the_configuration_is_the_resolved_one(ran):
    folder, told = ran
    config = {key: value for key, value in told.config.items() if key != "_wandb"}
    assert config["method"]["layers"] == [0, 3] and config["dataset"]["n"] == 8 and config["model"]["name"] == "tiny"
    assert set(config) == {line.split(":")[0] for line in (folder / "config.yaml").read_text().splitlines() if line[0] != " "}


def test_the_headline_is_in_the_summary_under_keys_one_can_read(ran):
    folder, told = ran
    rows = [row for row in read_json(folder / "summary.json") if row["metric"] == "normalised_logit_difference"
            and row["conditions"]["role"] in ("subject", "between", "last")]
    assert len(rows) == 12
    for row in rows:
        at = row["conditions"]
        key = f"normalised_logit_difference/{at['direction']}/resid/{at['role']}/layer_{at['layer']}"
        assert {what: told.summary[f"{key}/{what}"] for what in ("mean", "ci_low", "ci_high", "n")}.items() <= row.items()


def test_counts_deviation_and_wall_time_are_in_the_summary(ran):
    folder, told = ran
    manifest = read_json(folder / "manifest.json")
    assert told.summary["run/hook_counts/resid"] == manifest["hook_counts"]["resid"] > 0
    assert told.summary["run/deviation/max_abs"] == manifest["deviation"]["max_abs"] > 0
    assert 0 < told.summary["run/seconds"] <= manifest["seconds"]
    assert told.summary["run/prompts/used"] == 8 and told.summary["rows/headline"] == 12
    assert told.summary["rows/summary"] == len(read_json(folder / "summary.json"))


def test_the_table_is_the_whole_summary(ran):
    folder, told = ran
    table = read_json(wandb_file.files(folder)[0].parent / "files" / told.summary["summary/path"])
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert rows == [{**row["conditions"], **{k: row[k] for k in row if k != "conditions"}}
                    for row in read_json(folder / "summary.json")]


def test_the_figures_and_the_report_go_with_it(ran):
    folder, told = ran
    kept = wandb_file.files(folder)[0].parent / "files"
    for name in ("patching_map", "patching_curves"):
        logged = kept / told.summary[f"figures/{name}/path"]
        assert logged.read_bytes() == (folder / "figures" / f"{name}.png").read_bytes()
    assert {"report.html", "summary.json"} <= set(told.files)
    assert (kept / "report.html").read_bytes() == (folder / "report.html").read_bytes()


def test_every_batch_is_a_point(ran):
    _, told = ran
    points = [(row["batches/step"], row["batches/left"]) for row in told.history if "batches/step" in row]
    assert len(points) > 1 and points == [(done, len(points) - done) for done in range(1, len(points) + 1)]
    assert told.axes["batches/*"] == "batches/step"


def test_the_manifest_says_how_and_where_it_was_logged(ran):
    folder, _ = ran
    noted = read_json(folder / "manifest.json")["logbook"]
    assert (noted["name"], noted["mode"]) == ("wandb", "offline") and "no key for http://127.0.0.1:1" in noted["why"]
    assert noted["path"] == str(wandb_file.files(folder)[0].parent) and noted["url"] is None and "trouble" not in noted


def test_a_run_that_is_done_is_not_logged_again_and_says_so(ran, capfd):
    folder, _ = ran
    assert launch(*QUICK, f"paths.logs={folder.parents[2]}") == 0
    assert "nothing was logged with logger=wandb either; force=true would" in capfd.readouterr().out
    assert len(wandb_file.files(folder)) == 1


def test_training_is_logged_step_by_step_and_the_console_says_one_line_about_it(tmp_path, capfd):
    assert launch(*TRAINING, f"paths.logs={tmp_path}") == 0
    folder = only_run(tmp_path)
    out, err = capfd.readouterr()
    (line,) = [line for line in out.splitlines() if "wandb " in line or "W&B" in line]
    where = wandb_file.files(folder)[0].parent
    assert line == f"W&B is offline (there is no key for http://127.0.0.1:1); later: wandb sync {where}"
    assert "wandb" not in err
    told = wandb_file.only(folder)
    points = [row for row in told.history if "training/step" in row]
    curve = read_json(folder / "artifacts" / "training_curve.json")
    assert [(row["training/step"], row["training/loss"], row["training/lr"]) for row in points] == [
        (point["step"], point["loss"], point["lr"]) for point in curve]
    for row, point in zip(points, curve, strict=True):
        told_of = {key.removeprefix("training/right/"): row[key] for key in row if key.startswith("training/right/")}
        assert told_of == point.get("tasks", {})
    assert told.axes["training/*"] == "training/step" and told.run.job_type == "train"


def test_a_run_that_fails_ends_with_1(failed):
    _, told = failed
    assert told.exit_code == 1 and [row["batches/step"] for row in told.history] == [1, 2]


def test_a_run_that_is_resumed_goes_on_as_the_same_w_and_b_run(failed):
    folder, before = failed
    assert launch(*QUICK, f"paths.logs={folder.parents[2]}") == 0
    _, after = (wandb_file.read(path) for path in wandb_file.files(folder))
    assert after.run.run_id == before.run.run_id == folder.name
    assert after.exit_code == 0 and after.summary["rows/headline"] == 12


@pytest.fixture
def failed(tmp_path, monkeypatch):
    """The folder of a run that met a fault at its third batch, and what it told; the fault is mended."""
    from mamba_mi.experiments.patching import Patching

    step, seen = Patching.step, []

    def fail_at_the_third(self, batch):
        seen.append(batch)
        if len(seen) == 3:
            raise ZeroDivisionError("oh")
        return step(self, batch)

    monkeypatch.setattr(Patching, "step", fail_at_the_third)
    assert launch(*QUICK, f"paths.logs={tmp_path}") == 1
    return only_run(tmp_path), wandb_file.only(only_run(tmp_path))


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_a_group(tmp_path):
    assert launch("-m", "seed=0,1,2", *TRAINING, f"paths.logs={tmp_path}/logs", f"paths.sweeps={tmp_path}/sweeps") == 0
    told = [wandb_file.only(path.parent) for path in tmp_path.glob("logs/*/*/*/manifest.json")]
    (sweep,) = tmp_path.glob("sweeps/train/*")
    assert {one.run.run_group for one in told} == {f"train/{sweep.name}"} and len(told) == 3
    assert {one.run.display_name for one in told} == {f"train tiny facts seed {seed}" for seed in range(3)}
    assert [one.exit_code for one in told] == [0, 0, 0]


def test_online_without_a_key_is_refused_before_anything_is_run(tmp_path, capfd):
    assert launch(*QUICK, "logger.mode=online", f"paths.logs={tmp_path}") == 1
    err = capfd.readouterr().err
    assert err.startswith("error: logger.mode=online: there is no key for http://127.0.0.1:1; run `wandb login`")
    assert err.count("\n") == 1 and not list(tmp_path.iterdir())
