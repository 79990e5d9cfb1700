"""The training benchmark runs, writes what it saw, and refuses to time two models whose gradients differ."""
import json
from pathlib import Path

import pytest
import torch
import train
from machine import write

TINY = train.Size(64, 2, 96, 2, 7)
LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux starts the high-water mark anew")
VARIANTS = pytest.mark.parametrize("variant", train.SSM)


@pytest.fixture(autouse=True)
def one_chunk_size(monkeypatch):
    monkeypatch.setattr(train, "CHUNKS", (32,))


def test_the_benchmark_runs_and_writes_a_line_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "peaks", lambda variant, size, tell: dict.fromkeys(train.names(variant), 2_000_000))
    result = train.run(list(train.SSM), {"tiny": TINY}, rounds=2)
    write(tmp_path, "train", result, train.page(result))
    rows = json.loads((tmp_path / "train.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == list(train.SSM)
    for row in rows:
        assert row["apart"] <= train.BOUND and row["best"] in train.names(row["variant"])[1:]
        assert set(row["tokens_per_second"]) == set(train.names(row["variant"]))
        for name, ratio in row["times_faster"].items():
            assert ratio["min"] <= ratio["median"] <= ratio["max"], name
    assert sum(line.startswith("| ") for line in (tmp_path / "train.md").read_text().splitlines()) == 4


def test_ratios_are_theirs_over_ours_and_the_first_round_does_not_count(monkeypatch):
    times = iter((50.0, 1.0, 60.0, 2.0, 6.0, 4.0, 2.0, 6.0, 5.0))  # ours, as it comes, tuned; three rounds
    monkeypatch.setattr(train, "seconds", lambda step: next(times))
    found = train.compare("mamba2", TINY, 2)
    assert found["best"] == "chunk_size=32" and found["times_faster"]["default"] == {"median": 3.0, "min": 3.0, "max": 3.0}
    assert found["times_faster"]["chunk_size=32"] == {"median": 2.25, "min": 2.0, "max": 2.5}
    assert found["tokens_per_second"]["ours"] == {"median": 7.0, "min": 7.0, "max": 7.0}  # 2 x 7 tokens in 2 seconds


@VARIANTS
def test_two_models_that_differ_in_one_number_are_not_timed(variant):
    lm = train.our_model(variant, TINY)
    mine, theirs = (train.contestant(name, lm) for name in ("ours", "default"))
    assert 0 < train.check_equal(mine, theirs, train.tokens(TINY), "same") <= train.BOUND
    with torch.no_grad():
        lm.layers[1].D[0] += 0.5
    with pytest.raises(ValueError, match="here: losses or gradients are .* apart"):
        train.check_equal(mine, theirs, train.tokens(TINY), "here")


@VARIANTS
def test_a_step_of_everyone_trains(variant):
    lm, tokens_BL = train.our_model(variant, TINY), train.tokens(TINY)
    for each in (train.contestant(name, lm) for name in train.names(variant)):
        step, before = train.step_of(each, tokens_BL), each.loss(tokens_BL).item()
        for _ in range(3):
            step()
        assert each.loss(tokens_BL).item() < before


@LINUX
@pytest.mark.slow  # a process that imports transformers, for each
def test_the_peak_of_a_step_holds_the_gradients_and_the_optimisers_state():
    size = TINY._replace(d_model=256)
    weights = 4 * sum(x.numel() for x in train.our_model("mamba2", size).parameters())
    found = train.peaks("mamba2", size)
    assert list(found) == train.names("mamba2") and min(found.values()) > 2.5 * weights


def test_what_is_below_the_goal_is_named():
    row = {"variant": "mamba2", "size": "tiny", **TINY._asdict(), "rounds": 1, "apart": 0.0, "best": "default", "peak_bytes": {},
           "tokens_per_second": dict.fromkeys(("ours", "default"), {"median": 9.0}),
           "times_faster": {"default": {"median": 1.5, "min": 1.0, "max": 2.0}}}
    said = train.page({"machine": {"transformers": "5", "torch": "2", "cpu": "x", "cores": 1}, "asked": "", "rows": [row]})
    assert said.split("## Below 2 times")[1].strip() == "- mamba2, tiny: 1.50 times default"
