"""The forward benchmark runs, and refuses to time two models that say different things. Nothing here is timed."""
import json

import forward
import pytest
import torch
from machine import write

TINY = {"d_model": 64, "n_layer": 2, "vocab_size": 96}


@pytest.mark.parametrize("variant", forward.SSM)
def test_the_benchmark_runs_and_writes_a_line_a_shape(variant, tmp_path):
    result = forward.run([variant], [5, 9], [1, 2], budget=0.0, repeats=2, **TINY)
    write(tmp_path, "forward", result, forward.page(result))
    shapes = json.loads((tmp_path / "forward.json").read_text())["shapes"]
    assert {(s["batch"], s["length"]) for s in shapes} == {(1, 5), (1, 9), (2, 5), (2, 9)}
    for shape in shapes:
        assert shape["rounds"] == 2 and shape["apart"] <= forward.BOUND and shape["layers"] == 2
        assert set(shape["seconds"]) == {"blind", "recorded", "default", "tuned"} and min(shape["seconds"].values()) > 0
    lines = [line for line in (tmp_path / "forward.md").read_text().splitlines() if line.startswith(f"| {variant} ")]
    assert len(lines) == 4


@pytest.mark.parametrize("variant", forward.SSM)
def test_two_models_that_differ_in_one_number_are_not_timed(variant):
    lm = forward.ours(variant, **TINY)
    theirs = forward.contestants(lm)
    with torch.no_grad():  # in a copy: the weights are the same tensors
        lm.layers[1].D = torch.nn.Parameter(lm.layers[1].D + 0.5 * (torch.arange(len(lm.layers[1].D)) == 0))
    with pytest.raises(ValueError, match=f"{variant} 2 x 7 default: logits are .* apart"):
        forward.compare(lm, theirs, 2, 7, budget=0.0, repeats=1)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 2.0])
def test_the_check_of_equality_sees_every_kind_of_wrong(wrong):
    theirs_BLV = torch.ones(1, 2, 3)
    assert forward.check_equal(theirs_BLV.clone(), theirs_BLV, "same") == 0
    ours_BLV = theirs_BLV.clone()
    ours_BLV[0, 1, 2] = wrong
    with pytest.raises(ValueError, match="here: logits"):
        forward.check_equal(ours_BLV, theirs_BLV, "here")


@pytest.mark.parametrize("variant", forward.SSM)
def test_what_is_recorded_is_every_site_of_every_layer(variant):
    lm = forward.ours(variant, **TINY)
    logits_BLV, past = forward.recorded(lm, torch.zeros(1, 3, dtype=torch.long))
    assert torch.equal(logits_BLV, lm(torch.zeros(1, 3, dtype=torch.long))[0]) and past.length == 3


@pytest.mark.parametrize("part", [6, 12])
def test_a_part_of_the_model_keeps_the_shares_of_blocks_and_head(part):
    sizes = forward.WHOLE
    assert sizes["n_layer"] % part == 0
    assert sizes["vocab_size"] // part // 8 * 8 / sizes["vocab_size"] == pytest.approx(1 / part, rel=2e-3)
