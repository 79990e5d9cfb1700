"""The patching benchmark runs, its contestants patch what ours patches, and one that does not is named. Nothing here is timed."""
import importlib.util
import json
import sys

import patching
import pytest
import torch
import workers
from machine import write
from patching import Grid, Way
from patching_worker import Hooks, answer, main

TINY = {"d_model": 64, "n_layer": 3, "vocab_size": 96}
VARIANTS = pytest.mark.parametrize("variant", patching.SSM)


def grid(variant: str, length: int = 6) -> Grid:
    return Grid(patching.ours(variant, **TINY), length)


def hooks(grid: Grid, folder, size: str = "default") -> Hooks:
    grid.save(folder)
    with torch.no_grad():
        return Hooks(folder / size, **json.loads((folder / size / "prompts.json").read_text()))


class Here:
    """A contestant in this process, as a Worker answers for it."""

    def __init__(self, contestant, folder):
        self.contestant, self.out = contestant, str(folder / "logits.pt")

    def logits(self, cells, batch=1):
        answer(self.contestant, cells, batch, self.out)
        return torch.load(self.out, weights_only=True)


@VARIANTS
@pytest.mark.parametrize("batch", [1, 5])
def test_hooks_on_transformers_and_the_cone_patch_the_same(variant, batch, tmp_path):
    ours = grid(variant)
    theirs = Here(hooks(ours, tmp_path, "default" if variant == "mamba1" else str(patching.SMALL)), tmp_path)
    ours_SV, base_V = ours.logits(ours.cells)
    assert torch.allclose(ours_SV, theirs.logits(ours.cells, batch), rtol=0, atol=2e-6)
    assert torch.allclose(base_V, theirs.logits([])[0], rtol=0, atol=2e-6)
    assert patching.check(ours, theirs, batch, "here")["apart"] < 1e-5


def test_the_whole_grid_is_measured_in_the_metrics_of_the_experiment():
    ours = grid("mamba2")
    measured_SBM, logits_SV = ours.measured(), ours.logits(ours.cells)[0]
    assert measured_SBM.shape == (18, 1, len(patching.Patching.Knobs().metrics))
    difference_S = logits_SV[:, patching.RIGHT] - logits_SV[:, patching.WRONG]
    assert torch.allclose(measured_SBM[:, 0, 0].float(), difference_S, rtol=0, atol=1e-6)


def test_a_contestant_with_another_number_is_not_timed(tmp_path):
    ours = grid("mamba2")
    theirs = Here(hooks(ours, tmp_path), tmp_path)
    with torch.no_grad():
        theirs.contestant.blocks[1].mixer.D[0] += 0.5
    with pytest.raises(ValueError, match="here: logits are [^;]*$"):
        patching.check(ours, theirs, 1, "here")


def test_a_hook_that_does_nothing_is_named(tmp_path):
    ours = grid("mamba2")
    theirs = Here(hooks(ours, tmp_path), tmp_path)
    theirs.contestant._put = lambda x_BLD, *_: x_BLD
    with pytest.raises(ValueError, match="its hook did nothing"):
        patching.check(ours, theirs, 1, "here")


def test_a_hook_that_never_fires_raises(tmp_path):
    theirs = hooks(grid("mamba2"), tmp_path)
    theirs.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in theirs.blocks)
    with pytest.raises(RuntimeError, match=r"fired \{1: 0\} times"):
        answer(theirs, [[1, 2]], 1, None)


def test_cells_that_change_nothing_prove_nothing(tmp_path):
    ours = grid("mamba2")
    ours.clean_BL = ours.corrupt_BL
    with pytest.raises(ValueError, match="only 0% of the cells compared"):
        patching.check(ours, Here(hooks(ours, tmp_path), tmp_path), 1, "here")


@pytest.mark.slow
def test_the_benchmark_runs_and_says_what_could_not_be_timed(tmp_path, monkeypatch):
    if importlib.util.find_spec("nnsight"):
        pytest.skip("nnsight is installed here; this is about where it is not")
    monkeypatch.setattr(patching, "ENVIRONMENTS", {"nnsight": "nnsight"})
    monkeypatch.setattr(patching, "environment", lambda name, folder: sys.executable)
    result = patching.run(["mamba1"], 6, rivals=tmp_path, budget=0.0, repeats=1, **TINY)
    write(tmp_path, "patching", result, patching.page(result))
    (found,) = json.loads((tmp_path / "patching.json").read_text())["grids"]
    assert [Way(c["name"], c["chunk_size"], c["batched"]) for c in found["contestants"]] == patching.ways("mamba1", ["hooks"])
    assert all(c["apart"] <= patching.BOUND and c["cells_a_second"] > 0 for c in found["contestants"])
    assert set(found["failed"]) == {"nnsight", "nnsight, batched"}
    assert "No module named 'nnsight'" in (tmp_path / "patching.md").read_text()


def test_what_a_worker_cannot_do_it_says(tmp_path):
    hooks(grid("mamba1"), tmp_path)
    said = []
    with pytest.raises(IndexError):
        main("hooks", tmp_path / "default", [json.dumps({"cells": [[0, 9]], "batch": 1, "out": None})], said.append)
    assert set(said[0]["versions"]) == {"transformers", "torch"} and said[1]["failed"].startswith("IndexError")


def test_the_cells_of_a_sample_are_spread_over_the_grid():
    cells = [[layer, position] for layer in range(24) for position in range(20)]
    sample = patching.spread(cells, 12)
    assert sample[0] == [0, 0] and sample[-1] == [23, 19] and len({p for _, p in sample}) > 6 and len({l for l, _ in sample}) == 12
    assert patching.spread(cells, 480) == cells == patching.spread(cells, 999) and patching.spread(cells, 1) == [[0, 0]]


def test_every_target_is_of_a_way_that_is_tried():
    assert set(patching.TARGETS) <= set(patching.ways("mamba2", ["hooks", *workers.ENVIRONMENTS]))


@pytest.mark.slow
def test_what_cannot_be_installed_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(workers.Failed, match="pip install nnsight: ERROR: No matching distribution found for nnsight"):
        workers.environment("nnsight", tmp_path)
    assert not (tmp_path / "nnsight" / ".ready").exists()


def test_a_worker_that_has_ended_says_so(tmp_path):
    hooks(grid("mamba1"), tmp_path)
    with workers.Worker("hooks", tmp_path / "default", sys.executable) as worker:
        with pytest.raises(workers.Failed, match="IndexError: index 9 is out of bounds"):
            worker.seconds([[0, 9]])
        with pytest.raises(workers.Failed, match="ended with 1"):
            worker.seconds([[0, 0]])
