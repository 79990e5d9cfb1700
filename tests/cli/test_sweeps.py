"""A sweep from the command line: its record, its exit code, its report; the last tests run real jobs."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mamba_mi import cli
from mamba_mi.cli import checking, flags
from mamba_mi.config import UserError
from mamba_mi.runs import identity

REPO = Path(__file__).resolve().parents[2]
SMALL = ("dataset.n=6", "method.sites=[resid]", "method.layers=[0,3,5]", "method.resamples=50", "dataset.only_correct=false")


def record(number: int = -1) -> dict:
    return json.loads(sorted(Path("multirun").glob("*/*/sweep.json"))[number].read_text())


def statuses() -> list[str]:
    return [job["status"] for job in record()["jobs"]]


@pytest.mark.parametrize("words", [
    ["seed=0,1", "model=tiny,mamba-130m"], ["seeds=three", "method.tau=1.0", "cone.memory=1000"],
    ["model=mamba-130m,mamba2-130m", "dataset.path='a,b.csv'"], ["method.sites=[resid],[out,scan_out]", "dataset.n=null"],
    pytest.param(["model.path=null,./x", "debug=fast"], marks=pytest.mark.slow), pytest.param(["sweep=models_mamba1", "threads=1"], marks=pytest.mark.slow),
    pytest.param(["model=glob(tiny*)"], marks=pytest.mark.slow),
], ids=" ".join)
def test_the_planned_runs_are_those_that_are_run(command, words):
    answer = command("-m", *words)
    settings = [OmegaConf.to_container(cfg, resolve=True) for cfg in answer.ran]
    assert [job["run_id"] for job in record()["jobs"]] == [identity.run_id(each) for each in settings]
    assert [job["path"] for job in record()["jobs"]] == [str(identity.folder(each)) for each in settings]


def test_the_plan_is_on_the_disk_before_the_first_job_starts(command, runner):
    seen = []
    runner.run = lambda cfg: seen.append(statuses())
    assert command("-m", "seed=0,1,2").code == 0
    assert seen == [["running", "planned", "planned"], ["done", "running", "planned"], ["done", "done", "running"]]
    assert statuses() == ["done"] * 3 and [job["swept"] for job in record()["jobs"]] == [{"seed": s} for s in "012"]


def test_a_failed_job_is_in_the_record_and_in_the_table(command, runner):
    def run(cfg):
        if cfg.seed == 1:
            raise UserError("the disk is full")

    runner.run = run
    answer = command("-m", "seed=0,1,2")
    assert answer.code == 1 and statuses() == ["done", "failed", "done"] and record()["status"] == "failed"
    assert re.search(r"seed=1 +failed +the disk is full", answer.out) and "2 of 3 runs are done; 1 failed" in answer.out
    assert answer.out.rstrip().endswith("report.html")


def test_after_an_interruption_the_rest_is_listed_as_not_started(command, runner):
    def run(cfg):
        if cfg.seed == 1:
            raise KeyboardInterrupt

    runner.run = run
    answer = command("-m", "seed=0,1,2,3")
    assert answer.code == 130 and statuses() == ["done", "interrupted", "planned", "planned"]
    assert record()["jobs"][2]["error"] == "not started" and re.search(r"seed=3 +not started", answer.out)


def test_a_launcher_that_fails_leaves_a_settled_record(command, monkeypatch):
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    def launch(self, overrides, initial_job_idx):
        raise OSError("the queue is closed")

    monkeypatch.setattr(BasicLauncher, "launch", launch)
    answer = command("-m", "seed=0,1")
    assert answer.code == 1 and statuses() == ["planned", "planned"] and record()["status"] == "interrupted"
    assert "the queue is closed" in answer.err


def test_two_sweeps_in_one_second_keep_apart(command):
    for _ in range(2):
        assert command("-m", "seed=0,1", "hydra.sweep.dir=multirun/patching/now").code == 0
    assert sorted(path.name for path in Path("multirun/patching").iterdir()) == ["now", "now-2"]


def test_a_sweeps_folder_may_have_odd_characters(command):
    assert command("-m", "seed=0,1", "paths.sweeps=\"it's, here\"").code == 0
    assert len(list(Path("it's, here").glob("patching/*/sweep.json"))) == 1


def test_a_worker_of_a_launcher_notes_how_its_job_ended(command, runner, monkeypatch):
    """A worker has an empty PROGRESS: what it does must reach the record all the same, and raise nothing."""
    def run(cfg):
        runner.ran.append(sys.argv)
        if cfg.seed == 1:
            raise UserError("no such folder")

    def in_a_worker(cfg, task=cli.task):
        monkeypatch.setattr(cli, "PROGRESS", cli.Progress())
        monkeypatch.setattr(sys, "argv", ["loky"])
        return task(cfg)

    runner.run = run
    monkeypatch.setattr(cli, "task", in_a_worker)
    answer = command("-m", "seed=0,1")
    assert answer.code == 1 and statuses() == ["done", "failed"] and record()["jobs"][1]["error"] == "no such folder"
    assert answer.ran == [["launch.py", "-m", "seed=0,1"]] * 2


def test_a_launcher_needs_a_sweep(command):
    answer = command("launcher=joblib")
    assert (answer.code, answer.err.count("\n"), answer.ran) == (1, 1, []) and "launch.py -m launcher=joblib" in answer.err


def test_a_launcher_whose_plugin_is_absent_is_one_line(command, tmp_path):
    preset = tmp_path / "mine" / "launcher" / "ray.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text("# @package _global_\ndefaults:\n  - override /hydra/launcher: ray\n")
    answer = command("--config-dir", "mine", "-m", "seed=0,1", "launcher=ray")
    assert (answer.code, answer.err.count("\n"), answer.ran) == (1, 1, [])
    assert "pip install hydra-ray-launcher" in answer.err


def test_joblib_means_one_thread_a_job_unless_told_otherwise():
    def threads(*words):
        return [job.settings["threads"] for job in
                checking.check(flags.parse(["-m", "seed=0,1", *words]), cli.conf_dir(), "").jobs]

    assert (threads(), threads("launcher=joblib"), threads("launcher=joblib", "threads=2")) == ([None] * 2, [1] * 2, [2] * 2)


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """`launch(*words)` in a process of its own, with the real runner."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        return subprocess.run([sys.executable, str(REPO / "launch.py"), *words], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    return call


@pytest.mark.slow
def test_a_sweep_of_real_runs_is_put_together_and_started_again_runs_nothing(launch):
    done = launch("-m", "seed=0,1", *SMALL)
    assert done.returncode == 0, done.stderr
    assert statuses() == ["done", "done"] and record()["status"] == "done"
    for job in record()["jobs"]:
        manifest = json.loads((Path(job["path"]) / "manifest.json").read_text())
        assert (manifest["run_id"], manifest["status"]) == (job["run_id"], "done")
    folder = next(Path("multirun").glob("*/*"))
    rows = json.loads((folder / "summary.json").read_text())
    assert {row["n_seeds"] for row in rows} == {2} and "Restoring all subject tokens" in (folder / "report.html").read_text()
    again = launch("-m", "seed=0,1", *SMALL)
    assert again.returncode == 0 and statuses() == ["skipped", "skipped"]


@pytest.mark.slow
def test_joblib_runs_side_by_side_and_one_failure_stops_no_other(launch):
    done = launch("-m", "launcher=joblib", "model.path=null,nowhere", *SMALL)
    assert done.returncode == 1 and statuses() == ["done", "failed"]
    jobs = record()["jobs"]
    assert jobs[0]["error"] is None and "nowhere: no such folder" in jobs[1]["error"]
    assert "Traceback" not in done.stderr and "1 of 2 runs are not done" in done.stderr
    manifest = json.loads((Path(jobs[0]["path"]) / "manifest.json").read_text())
    assert manifest["threads"] == 1 and manifest["command"].endswith("launcher=joblib model.path=null,nowhere " + " ".join(
        f"'{word}'" if "[" in word else word for word in SMALL))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_found_out(launch, tmp_path):
    """A job that ends its own process: the launcher breaks, the record does not."""
    done = subprocess.run([sys.executable, "-c", KILLED.format(repo=str(REPO))], cwd=tmp_path, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 1 and "interrupted" in statuses() and record()["status"] == "interrupted"
    assert any("without a word" in (job["error"] or "") for job in record()["jobs"])


KILLED = """
import sys
sys.path.insert(0, {repo!r})
import os
from types import ModuleType
sys.argv = ["launch.py", "-m", "launcher=joblib", "seed=0,1", "model.path=/dev/null/x"]
from mamba_mi import cli
def task(cfg):
    from pathlib import Path
    from hydra.core.hydra_config import HydraConfig
    from mamba_mi.runs import aggregate
    aggregate.note(Path(HydraConfig.get().sweep.dir), HydraConfig.get().job.num, "running")
    os._exit(9)
cli.task = task
cli.main()
"""
