"""The kernels' benchmark runs, its floor is every product with a weight, and models that disagree are not timed. Nothing here is timed."""
import json

import kernels
import pytest
import torch
from machine import write

from mamba_mi import backends

TINY = {"d_model": 64, "n_layer": 5, "vocab_size": 96}


@pytest.mark.parametrize("name", ["mamba-130m", "mamba2-130m"])
def test_the_benchmark_runs_and_writes_a_line_a_length(name, tmp_path):
    result = kernels.run([name], [18, 3], repeats=1, budget=0.0, **TINY)
    write(tmp_path, "kernels", result, kernels.page(result))
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    assert [(row["length"], row["layers"], row["backend"]) for row in rows] == [(18, 5, "compiled"), (3, 5, "compiled")]
    kinds = {"recorded", "knockout, 1", "patch grid", "heatmap", "transformers", "transformers, tuned"}
    kinds |= {f"forward, {each}" for each in backends.available() if each not in kernels.PLAIN}
    assert set(rows[0]["floors"]) == kinds | {"knockout, 16"} and set(rows[1]["floors"]) == kinds
    assert all(x["min"] > 0 for row in rows for x in row["floors"].values()) and rows[0]["apart"] <= 1e-5
    lines = (tmp_path / "kernels.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith(f"| {name} ")]) == 2


def test_the_floor_is_every_product_with_a_weight_once():
    lm = kernels.ours("mamba1", **TINY)
    shapes = []
    linear = torch.nn.functional.linear

    def noted(x, weight):
        shapes.append((tuple(x.shape), tuple(weight.shape)))
        return linear(x, weight)

    run = kernels.floor(lm, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels.F, "linear", noted)
        run()
    assert all(x == (1, 7, weight[1]) for x, weight in shapes)
    layer = [(256, 64), (4 + 32, 128), (128, 4), (64, 128)]  # into, dt B C, dt, out of
    assert sorted(weight for _, weight in shapes) == sorted([*layer * 5, (lm.config.padded_vocab, 64)])


def test_a_backend_that_disagrees_is_not_timed(monkeypatch):
    gate = backends.chunked.gate
    monkeypatch.setattr(backends.chunked, "gate", lambda y, z: gate(y, z) * 1.001)
    with pytest.raises(ValueError, match="mamba-130m, 9 tokens: logits are .* apart"):
        kernels.compare("mamba-130m", 9, "cpu", 1, 0.0, **TINY)


@pytest.mark.parametrize("name", kernels.MODELS)
@pytest.mark.parametrize("length", [32, 512, 65536])
def test_a_part_is_whole_layers(name, length):
    _, width, layers = kernels.MODELS[name]
    assert layers % kernels.part_of(width, layers, length) == 0
