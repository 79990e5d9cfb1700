"""The models that ship: what their training_info.json says is what they are."""
import json

import pytest
import torch

from mamba_mi import models
from mamba_mi.data import facts
from mamba_mi.measure.selection import top_answers
from mamba_mi.models import EMBEDDED
from mamba_mi.training.checkpointing import weights_hash

VARIANTS = {"tiny": "mamba2", "tiny-densemamba": "densemamba", "tiny-hyena": "hyena", "tiny-mamba1": "mamba1", "tiny-moe": "moe",
            "tiny-retnet": "retnet"}
# at least, of facts in words they were never told in
RECALL = dict.fromkeys(VARIANTS, 0.99) | dict.fromkeys(("tiny", "tiny-mamba1"), 0.95)


def info(name: str) -> dict:
    return json.loads((EMBEDDED[name] / "training_info.json").read_text())


def test_each_takes_no_more_than_three_megabytes_beside_the_shared_vocabulary():
    assert set(EMBEDDED) == set(VARIANTS)
    assert all((EMBEDDED[name] / "model.safetensors").stat().st_size <= 3e6 for name in VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_weights_are_those_that_were_examined(name):
    lm = models.load(name, device="cpu", dtype="float32", cached=False)
    assert lm.config.variant == VARIANTS[name] and weights_hash(lm) == info(name)["weights"]
    assert sum(x.numel() for x in lm.parameters()) == info(name)["parameters"]
    assert info(name)["world"] == facts.world().fingerprint


@pytest.mark.parametrize("name", VARIANTS)
def test_facts_in_words_they_were_never_told_in_are_recalled_as_the_examination_says(name):
    lm, told = models.load(name, device="cpu", dtype="float32"), info(name)["trained"]["recall_heldout"]
    assert told["hit"] >= RECALL[name] and told["n"] == 1024
    prompts = facts.load(facts.Knobs(), lm.tokenizer, seed=0).prompts[:256]
    with torch.no_grad():
        answers = top_answers(lm, prompts, 128)
    share = sum(answers[p.prompt_id] == p.target_id for p in prompts) / len(prompts)
    assert share == pytest.approx(told["hit"], abs=0.04)
