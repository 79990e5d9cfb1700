"""Steps on running text: parts, recomputation and bfloat16 give the gradients they should; where a training stood is kept."""
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from mamba_mi.config import UserError
from mamba_mi.models.mixer import Mixer
from mamba_mi.training import Recipe, checkpointing, packing, progress, speed
from mamba_mi.training.speed import flops_per_token, measured_peak
from mamba_mi.training.text import Rows, Script
from tests.data.conftest import train_bpe
from tests.data.texts import records, write
from tests.training.corpora import FEW, made


def gradients(folder, variant, **knobs):
    train = made(folder, variant, **knobs)
    train.rows = Rows(train.dataset.corpus.reader(), train.script, length=train.knobs.length, boundaries=True)
    losses = []
    for part in train._losses_at(0):
        part.backward()
        losses.append(part.item())
    return {name: p.grad for name, p in train.lm.named_parameters()}, losses, train


@pytest.mark.parametrize("variant", ["mamba1", "mamba2"])
def test_parts_one_after_another_have_the_gradients_of_the_whole_batch(variant, tmp_path):
    whole, (loss,), train = gradients(tmp_path, variant, dtype="float64")
    rows = Rows(train.dataset.corpus.reader(), train.script, length=train.knobs.length, boundaries=True)
    assert loss == pytest.approx(packing.next_token_loss(train.lm, *rows.next(4)).item(), rel=1e-12)  # of what is asked, the mean
    parts, losses, _ = gradients(tmp_path, variant, dtype="float64", accumulate=4)
    assert len(losses) == 4 and sum(losses) == pytest.approx(loss, rel=1e-12)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("variant", ["mamba1", "mamba2"])
def test_layers_run_again_have_the_gradients_of_layers_kept(variant, tmp_path, monkeypatch):
    kept, (loss,), train = gradients(tmp_path, variant, dtype="float64")
    passes = []
    monkeypatch.setattr(Mixer, "mix", (lambda mix: lambda self, *a: passes.append(self.layer) or mix(self, *a))(Mixer.mix))
    again, (same,), _ = gradients(tmp_path, variant, dtype="float64", checkpoint_activations=True)
    assert passes == [0, 1, 1, 0] and same == loss
    assert all(torch.equal(again[name], gradient) for name, gradient in kept.items())


@pytest.mark.parametrize("variant", ["mamba1", "mamba2"])
def test_under_bfloat16_what_is_summed_over_time_stays_float32(variant, tmp_path, monkeypatch):
    plain, (loss,), train = gradients(tmp_path, variant)
    seen = []
    backend = train.lm.layers[0].backend
    real = backend.scan

    def scan(v, dt, A, B, C, **how):
        y, h = real(v, dt, A, B, C, **{**how, "keep_h": True})
        seen.append((dt.dtype, A.dtype, h.dtype, torch.is_autocast_enabled("cpu")))
        exact = real(*(x.double() for x in (v, dt, A, B, C)), **how)[1 - 1]
        assert (y.double() - exact).abs().max() <= (2**-8 if y.dtype == torch.bfloat16 else 1e-5) * exact.abs().max()
        return y, h

    monkeypatch.setattr(backend, "scan", scan)
    rounded, (near,), _ = gradients(tmp_path, variant, autocast="bf16")
    assert seen == [(torch.float32, torch.float32, torch.float32, False)] * 2
    assert near != loss and near == pytest.approx(loss, rel=2e-3)
    for name, gradient in plain.items():
        assert rounded[name].dtype == torch.float32
        assert (rounded[name] - gradient).norm() <= 0.1 * gradient.norm(), name


@pytest.mark.parametrize("steps", [(1,), (3,)])
def test_stopped_and_resumed_it_ends_on_the_same_bits(steps, tmp_path):
    whole = made(tmp_path)
    whole.fit(None, tmp_path / "whole")
    for step in steps:
        cut = made(tmp_path)
        real = cut._watch
        cut._watch = lambda watch, point, step=step, real=real: stop() if point["step"] == step + 1 else real(watch, point)
        with pytest.raises(KeyboardInterrupt):
            cut.fit(None, tmp_path / "cut")
    cut = made(tmp_path)
    cut.fit(None, tmp_path / "cut")
    assert checkpointing.weights_hash(cut.lm) == checkpointing.weights_hash(whole.lm)
    assert [point["loss"] for point in cut.curve] == [point["loss"] for point in whole.curve]
    assert (cut.rows.reader.read, cut.rows.reader.why) == (whole.rows.reader.read, whole.rows.reader.why)
    assert torch.equal(cut.rows.counts_V, whole.rows.counts_V)


def stop():
    raise KeyboardInterrupt


@pytest.mark.slow
def test_killed_by_the_system_it_ends_on_the_same_bits(tmp_path):
    script = ("import sys; sys.path[:0] = {path!r}\nfrom pathlib import Path\nimport torch; torch.set_num_threads(1)\n"
              "from tests.training.corpora import made\nfolder = Path({folder!r})\nmade(folder, 'mamba1', steps=30).fit(None, folder / 'cut')")
    whole = made(tmp_path, "mamba1", steps=30)
    whole.fit(None, tmp_path / "whole")
    kills = 0
    for goal in (1, 2, 5):
        child = subprocess.Popen([sys.executable, "-c", script.format(path=sys.path, folder=str(tmp_path))], stdout=subprocess.DEVNULL)
        while child.poll() is None and kept(tmp_path / "cut") < goal:
            time.sleep(0.02)
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.wait()
        print(f"killed with {kept(tmp_path / 'cut')} steps kept")
    cut = made(tmp_path, "mamba1", steps=30)
    cut.fit(None, tmp_path / "cut")
    assert kills == 3 and checkpointing.weights_hash(cut.lm) == checkpointing.weights_hash(whole.lm)
    assert [point["loss"] for point in cut.curve] == [point["loss"] for point in whole.curve]


def kept(folder) -> int:
    path = folder / checkpointing.NAME
    return len(torch.load(path, weights_only=True)["curve"]) if path.exists() else 0


def test_a_checkpoint_of_other_text_is_refused(tmp_path):
    made(tmp_path).fit(None, tmp_path / "scratch")
    with pytest.raises(UserError, match="another recipe or another model"):
        made(tmp_path, boundaries=False).fit(None, tmp_path / "scratch")
    for knobs in ({"sets": ["Github"]}, {"weights": {"Github": 2.0}}, {"heldout": 0.3}, {"buffer": 9}, {"n": 7}):
        with pytest.raises(UserError, match="another recipe or another model"):
            made(tmp_path, data_knobs=knobs).fit(None, tmp_path / "scratch")
    other = made(tmp_path)
    other.script = Script(train_bpe(trim_offsets=True, merges=70), 361)
    with pytest.raises(UserError, match="another recipe or another model"):
        other.fit(None, tmp_path / "scratch")
    (tmp_path / "text.jsonl.zst").unlink()
    with pytest.raises(UserError, match="another recipe or another model"):
        made(tmp_path, documents=80).fit(None, tmp_path / "scratch")


def test_the_logbook_is_told_every_step_and_what_was_validated(tmp_path):
    train, told = made(tmp_path), {}
    train.setting = replace(train.setting, log=lambda values, step: told.update({step: values}))
    train.fit(None, tmp_path / "scratch")
    every = {f"training/{key}" for key in ("loss", "lr", "tokens_per_second", "utilisation")}
    assert {step: set(values) for step, values in told.items()} == {1: every, 2: {*every, "training/validation"}, 3: every,
                                                                    4: {*every, "training/validation"}}
    assert told[4]["training/utilisation"] == told[4]["training/tokens_per_second"] * train.flops / train.peak > 0
    speed = train.info["speed"]
    assert speed["utilisation"] == speed["tokens_per_second"] * train.flops / train.peak
    assert not any(p.requires_grad for p in train.lm.parameters())


def test_samples_and_epochs_make_the_steps(tmp_path):
    train = made(tmp_path, steps=None, samples=10, epochs=3)
    assert train.steps == 10 * 3 // FEW["batch"] == 7
    train.fit(None, tmp_path / "scratch")
    assert train.rows.reader.passes == 2 and train.info["num_samples"] == 28


def test_the_recipe_is_what_the_knobs_say(tmp_path):
    knobs = {"steps": 7, "lr": 0.3, "warmup": 5, "weight_decay": 0.2, "clip": 0.4, "checkpoint_every": 6, "eval_every": 3}
    said = {"examine_every" if key == "eval_every" else key: x for key, x in knobs.items()}
    assert made(tmp_path, **knobs)._recipe() == Recipe(**said)


def test_steps_read_on_whatever_the_samples_are(tmp_path):
    train = made(tmp_path, steps=4, samples=5, epochs=3)
    train.fit(None, tmp_path / "scratch")
    assert train.steps == 4 and train.rows.reader.passes == 0 and train.info["num_epochs"] == 1


def test_what_is_validated_on_is_never_trained_on_though_the_text_has_it(tmp_path):
    path = write(tmp_path / "val.jsonl", [*records(90)[:40], {"text": "of its own"}])
    train = made(tmp_path, data_knobs={"validation": str(path)}, examined=None, steps=8)
    train.fit(None, tmp_path / "scratch")
    assert len(train.papers) == 41 and train.rows.reader.why["held out for validation"] >= 40


@pytest.mark.parametrize(("knobs", "said"), [
    ({"warmup": 5}, "method.warmup=5: the rate would never get to method.lr, as there are 4 steps in all"),
    ({"warmup": -1}, "method.warmup=-1: give at least 0"), ({"weight_decay": -0.1}, "method.weight_decay=-0.1: give at least 0"),
    ({"resamples": 0}, "method.resamples=0: give at least 1"), ({"lr": 0.0}, "method.lr=0.0: give more than 0"),
    ({"clip": 0.0}, "method.clip=0.0: give more than 0"), ({"dtype": "bfloat16"}, "dtype=bfloat16: most steps are lost"),
    ({"dtype": "float16"}, "dtype=float16: most steps are lost in weights this short; give dtype=float32 method.autocast=bf16")])
def test_a_setting_that_would_train_nothing_is_refused(knobs, said, tmp_path):
    with pytest.raises(UserError, match=said):
        made(tmp_path, **knobs)


@pytest.mark.parametrize("variant", ["mamba1", "mamba2"])
def test_the_arithmetic_of_a_token_counted_by_torch(variant, tmp_path):
    """torch counts the matrix products of a pass; of the conv and the scan the formula is written out again."""
    from torch.utils.flop_counter import FlopCounterMode

    lm = made(tmp_path, variant).lm
    d, E, N, V, layers = 16, 32, 4, lm.config.padded_vocab, 2
    rank, conv = 1, E if variant == "mamba1" else E + 2 * N
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        lm(torch.zeros(1, 1, dtype=torch.long))
    linear = {"mamba1": 2 * (2 * E * d + (rank + 2 * N) * E + rank * E + d * E), "mamba2": 2 * ((2 * E + 2 * N + 4) * d + d * E)}[variant]
    scan = {"mamba1": 7, "mamba2": 5}[variant] * E * N
    assert counted.get_total_flops() >= 2 * V * d + layers * linear
    assert flops_per_token(lm) == 3 * (2 * V * d + layers * (linear + 2 * 4 * conv + scan))


def test_the_peak_is_a_rate_of_this_machine(monkeypatch):
    assert 1e8 < measured_peak(torch.device("cpu"), torch.float32) < 1e14
    seen, times = [], iter((0.5, 0.125, 0.25, 0.5, 0.5))
    monkeypatch.setattr(speed, "_seconds", lambda x: (seen.append((x.shape, x.dtype)), next(times))[1])
    assert measured_peak(torch.device("cpu"), torch.bfloat16) == 2 * 1024**3 / 0.125
    assert seen == [((1024, 1024), torch.bfloat16)] * 5


def test_the_bar_shows_the_loss_the_speed_and_the_share_of_the_peak():
    from io import StringIO

    from rich.console import Console

    shown = StringIO()
    with progress.bar(4, Console(file=shown, width=200)) as watch:
        watch({"step": 1, "loss": 4.0, "tokens_per_second": 12345.6})
        watch({"step": 3, "loss": 2.0, "tokens_per_second": 2345.6, "utilisation": 0.314})
    assert "3/4 loss 3.960, 2,346 tokens/s, 31% of peak" in shown.getvalue()
