"""The loop: killed and resumed it ends on the same bits; what decays, how the rate goes, what it refuses."""
import operator
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from mamba_mi import models
from mamba_mi.config import UserError, stream
from mamba_mi.data.facts import vocabulary
from mamba_mi.together import Alone
from mamba_mi.training import Recipe, checkpointing, fit, learning_rate, packing, parameter_groups

CONFIG = {"d_model": 16, "n_layer": 2, "vocab_size": len(vocabulary()), "pad_vocab_size_multiple": 16,
          "ssm_cfg": {"layer": "Mamba2", "d_state": 4, "headdim": 8}}
RECIPE = Recipe(steps=12, warmup=3, checkpoint_every=5, examine_every=4)


def minuscule(config=CONFIG):
    return models.fresh(config, generator=stream(0, "initialise"), embedding_std=0.15)


def train(folder, lm=None, recipe=RECIPE, identity="test", **options):
    lm = lm or minuscule()
    read = partial(packing.batch_at, seed=0, batch=2, length=48)
    curve = fit(lm, lambda s: packing.next_token_loss(lm, *read(s)), recipe, Path(folder), identity=identity,
                tokens=96, **options)
    return checkpointing.weights_hash(lm), curve


class Killed(Exception):
    pass


def stop_at(step):
    def watch(point):
        if point["step"] == step:
            raise Killed
    return watch


@pytest.mark.parametrize("steps", [(3,), (5,), (6,), (4, 11)])
def test_stopped_anywhere_and_resumed_it_ends_on_the_same_bits(steps, tmp_path):
    want, curve = train(tmp_path / "whole")
    for step in steps:
        with pytest.raises(Killed):
            train(tmp_path / "cut", watch=stop_at(step))
    got, resumed = train(tmp_path / "cut")
    assert got == want != checkpointing.weights_hash(minuscule())
    same = operator.itemgetter("step", "loss", "lr")
    assert [same(p) for p in resumed] == [same(p) for p in curve]


def test_killed_by_the_system_it_ends_on_the_same_bits(tmp_path):
    script = ("import sys; sys.path[:0] = {path!r}\nimport torch; torch.set_num_threads(1)\n"
              "from tests.training.test_loop import RECIPE, train\nfrom dataclasses import replace\n"
              "print(train({folder!r}, recipe=replace(RECIPE, checkpoint_every=1))[0])")
    want = train(tmp_path / "whole")[0]
    code = script.format(path=sys.path, folder=str(tmp_path / "cut"))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    while child.poll() is None and not (tmp_path / "cut" / checkpointing.NAME).exists():
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    kept = torch.load(tmp_path / "cut" / checkpointing.NAME, weights_only=True)
    assert 1 <= len(kept["curve"]) < RECIPE.steps
    assert train(tmp_path / "cut")[0] == want


def test_a_finished_training_is_not_trained_again(tmp_path):
    want, curve = train(tmp_path)
    assert train(tmp_path, watch=stop_at(12)) == (want, curve)


def test_the_curve_says_what_was_examined_and_when(tmp_path):
    _, curve = train(tmp_path, examine=lambda: {"tasks": {"recall": 0.5}})
    assert [p["step"] for p in curve] == list(range(1, 13))
    assert [p["step"] for p in curve if "tasks" in p] == [4, 8, 12]
    assert curve[-1]["loss"] < curve[0]["loss"] and all(p["tokens_per_second"] > 0 for p in curve)


@pytest.mark.parametrize("change", [{"identity": "another world"}, {"recipe": Recipe(steps=12, warmup=4)}])
def test_a_checkpoint_of_something_else_is_refused(change, tmp_path):
    train(tmp_path)
    with pytest.raises(UserError, match="another recipe or another model; delete it"):
        train(tmp_path, **change)


def test_a_torn_checkpoint_is_refused_and_a_torn_partial_is_not_looked_at(tmp_path):
    want, _ = train(tmp_path)
    (tmp_path / f".{checkpointing.NAME}.partial").write_bytes(b"torn")
    assert train(tmp_path)[0] == want
    whole = (tmp_path / checkpointing.NAME).read_bytes()
    (tmp_path / checkpointing.NAME).write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match="not a checkpoint"):
        train(tmp_path)


def test_a_loss_that_is_not_a_number_stops_the_training(tmp_path):
    lm = minuscule()
    with pytest.raises(UserError, match="lower method.lr"):
        fit(lm, lambda s: lm.embedding.weight.sum() * torch.nan, RECIPE, tmp_path, identity="", tokens=1)


@pytest.mark.parametrize("ssm", [{"layer": "Mamba2", "headdim": 8}, {"layer": "Mamba1"}])
def test_only_the_matrices_that_mix_decay(ssm):
    lm = minuscule(CONFIG | {"ssm_cfg": ssm})
    decayed, kept = parameter_groups(lm, 0.1)
    name_of = {id(p): name for name, p in lm.named_parameters()}
    last = lambda group: {name_of[id(p)].removeprefix("layers.0.") for p in group["params"]  # noqa: E731
                          if not name_of[id(p)].startswith("layers.1.")}
    of_mamba1 = {"x_proj.weight", "dt_proj.weight"} if ssm["layer"] == "Mamba1" else set()
    assert last(decayed) == {"embedding.weight", "in_proj.weight", "out_proj.weight"} | of_mamba1
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(kept["params"]) == len(list(lm.parameters()))


def test_one_step_is_adamws_own_formula(tmp_path):
    """The first step moves every decayed weight by lr (sign(g) + decay w), up to Adam's epsilon."""
    weight = torch.nn.Linear(3, 2, bias=False).double()
    before = weight.weight.detach().clone()
    gradient = torch.tensor([[1.0, -2, 3], [-4, 5, -6]], dtype=torch.float64)
    recipe = Recipe(steps=10, lr=0.1, warmup=1, weight_decay=0.5, clip=1e9)
    with pytest.raises(Killed):
        fit(weight, lambda s: (weight.weight * gradient).sum(), recipe, tmp_path, identity="", tokens=1,
            watch=stop_at(1))
    want = before * (1 - 0.1 * 0.5) - 0.1 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(weight.weight.detach(), want)


@pytest.mark.parametrize(("clip", "norm"), [(0.5, 0.5), (9.0, 5.0)])
def test_a_gradient_is_as_long_as_the_clip_at_most_and_a_loss_is_the_sum_of_its_parts(clip, norm, tmp_path):
    weight = torch.nn.Linear(2, 1, bias=False).double()
    gradient = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    before = weight.weight.detach().clone()
    curve = fit(weight, lambda s: ((weight.weight * gradient).sum() * share for share in (0.25, 0.75)), Recipe(steps=1, clip=clip), tmp_path,
                identity="", tokens=1)
    assert weight.weight.grad.norm().item() == pytest.approx(norm, rel=1e-4)
    assert curve[0]["loss"] == pytest.approx((before * gradient).sum().item())


def test_of_several_processes_each_sees_the_sum_and_the_first_alone_keeps(tmp_path):
    class Twin(Alone):
        """One of two that compute the same."""

        count = 2

        def sum(self, x):
            return 2 * x

        def sum_gradients(self, parameters):
            for p in parameters:
                p.grad *= 2

    twins = [Twin(), Twin()]
    twins[1].rank = 1
    folders = [tmp_path / name for name in ("first", "second")]
    (one, curve), (other, same) = (train(folder, ranks=ranks, watch=[].append) for folder, ranks in zip(folders, twins, strict=True))
    assert one == other and [point["loss"] for point in curve] == [point["loss"] for point in same]
    assert curve[0]["loss"] == 2 * train(tmp_path / "alone")[1][0]["loss"]
    assert [(folder / checkpointing.NAME).exists() for folder in folders] == [True, False]


def test_the_rate_warms_up_to_lr_and_falls_to_the_floor():
    recipe = Recipe(steps=1000, lr=1.0, warmup=100)
    rates = [learning_rate(s, recipe) for s in range(1000)]
    assert rates[0] == pytest.approx(0.01) and rates[:100] == sorted(rates[:100])
    assert rates[99:] == sorted(rates[99:], reverse=True)
    assert learning_rate(500, recipe) == pytest.approx(0.02 + 0.98 * 0.5)
    assert rates[-1] == pytest.approx(0.02, abs=1e-4)
