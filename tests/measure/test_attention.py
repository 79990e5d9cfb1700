"""The attention map of a layer against the definition on the oracle's own quantities, and against what the layer does."""
import numpy as np
import oracles
import pytest
import torch
from oracles import CONFIGS, deviation, inner, random_checkpoint

import mamba_mi
from mamba_mi import Edit, Scale, Site, Trace, UserError, load
from mamba_mi.backends import attention as attention_backend
from mamba_mi.backends import mixing
from mamba_mi.data import Prompt
from tests.small import small, tokens

LAYER, LENGTH = 1, 9


@pytest.fixture(scope="module", params=CONFIGS)
def published(request, tmp_path_factory):
    """A checkpoint, tokens of two prompts, and the true maps of its second layer: B, H or E, L, L."""
    folder, config = tmp_path_factory.mktemp("checkpoint"), CONFIGS[request.param]
    weights, tokens_BL = random_checkpoint(folder, config, 0, calm=False), tokens(2, LENGTH, vocab=45)
    A = -np.exp(weights[f"backbone.layers.{LAYER}.mixer.A_log"].double().numpy())
    passes = [inner(config, weights, row).values for row in tokens_BL.tolist()]
    maps = np.stack([oracles.mixing_matrix(v[LAYER, "dt"], A.reshape(len(A), -1), v[LAYER, "B"], v[LAYER, "C"])
                     for v in passes])
    return load(folder, dtype="float64", cached=False), tokens_BL, maps


def channel_maps(lm, tokens_BL, **how):
    """Every head's or every channel's."""
    return mamba_mi.attention(lm, tokens_BL, LAYER, **how, **(
        {} if lm.config.variant == "mamba2" else {"channels": range(lm.config.d_inner)}))


def test_the_maps_are_the_definition_on_the_recurrences_own_quantities(published):
    lm, tokens_BL, maps = published
    assert deviation(channel_maps(lm, tokens_BL), maps) <= 1e-10


def test_the_map_times_v_and_what_d_adds_is_what_the_scan_gives(published):
    lm, tokens_BL, _ = published
    with Trace(keep=[Site(LAYER, "conv"), Site(LAYER, "scan_out")]) as trace:
        lm(tokens_BL, trace=trace)
    v_BLE = trace.values[Site(LAYER, "conv")][..., :lm.config.d_inner]
    D = lm.layers[LAYER].D
    v_BLHP = v_BLE.unflatten(-1, (len(D), -1))
    y_BHLP = channel_maps(lm, tokens_BL) @ v_BLHP.transpose(1, 2)
    y_BLE = (y_BHLP.transpose(1, 2) + D[:, None] * v_BLHP).flatten(2)
    assert deviation(y_BLE, trace.values[Site(LAYER, "scan_out")]) <= 1e-12


@pytest.mark.parametrize("published", ["mamba1", "mamba1-sizes"], indirect=True)
def test_mamba1s_channels_are_taken_together_a_few_at_a_time(published, monkeypatch):
    lm, tokens_BL, maps = published
    together = {"mean": maps.mean(1, keepdims=True), "norm": np.sqrt((maps**2).mean(1, keepdims=True))}
    made = []
    monkeypatch.setattr(mixing, "BLOCK", 5 * 2 * LENGTH * LENGTH)
    monkeypatch.setattr(mixing, "written_out", lambda *a, plain=mixing.written_out: made.append(plain(*a)) or made[-1])
    for how, truth in together.items():
        assert deviation(mamba_mi.attention(lm, tokens_BL, LAYER, over_channels=how), truth) <= 1e-10
        assert max(M.shape[1] for M in made) == 5
        made.clear()
        assert deviation(mamba_mi.attention(lm, tokens_BL, LAYER, [-1, 2], over_channels=how), truth[:, :, [-1, 2]]) <= 1e-10
        assert max(M.shape[1] for M in made) == 5 * LENGTH // 2
        made.clear()
    assert mamba_mi.attention(lm, tokens_BL, LAYER).shape == (2, 1, LENGTH, LENGTH)


def test_hyenas_channels_are_taken_together_a_few_at_a_time(monkeypatch):
    lm = load("tiny-hyena", dtype="float64", device="cpu", cached=False)
    monkeypatch.setattr(mixing, "BLOCK", 7 * 2 * 5 * 5)
    maps = mamba_mi.attention(lm, tokens(2, 5), 1, channels=range(lm.config.d_model))
    for rows in (None, [-1, 2]):
        some = maps if rows is None else maps[:, :, rows]
        assert deviation(mamba_mi.attention(lm, tokens(2, 5), 1, rows), some.mean(1, keepdim=True)) <= 1e-12
        norm = mamba_mi.attention(lm, tokens(2, 5), 1, rows, over_channels="norm")
        assert deviation(norm, some.square().mean(1, keepdim=True).sqrt()) <= 1e-12


def test_a_layers_maps_are_made_by_the_backend_it_runs_on(monkeypatch):
    lm, asked = small("mamba1").on("attention"), []
    for verb in (attention_backend.mixing, attention_backend.mixing_over_heads):
        monkeypatch.setattr(attention_backend, verb.__name__,
                            lambda *a, verb=verb, **how: asked.append((verb.__name__, how)) or verb(*a, **how))
    mamba_mi.attention(lm, tokens(1, 5), 1, [2], channels=[3])
    mamba_mi.attention(lm, tokens(1, 5), 1, [2], over_channels="norm")
    assert asked == [("mixing", {"rows": [2], "heads": [3]}), ("mixing_over_heads", {"how": "norm", "rows": [2]})]


def test_rows_heads_and_channels_are_to_be_had_alone(published):
    lm, tokens_BL, maps = published
    which = {"heads" if lm.config.variant == "mamba2" else "channels": [0, -1]}
    assert deviation(mamba_mi.attention(lm, tokens_BL, LAYER, [3], **which), maps[:, [0, -1]][:, :, [3]]) <= 1e-10


def test_a_text_a_prompt_and_its_tokens_have_one_map():
    lm = load("tiny")
    text = "Mira works every day as a"
    ids = tuple(lm.tokenizer(text, add_special_tokens=False).input_ids)
    M = mamba_mi.attention(lm, text, 3)
    assert M.shape == (1, lm.config.heads, len(ids), len(ids))
    for same in (torch.tensor([ids]), Prompt("0", text, ids, "", 0)):
        assert torch.equal(mamba_mi.attention(lm, same, 3), M)
    assert torch.equal(mamba_mi.attention(lm, text, -3), M)


def test_the_map_of_an_edited_pass_is_another():
    lm, edit = small("mamba2"), Edit(Site(0, "out"), 2, Scale(0.0))
    clean, edited = (mamba_mi.attention(lm, tokens(1, 5), 1, interventions=i) for i in ((), (edit,)))
    assert torch.equal(clean[:, :, :2], edited[:, :, :2]) and not torch.equal(clean[:, :, 2:], edited[:, :, 2:])


@pytest.mark.parametrize(("variant", "asked", "said"), [
    ("mamba2", {"channels": [0]}, "channels=.*heads="), ("mamba1", {"heads": [0]}, "heads=.*64 channels"),
    ("mamba1", {"over_channels": "max"}, "mean, norm"), ("mamba2", {"layer": 3}, "layer=.*0-2"),
    ("mamba2", {"rows": [5]}, "rows=.*0-4"), ("mamba1", {"channels": [64]}, "channels=.*0-63"), ("mamba1", {"prompt": "a"}, "tokenizer")])
def test_what_is_not_there_is_refused(variant, asked, said):
    with pytest.raises(UserError, match=said) as caught:
        mamba_mi.attention(small(variant), **{"prompt": tokens(1, 5), "layer": 0, **asked})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["tiny", "tiny-mamba1", "tiny-hyena", "tiny-retnet"])
def test_a_row_a_head_or_a_layer_beyond_those_there_are_is_refused_in_every_family(model):
    lm = load(model, device="cpu", cached=False)
    parts, count = lm.config.mixes_by
    for asked, said in (({parts: [0, count]}, f"^{parts}=.0, {count}.: there are 0-{count - 1},"), ({"rows": [5]}, "^rows=.*0-4"),
                        ({"layer": 6}, "^layer=.*0-5")):
        with pytest.raises(UserError, match=said):
            mamba_mi.attention(lm, tokens(1, 5), **{"layer": 0, **asked})
    some = mamba_mi.attention(lm, tokens(1, 5), 0, rows=[-1], **{parts: [count - 1]})
    whole = mamba_mi.attention(lm, tokens(1, 5), 0, **{parts: range(count)})
    torch.testing.assert_close(some, whole[:, [-1]][:, :, [-1]])
