"""Batches over several processes: the results of one process, whoever is killed; who cannot share is told so in a line."""
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import pyarrow as pa
import pytest

from mamba_mi import together
from mamba_mi.config import UserError
from mamba_mi.data import Prompt, batches
from mamba_mi.interventions import Ledger
from mamba_mi.runs.steps import step_through
from mamba_mi.runs.store import keep, kept
from tests.torchrun import torchrun

WORDS = ["model=tiny", "dataset.n=10", "method.batch=2", "method.resamples=50", "threads=1", "device=cpu"]
PATCHING = ["experiment=patching", "method.sites=[resid]", *WORDS]
SAME = ("effects.parquet", "summary.json", "prompts.json")
COUNTED = ("hook_counts", "token_layers", "memory_halvings", "bit_reproducible", "deviation", "run_id", "fingerprints")


class Meeting:
    """Threads that gather as processes do."""

    def __init__(self, count: int):
        self.count, self.barrier, self.brought = count, Barrier(count, timeout=20), {}

    def rank(self, rank: int):
        ranks = together.Alone()
        ranks.rank, ranks.count = rank, self.count
        ranks.gather = lambda each: self.gather(rank, each)
        return ranks

    def gather(self, rank: int, each) -> list:
        self.barrier.wait()
        self.brought[rank] = each
        self.barrier.wait()
        return [self.brought[r] for r in range(self.count)]


@dataclass
class Counting:
    """An experiment that counts what it is given."""

    setting: SimpleNamespace
    seen: list = field(default_factory=list)
    shares: str = together.BATCHES

    def batches(self, items):
        return batches(items, 2)

    def step(self, batch):
        self.seen.append(batch.key)
        self.setting.ledger.edits["resid"] += len(batch)
        self.setting.ledger.token_layers += batch.length
        self.setting.ledger.halvings += 1
        self.setting.ledger.least_margin = min(self.setting.ledger.least_margin, 9.0 - float(batch.key))
        return pa.table({"prompt_id": [p.prompt_id for p in batch.prompts]})


def prompts(n: int) -> list[Prompt]:
    return [Prompt(f"p{i}", "a b", (i, 2, 3), " c", 4) for i in range(n)]


def counted(folders, items_of) -> list[Counting]:
    """One experiment a process, each with its own folder and items; the first error of any is raised."""
    meeting, count = Meeting(len(folders)), len(folders)
    every = [Counting(SimpleNamespace(ranks=meeting.rank(r), ledger=Ledger(), log=lambda values, step: None)) for r in range(count)]
    with ThreadPoolExecutor(count) as pool:
        done = [pool.submit(step_through, one, items_of(r), folders[r], progress=lambda done, total: None, say=print)
                for r, one in enumerate(every)]
    for each in done:
        each.result()
    return every


def test_each_batch_is_made_once_and_the_first_counts_for_all(tmp_path):
    keep(tmp_path, "00001", pa.table({"prompt_id": ["old"]}))
    first, second = counted([tmp_path] * 2, lambda rank: prompts(9))
    assert (first.seen, second.seen) == (["00000", "00003"], ["00002", "00004"])
    assert kept(tmp_path) == {f"{i:05d}" for i in range(5)}
    ledger = first.setting.ledger
    assert (ledger.edits["resid"], ledger.token_layers, ledger.halvings, ledger.least_margin) == (7, 12, 4, 5.0)


def test_more_processes_than_batches_do_no_harm(tmp_path):
    assert [one.seen for one in counted([tmp_path] * 3, lambda rank: prompts(3))] == [["00000"], ["00001"], []]


def test_processes_that_chose_different_prompts_all_raise(tmp_path):
    with pytest.raises(UserError, match="the 2 processes chose different prompts"):
        counted([tmp_path] * 2, lambda rank: prompts(9)[rank:rank + 8])
    assert not kept(tmp_path)


def test_processes_that_see_different_folders_are_told(tmp_path):
    with pytest.raises(UserError, match="2 of 5 parts are not there: all processes must see one folder, which paths.logs="):
        counted([tmp_path / "a", tmp_path / "b"], lambda rank: prompts(9))


@pytest.mark.parametrize("device, said", [("cuda:1", "device=cuda:1: 2 processes take a GPU each; give device=cuda"),
                                          ("cuda", "LOCAL_RANK=99: this machine has [0-9]+ CUDA devices, one a process")])
def test_each_process_takes_a_gpu_of_its_own(monkeypatch, device, said):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(UserError, match=said):
        together.join(device, together.BATCHES, "it")


def test_what_fits_first_is_refused_in_several_processes(monkeypatch):
    together.demand_shareable("it", 200)
    monkeypatch.setenv("WORLD_SIZE", "2")
    together.demand_shareable("it", 0)
    with pytest.raises(UserError, match="WORLD_SIZE=2: it fits on 200 prompts first, which is done in one process; start it without torchrun"):
        together.demand_shareable("it", 200)


def run_folder(logs: Path) -> Path:
    return next(logs.glob("*/*/*/manifest.json")).parent


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of PATCHING in one process."""
    folder = tmp_path_factory.mktemp("alone")
    done = torchrun(1, *PATCHING, f"paths.logs={folder}", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return run_folder(folder)


@pytest.mark.slow
def test_two_processes_leave_the_bytes_of_one(alone, tmp_path):
    done = torchrun(2, *PATCHING, f"paths.logs={tmp_path}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    both = run_folder(tmp_path)
    for name in SAME:
        assert (both / name).read_bytes() == (alone / name).read_bytes(), name
    assert {key: manifest(both)[key] for key in COUNTED} == {key: manifest(alone)[key] for key in COUNTED}
    assert (manifest(both)["status"], manifest(both)["processes"], manifest(alone)["processes"]) == ("done", 2, 1)
    assert done.stdout.count("report: ") == done.stdout.count("├── seed: 0\n") == 1  # the second says nothing
    again = torchrun(2, *PATCHING, f"paths.logs={tmp_path}", cwd=tmp_path)
    assert again.returncode == 0 and "already done" in again.stdout, again.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("rank, processes", [(1, 1), (0, 2)])
def test_a_killed_process_ends_all_and_any_number_go_on(alone, tmp_path, rank, processes):
    script = tmp_path / "killed.py"
    script.write_text(f"""
import os, signal
from mamba_mi.runs import steps
from mamba_mi.cli import main
real = steps.keep
def keep(folder, key, table):
    real(folder, key, table)
    if os.environ["RANK"] == "{rank}":
        os.kill(os.getpid(), signal.SIGKILL)
steps.keep = keep
main()
""")
    logs = tmp_path / "logs"
    killed = torchrun(2, *PATCHING, f"paths.logs={logs}", cwd=tmp_path, script=script)
    folder = run_folder(logs)
    assert killed.returncode != 0 and manifest(folder)["status"] == "running" and "SIGKILL" in killed.stderr
    parts = kept(folder)
    assert parts and not (folder / "effects.parquet").exists()
    done = torchrun(processes, *PATCHING, f"paths.logs={logs}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"going on: {len(parts)} of " in done.stdout and manifest(folder)["resumed"] == 1
    for name in SAME:
        assert (folder / name).read_bytes() == (alone / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("words, said", [
    (["experiment=subspace", *WORDS], "WORLD_SIZE=2: experiment=patching dataset=facts fits on 200 prompts first"),
    (["experiment=models", "device=cpu"], "WORLD_SIZE=2: experiment=models dataset=facts runs in one process"),
    (["-m", "seed=0,1", *WORDS], "WORLD_SIZE=2: a sweep is started without torchrun")])
def test_what_cannot_be_shared_is_refused_before_anything_is_written(tmp_path, words, said):
    done = torchrun(2, *words, f"paths.logs={tmp_path / 'logs'}", f"paths.sweeps={tmp_path / 'sweeps'}", cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error (process ")]
    assert done.returncode != 0 and lines and all(f" of 2): {said}" in line for line in lines), done.stderr[-3000:]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["info_flow", "evaluate"])
def test_every_experiment_that_shares_its_batches_leaves_the_bytes_of_one(tmp_path, experiment):
    words = [f"experiment={experiment}", "model=tiny", "debug=fast", "threads=1", "device=cpu"]
    folders = []
    for processes in (1, 2):
        done = torchrun(processes, *words, f"paths.logs={tmp_path / str(processes)}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        folders.append(run_folder(tmp_path / str(processes)))
    for name in SAME:
        assert (folders[1] / name).read_bytes() == (folders[0] / name).read_bytes(), name
    assert manifest(folders[1])["hook_counts"] == manifest(folders[0])["hook_counts"]
