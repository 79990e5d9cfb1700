"""The kernels' benchmark runs, its floor is every product with a weight, and models that disagree are not timed. Nothing here is timed."""
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import kernel_calls
import kernels
import pytest
import roofline
import torch
from machine import write

from mamba_mi import Knockout, backends, load
from mamba_mi.backends import chunked
from mamba_mi.interventions import evaluate

TINY = {"d_model": 64, "n_layer": 5, "vocab_size": 96}


@pytest.mark.parametrize("name", ["mamba-130m", "mamba2-130m"])
def test_the_benchmark_runs_and_writes_a_line_a_length(name, tmp_path):
    made = []
    kernels.run([name], [18, 3], repeats=1, budget=0.0, made=made.append, **TINY)
    assert [[row["length"] for row in result["rows"]] for result in made] == [[18], [3, 18]]
    write(tmp_path, "kernels", made[1], kernels.page(made[1]))
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    assert [(row["length"], row["layers"], row["backend"]) for row in rows] == [(3, 5, "compiled"), (18, 5, "compiled")]
    kinds = {"recorded", "knockout, 1", "patch grid", "heatmap", "transformers", "transformers, tuned"}
    kinds |= {f"forward, {each}" for each in backends.available() if each not in kernel_calls.PLAIN}
    assert set(rows[1]["floors"]) == kinds | {"knockout, 16"} and set(rows[0]["floors"]) == kinds
    assert all(x["min"] > 0 for row in rows for x in row["floors"].values()) and rows[0]["apart"] <= 1e-5
    first, scans = (tmp_path / "kernels.md").read_text().split("## One layer's scan")
    assert [text.count(f"| {name} | 18 ") for text in (first, scans)] == [1, len(rows[0]["scans"])]


def test_what_was_measured_here_before_is_kept(tmp_path, capsys):
    made = []
    kernels.run(["mamba2-130m"], [3], repeats=1, budget=0.0, made=made.append, **TINY)
    write(tmp_path, "kernels", made[0], kernels.page(made[0]))
    known = kernels.results_of(tmp_path / "kernels.json")["rows"]
    kernels.run(["mamba-130m", "mamba2-130m"], [3], repeats=1, budget=0.0, made=made.append, known=known, **TINY)
    assert len(made) == 2 and made[1]["rows"][1] == made[0]["rows"][0] and made[1]["rows"][0]["model"] == "mamba-130m"
    write(tmp_path, "kernels", made[0] | {"machine": made[0]["machine"] | {"cpu": "an abacus"}}, "")
    broken = {"{broken": "JSONDecodeError: Expecting", "[]": "TypeError: list", "{}": "KeyError: 'machine'",
              json.dumps(made[0] | {"rows": [{"a": 1}]}): "KeyError: 'floors'", json.dumps(made[0] | {"rows": 3}): "TypeError: 'int'"}
    for i, text in enumerate(broken):
        (tmp_path / f"broken{i}").mkdir()
        (tmp_path / f"broken{i}" / "kernels.json").write_text(text)
    for folder, said in (*((tmp_path / f"broken{i}", f"kernels.json cannot be read ({why}") for i, why in enumerate(broken.values())), (tmp_path, "measured elsewhere (cpu an abacus, now "), (tmp_path / "none", "there is no ")):
        with pytest.raises(SystemExit):
            kernels.main(["--resume", "--out", str(folder)])
        assert said in capsys.readouterr().err


def test_rows_that_are_all_there_are_a_page(tmp_path, capsys):
    made = []
    kernels.run(["mamba2-130m"], [3], repeats=1, budget=0.0, made=made.append, **TINY)
    write(tmp_path, "kernels", made[0], "")
    (tmp_path / "kernels.md").unlink()
    kernels.main(["--resume", "--model", "mamba2-130m", "--length", "3", "--out", str(tmp_path)])
    assert (tmp_path / "kernels.md").read_text() == kernels.page(made[0]) in capsys.readouterr().out


def test_the_floor_is_every_product_with_a_weight_once():
    lm = kernels.ours("mamba1", **TINY)
    shapes = []
    linear = torch.nn.functional.linear

    def noted(x, weight):
        shapes.append((tuple(x.shape), tuple(weight.shape)))
        return linear(x, weight)

    run = kernel_calls.floor(lm, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_calls.F, "linear", noted)
        run()
    assert all(x == (1, 7, weight[1]) for x, weight in shapes)
    layer = [(256, 64), (4 + 32, 128), (128, 4), (64, 128)]  # into, dt B C, dt, out of
    assert sorted(weight for _, weight in shapes) == sorted([*layer * 5, (lm.config.padded_vocab, 64)])


def test_a_backend_that_disagrees_is_not_timed(monkeypatch):
    gate = chunked.gate
    monkeypatch.setattr(chunked, "gate", lambda y, z: gate(y, z) * 1.001)
    with pytest.raises(ValueError, match="mamba-130m, 9 tokens: logits are .* apart"):
        kernels.compare("mamba-130m", 9, "cpu", 1, 0.0, **TINY)


@pytest.mark.parametrize(("flags", "said"), [
    (["--length", "0"], "0: give a whole number from 1 on"), (["--repeats", "-1"], "give a whole number from 1 on"),
    (["--budget", "-1"], "-1: give a number of seconds from 0 on"), (["--budget", "nan"], "nan: give a number"), (["--budget", "x"], "x: give a number"),
    (["--device", "gpu"], "device=gpu: "), (["--device", "cuda:9"], "device=cuda:9: "), (["--out", "/dev/null/x"], "/dev/null/x")])
def test_a_wrong_flag_is_a_line(flags, said, capsys):
    with pytest.raises(SystemExit):
        kernels.main(flags)
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_shape_that_is_not_timed_on_a_cpu_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit):
        kernels.main(["--model", "mamba-2.8b", "--length", "513", "--out", str(tmp_path)])
    assert "nothing to measure of mamba-2.8b at 513 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("name", kernel_calls.MODELS)
@pytest.mark.parametrize("length", [32, 512, 65536])
def test_a_part_is_whole_layers(name, length):
    _, width, layers = kernel_calls.MODELS[name]
    assert layers % kernel_calls.part_of(width, layers, length) == 0


def test_the_limit_of_a_scan_is_by_what_binds():
    can = roofline.Limits(bytes=100.0, exponentials=10.0, products=1000.0)
    for work, binds, least in ((roofline.Work(1000, 10, 10), "bytes", 10), (roofline.Work(10, 1000, 10), "exponentials", 100),
                               (roofline.Work(1, 1, 1e6), "products", 1000)):
        assert can.binding(work) == binds and can.least_seconds(work) == least


def test_the_work_of_a_scan_is_what_its_tensors_hold():
    v, y, dt, B, C = (torch.empty(2, 7, *size).numel() for size in ((6, 1), (6, 1), (6,), (1, 5), (1, 5)))
    assert roofline.of_many_decays(2, 7, 6, 5) == (4 * (v + y + dt + B + C), 2 * 7 * 6 * 5, 0)
    v, y, dt, B, C = (torch.empty(2, 7, *size).numel() for size in ((4, 3), (4, 3), (4,), (2, 5), (2, 5)))
    work = roofline.of_one_decay(2, 7, 4, 3, 5, 2)
    assert work.bytes == 4 * (v + y + dt + B + C) and work.exponentials == 2 * 7 * 64 * 4
    inside, state = 2 * 7 * 64 * (2 * 5 + 4 * 3), 2 * 7 * 2 * (4 * 3 * 5)  # C Bᵀ and M x; read and write
    assert work.products == inside + state


def test_a_rate_is_what_was_done_in_the_best_time(monkeypatch):
    monkeypatch.setattr(roofline, "_best", lambda call, device: (call(), 2.0)[1])
    bytes_ = 2 * 4 * 4096  # read and written, in float32
    assert roofline.limits("cpu", size=4096, side=8) == (bytes_ / 2, 16 * 4096 / 2, 8**3 / 2)


def test_a_number_is_a_time_over_the_floors_of_its_round(monkeypatch):
    lm_floor = kernel_calls.floor

    def floor(lm, length):
        run = lm_floor(lm, length)
        floors.append(run)
        return run

    floors = []
    monkeypatch.setattr(kernel_calls, "floor", floor)
    monkeypatch.setattr(kernels, "seconds", lambda call, device: 2.0 if call in floors else 6.0)
    row = kernels.compare("mamba2-130m", 3, "cpu", 2, 0.0, **TINY)
    assert row["milliseconds"] == 2000 and {x["median"] for x in row["floors"].values()} == {3.0}


def test_what_is_timed_as_a_knockout_knocks_the_sources_out_of_every_layer():
    lm = kernels.ours("mamba2", **TINY)
    tokens_BL = torch.arange(9)[None]
    values, clean = kernel_calls.knocked(lm, tokens_BL, 2)
    for got, source in zip(values, (0, 4), strict=True):
        want = evaluate(lm, tokens_BL, [(Knockout(range(5), -1, source),)], lambda logits_SBV: logits_SBV)[0]
        assert torch.allclose(got.flatten(), want.flatten(), atol=1e-6)
    assert len(values) == 2 and not torch.allclose(values[0], clean[0], atol=1e-6)


@pytest.mark.parametrize("variant", ["mamba1", "mamba2"])
def test_mamba_ssm_is_given_the_same_model_in_the_published_layout(variant, tmp_path):
    lm = kernels.ours(variant, **TINY)
    kernel_calls.published(lm, tmp_path)
    written = torch.load(tmp_path / "pytorch_model.bin")
    assert torch.equal(written["lm_head.weight"], written["backbone.embedding.weight"])  # its loading asks for both
    tokens_BL = torch.arange(9)[None]
    assert torch.equal(load(tmp_path, dtype="float32")(tokens_BL)[0], lm(tokens_BL)[0])


def test_others_are_timed_where_they_can_be(monkeypatch):
    lm = kernels.ours("mamba2", **TINY)
    monkeypatch.setattr(kernel_calls, "THEIRS", 8)
    assert set(kernel_calls.theirs(lm, torch.arange(8)[None], "cpu")) == {"transformers", "transformers, tuned"}
    assert not kernel_calls.theirs(lm, torch.arange(9)[None], "cpu")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("name", ["mamba-130m", "mamba2-130m"])
def test_many_sets_in_one_pass_are_timed_beside_a_plain_scan(name):
    code = (f"import kernels, kernel_calls as k; k.SETS, k.ROWS = 2, 2; rows = []\n"
            f"kernels.run([{name!r}], [4], repeats=1, budget=0.0, made=rows.append, d_model=32, n_layer=1, vocab_size=96)\n"
            "row = rows[0]['rows'][0]; assert row['fused']['2 sets, triton']['min'] > 0, row\n"
            "print(kernels.page(rows[0]).split('## ')[2])")
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, text=True, capture_output=True)
    assert not done.returncode, done.stderr
    assert f"| {name} | 4 | triton | **" in done.stdout and "in plain scans" in done.stdout


def test_the_rates_of_this_device_are_measured():
    found = roofline.limits("cpu", size=1 << 16, side=64)
    assert min(found) > 0 and found.products < 1e14
