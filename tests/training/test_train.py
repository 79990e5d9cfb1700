"""The experiment: from untrained weights to effects, a curve, and a model that can be loaded."""
import pytest
import torch

from mamba_mi import models
from mamba_mi.config import UserError
from mamba_mi.experiments import Setting, get, knobs_of, train
from mamba_mi.training.checkpointing import weights_hash
from mamba_mi.training.examination import marks


@pytest.fixture(autouse=True)
def a_short_examination_on_the_way(monkeypatch):
    monkeypatch.setattr(train, "QUICK", 4)


FEW = {"name": "train", "steps": 3, "batch": 2, "length": 48, "examined": 3, "eval_every": 2}


def made(seed=0, **knobs):
    experiment = get("train")
    lm = models.blank("tiny", seed=seed)
    out = experiment(knobs_of(experiment, FEW | knobs), lm, Setting(seed, 1 << 20))
    out.check()
    return out


def test_effects_compare_the_trained_model_with_itself_untrained(tmp_path):
    train = made()
    untrained = {i: score for prompts in train.papers.values() for i, score in marks(train.lm, prompts).items()}
    train.fit(None, tmp_path)
    trained = {i: score for prompts in train.papers.values() for i, score in marks(train.lm, prompts).items()}
    rows = [row for batch in train.batches(()) for row in train.step(batch).to_pylist()]
    assert len(rows) == 2 * sum(map(len, train.papers.values())) == 2 * 3 * 8
    for row in rows:
        column = ("hit", "probability").index(row["metric"])
        assert row["value"] == trained[row["prompt_id"]][column]
        assert row["baseline"] == untrained[row["prompt_id"]][column]
        assert row["prompt_id"] in {p.prompt_id for p in train.papers[row["task"]]}
    assert {row["prompt_id"] for row in rows} == set(train.clusters(()))
    assert untrained != trained


def test_the_kept_model_is_the_trained_one(tmp_path):
    train = made()
    train.fit(None, tmp_path)
    kept = train.artefacts()
    lm = models.load(train.saved, cached=False)
    assert weights_hash(lm) == weights_hash(train.lm) == kept["training_info"]["weights"]
    assert all(isinstance(x, torch.Tensor) for x in kept["model"].values())
    assert [p["step"] for p in kept["training_curve"]] == [1, 2, 3] and "tasks" in kept["training_curve"][1]
    assert kept["training_info"]["tokens"] == 3 * 2 * 48


def test_the_seed_decides_the_weights(tmp_path):
    hashes = set()
    for number, seed in enumerate((0, 0, 1)):
        train = made(seed, steps=1)
        train.fit(None, tmp_path / str(number))
        hashes.add((seed, weights_hash(train.lm)))
    assert len(hashes) == 2


@pytest.mark.parametrize(("knobs", "message"), [
    ({"steps": 0}, "method.steps=0"), ({"length": 20}, "method.length=20"), ({"eval_every": 0}, "method.eval_every=0")])
def test_knobs_that_cannot_be_are_refused(knobs, message):
    with pytest.raises(UserError, match=message):
        made(**knobs)
