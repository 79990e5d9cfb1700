"""The knockout benchmark runs, counts what it says, and refuses to time two ways that say different things."""
import json

import knockout
import pytest
import torch
from machine import write

from mamba_mi import Knockout, evaluate

TINY = {"d_model": 64, "n_layer": 4, "vocab_size": 96, "ssm_cfg": {"layer": "Mamba2"}}


@pytest.fixture(scope="module")
def lm():
    with torch.no_grad():
        return knockout.loud(knockout.ours("mamba2", d_model=64, n_layer=4, vocab_size=96))


def test_the_benchmark_runs_and_writes_a_line_a_length(tmp_path):
    result = knockout.run([5, 9], window=2, repeats=1, d_model=64, n_layer=4, vocab_size=96)
    write(tmp_path, "knockout", result, knockout.page(result))
    lengths = json.loads((tmp_path / "knockout.json").read_text())["lengths"]
    assert [(r["length"], r["cells"], r["rounds"]) for r in lengths] == [(5, 15, 1), (9, 27, 1)]
    assert all(r["apart"] <= 1e-5 and min(r["ms_a_cell"].values()) > 0 for r in lengths)
    assert len([line for line in (tmp_path / "knockout.md").read_text().splitlines() if line.startswith(("| 5 ", "| 9 "))]) == 2


def test_the_materialised_forward_is_the_knockout(lm):
    tokens_L = torch.arange(7)
    some = [knockout.Cell(2, 0), knockout.Cell(6, 1), knockout.Cell(0, 2)]
    sets = [(Knockout((cell.start, cell.start + 1), -1, cell.source),) for cell in some]
    want = evaluate(lm.on("attention"), tokens_L[None], sets, lambda logits_SBV: logits_SBV[:, 0])
    with torch.no_grad():
        got = knockout.materialised(lm, tokens_L, some, 2)
    torch.testing.assert_close(got, want[:, :96], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got[0], got[1], atol=1e-3)


def test_a_wrong_way_is_not_timed(lm, monkeypatch):
    right = knockout.materialised
    monkeypatch.setattr(knockout, "materialised", lambda *args: right(*args) + 0.1)
    with torch.no_grad(), pytest.raises(ValueError, match="7 tokens: logits are .* apart"):
        knockout.check(lm, torch.arange(7), knockout.cells(lm, 7, 2), 2)


def test_the_operations_of_the_published_size_are_those_of_the_goal():
    lm = knockout.ours("mamba2", n_layer=24)
    counted = {length: knockout.operations(lm, length, 5) for length in (20, 64, 256)}
    assert {n: round(c["full"] / c["cone"]) for n, c in counted.items()} == pytest.approx({20: 19, 64: 60, 256: 245}, rel=0.08)
