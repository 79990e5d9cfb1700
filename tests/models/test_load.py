"""What loading gives: the checkpoint's numbers in the type asked for, kept while its files stay the same."""
import torch
from oracles import CONFIGS, MAMBA1, random_checkpoint

from mamba_mi import load, models
from tests.models.spoilt import reconfigure


def test_mixed_types_are_raised_to_the_one_asked_for(published, variant):
    folder, weights = published(CONFIGS[variant])
    lm = load(folder, dtype="float64")
    assert {p.dtype for p in lm.parameters()} == {torch.float64}
    if variant.startswith("mamba2"):
        assert {w.dtype for w in weights.values()} == {torch.float16, torch.float32}
    assert torch.equal(lm.embedding.weight, weights["backbone.embedding.weight"].double())


def test_a_model_is_kept_until_its_files_change(folder, tokens):
    first = load(folder)
    assert load(folder) is first
    assert load(folder, dtype="float64") is not first
    again = load(folder)
    reconfigure(folder, ssm_cfg={"layer": "Mamba2", "dt_limit": [0.5, 1.0]})
    changed = load(folder)
    assert changed.config.dt_limit == (0.5, 1.0)
    assert not torch.equal(changed(tokens(1, 5))[0], again(tokens(1, 5))[0])
    assert load(folder, cached=False) is not changed


def test_a_model_saved_and_loaded_gives_the_same_logits_to_the_bit(published, variant, tmp_path, tokens):
    lm = load(published(CONFIGS[variant])[0])
    models.save(lm, tmp_path)
    again = load(tmp_path)
    assert again.config == lm.config
    assert torch.equal(again(tokens(2, 9))[0], lm(tokens(2, 9))[0])


def test_a_saved_model_of_another_padding_loads_again(tmp_path, tokens):
    config = {**MAMBA1, "vocab_size": 41, "pad_vocab_size_multiple": 10, "tie_embeddings": False}
    random_checkpoint(tmp_path / "written", config, 0)
    lm = load(tmp_path / "written")
    models.save(lm, tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved")(tokens(1, 4) % 41)[0], lm(tokens(1, 4) % 41)[0])


def test_reading_a_model_needs_no_gradient_and_leaves_no_training_mode(folder):
    lm = load(folder)
    assert not lm.training and not any(p.requires_grad for p in lm.parameters())
