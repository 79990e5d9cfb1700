"""sweep.json: the plan before the first job, and how each job ended, whoever has to say so."""
import fcntl
import json
import multiprocessing

import pytest
from synthetic_runs import planned, record, settings, write_manifest

from mamba_mi.config import UserError
from mamba_mi.runs import aggregate, identity

LONG_AGO, FUTURE = "2000-01-01T00:00:00+00:00", "2100-01-01T00:00:00+00:00"


@pytest.fixture
def sweep(tmp_path):
    jobs = [({"seed": str(seed)}, settings(seed, logs=str(tmp_path / "logs"))) for seed in range(3)]
    return planned(tmp_path / "sweep", jobs)


def run_folder(sweep, number):
    from pathlib import Path

    folder = Path(record(sweep)["jobs"][number]["path"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def statuses(found):
    return [job["status"] for job in found["jobs"]]


def test_the_plan_names_every_job_and_its_run_before_anything_runs(sweep, tmp_path):
    jobs = record(sweep)["jobs"]
    configs = [settings(seed, logs=str(tmp_path / "logs")) for seed in range(3)]
    assert [(job["number"], job["label"], job["status"]) for job in jobs] == [(i, f"seed={i}", "planned") for i in range(3)]
    assert [job["run_id"] for job in jobs] == [identity.run_id(config) for config in configs]
    assert [job["path"] for job in jobs] == [str(identity.folder(config)) for config in configs]


def test_a_job_that_never_started_is_listed_as_such(sweep):
    aggregate.note(sweep, 0, "running")
    aggregate.note(sweep, 0, "done")
    found = aggregate.settle(sweep, over=True)
    assert statuses(found) == ["done", "planned", "planned"] and found["status"] == "interrupted"
    assert [job["error"] for job in found["jobs"]] == [None, "not started", "not started"] and found["ended"]


def test_a_failure_is_kept_with_its_words(sweep):
    for number, (status, error) in enumerate([("done", None), ("failed", "the disk is full"), ("done", None)]):
        aggregate.note(sweep, number, "running")
        aggregate.note(sweep, number, status, error)
    found = aggregate.settle(sweep)
    assert found["status"] == "failed" and found["jobs"][1]["error"] == "the disk is full" and record(sweep) == found


def test_a_run_done_by_an_earlier_command_is_skipped_and_counts(sweep):
    write_manifest(run_folder(sweep, 0), "done", LONG_AGO)
    aggregate.note(sweep, 0, "running")
    aggregate.note(sweep, 0, "done")
    assert statuses(aggregate.settle(sweep)) == ["skipped", "planned", "planned"]


def test_of_a_process_that_died_the_manifest_tells(sweep):
    for number in range(3):
        aggregate.note(sweep, number, "running")
    write_manifest(run_folder(sweep, 0), "done", FUTURE)
    write_manifest(run_folder(sweep, 1), "failed", FUTURE, error="out of memory")
    write_manifest(run_folder(sweep, 2), "running", None)  # killed: no process holds its lock
    found = aggregate.settle(sweep, over=True)
    assert statuses(found) == ["done", "failed", "interrupted"]
    assert [job["error"] for job in found["jobs"]][:2] == [None, "out of memory"]
    assert "without a word" in found["jobs"][2]["error"]


def test_a_job_whose_run_is_being_written_is_running(sweep):
    aggregate.note(sweep, 0, "running")
    with open(run_folder(sweep, 0) / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert statuses(aggregate.settle(sweep))[0] == "running"
    assert statuses(aggregate.settle(sweep))[0] == "interrupted"


def test_a_failed_job_done_later_by_hand_is_done_when_put_together_again(sweep):
    aggregate.note(sweep, 0, "running")
    aggregate.note(sweep, 0, "failed", "no such folder")
    write_manifest(run_folder(sweep, 0), "done", LONG_AGO)  # refused: made under other conditions, long ago
    assert statuses(aggregate.settle(sweep))[0] == "failed"
    write_manifest(run_folder(sweep, 0), "done", FUTURE)
    found = aggregate.settle(sweep)["jobs"][0]
    assert (found["status"], found["error"]) == ("done", None)


def test_two_sweeps_of_one_second_have_two_folders(tmp_path):
    wanted = tmp_path / "multirun" / "patching" / "2026-01-31_12-00-00"
    assert [aggregate.unique_folder(wanted).name for _ in range(3)] == [wanted.name, f"{wanted.name}-2", f"{wanted.name}-3"]


def _note(folder, number):
    aggregate.note(folder, number, "running")
    aggregate.note(folder, number, "done")


def test_jobs_in_many_processes_lose_no_note(tmp_path):
    jobs = [({"seed": str(seed)}, settings(seed, logs=str(tmp_path / "logs"))) for seed in range(8)]
    folder = planned(tmp_path / "sweep", jobs)
    workers = [multiprocessing.get_context("fork").Process(target=_note, args=(folder, i)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert set(statuses(record(folder))) == {"done"}


def test_a_folder_that_is_no_sweeps_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file; give the folder of a sweep"):
        aggregate.settle(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        aggregate.settle(tmp_path)


def test_the_record_is_plain_json(sweep):
    assert json.loads((sweep / "sweep.json").read_text())["schema_version"] == 1
