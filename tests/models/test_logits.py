"""The logits against transformers' own classes holding the same weights."""
import numpy as np
import pytest
import torch
from oracles import CONFIGS, MAMBA1, MAMBA2, deviation, inner, with_ssm
from oracles.hugging_face import transformers_model

from mamba_mi import load

LENGTHS = (1, 2, 3, 4, 5, 7, 31, 33, 64, 65, 70, 130)  # around the conv's width and off the chunk's size
WIDTH = 45


def logits_of_theirs(model, tokens_BL):
    with torch.no_grad():
        return model(tokens_BL).logits[..., :WIDTH]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("config", [MAMBA1, MAMBA2], ids=["mamba1", "mamba2"])
def test_same_logits_as_transformers(published, config, backend, rows, tokens):
    folder, weights = published({**config, "n_layer": 3})
    theirs, lm = transformers_model({**config, "n_layer": 3}, weights), load(folder, backend=backend)
    for length in LENGTHS:
        tokens_BL = tokens(rows, length, seed=length)
        assert deviation(lm(tokens_BL)[0][..., :WIDTH], logits_of_theirs(theirs, tokens_BL)) <= 1e-5, length


def test_same_logits_as_transformers_for_an_untied_head(published, backend, tokens):
    config = {**MAMBA2, "tie_embeddings": False}
    folder, weights = published(config)
    lm = load(folder, backend=backend)
    tokens_BL = tokens(2, 9)
    theirs = logits_of_theirs(transformers_model(config, weights), tokens_BL)
    assert deviation(lm(tokens_BL)[0][..., :WIDTH], theirs) <= 1e-5
    tied = transformers_model({**config, "tie_embeddings": True},
                              {**weights, "lm_head.weight": weights["backbone.embedding.weight"]})
    assert deviation(logits_of_theirs(tied, tokens_BL), theirs) > 0.1  # the head does matter here


@pytest.fixture(scope="session", params=[MAMBA1, with_ssm(MAMBA2, headdim=32, d_state=16)],
                ids=["mamba1", "mamba2"])
def deep(request, published):
    """Two wild models of 24 layers: folder, tokens, the true logits, how far transformers is from them."""
    config, made = {**request.param, "n_layer": 24}, []
    for seed in range(2):
        folder, weights = published(config, seed=seed, calm=False)
        tokens_BL = torch.randint(0, WIDTH, (4, 20), generator=torch.Generator().manual_seed(seed))
        truth = np.stack([inner(config, weights, row).logits[:, :WIDTH] for row in tokens_BL.tolist()])
        theirs = logits_of_theirs(transformers_model(config, weights), tokens_BL)
        made.append((folder, tokens_BL, truth, worst_at_each_position(theirs, truth)))
    return made


def worst_at_each_position(logits_BLV, truth_BLV):
    return np.abs(logits_BLV.double().numpy() - truth_BLV).max(-1) / np.abs(truth_BLV).max()


def test_a_deep_wild_model_is_as_near_to_float64_as_transformers_is(deep, backend):
    """Random layers amplify rounding, so neither is near 1e-5; ours may not be twice as far off as theirs.

    Root mean square over positions: the single worst one is a matter of luck.
    """
    ours = [worst_at_each_position(load(folder, backend=backend)(tokens_BL)[0][..., :WIDTH], truth)
            for folder, tokens_BL, truth, _ in deep]
    theirs = [deviations for *_, deviations in deep]
    assert np.sqrt(np.mean(np.square(ours))) <= 2 * np.sqrt(np.mean(np.square(theirs)))


def test_rows_that_pad_the_vocabulary_get_no_probability(published, variant, backend, tokens):
    folder, weights = published(CONFIGS[variant])
    logits_BLV = load(folder, backend=backend)(tokens(2, 5))[0]
    assert logits_BLV.shape[-1] == len(weights["backbone.embedding.weight"]) > WIDTH
    assert torch.isfinite(logits_BLV[..., :WIDTH]).all()
    assert (logits_BLV[..., WIDTH:] == -torch.inf).all()
    assert torch.equal(logits_BLV.softmax(-1)[..., WIDTH:], torch.zeros_like(logits_BLV[..., WIDTH:]))
