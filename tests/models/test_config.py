"""The config decides every size, and what it cannot mean is refused in one line that names the file."""
import json

import pytest
import torch
from oracles import MAMBA1, MAMBA2, deviation, inner, random_checkpoint

from mamba_mi import UserError, load
from tests.models.spoilt import reconfigure, refused


@pytest.mark.parametrize(("text", "word"), [
    ("", "not valid JSON"), ("{", "not valid JSON"), ("\x00\xff", "not valid JSON"), ("[]", "not an object"),
    ("null", "not an object"), ("{}", "d_model"), ('{"model_type": "llama"}', "llama")], ids=repr)
def test_a_config_that_is_not_one_is_refused(folder, text, word):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused(folder, "config.json", word)


@pytest.mark.parametrize(("change", "word"), [
    ({"d_intermediate": 128}, "d_intermediate"), ({"attn_layer_idx": [1]}, "attn_layer_idx"),
    ({"attn_cfg": {"num_heads": 4}}, "attn_cfg"), ({"rms_norm": False}, "rms_norm"),
    ({"ssm_cfg": {"layer": "Mamba3"}}, "Mamba3"),
    ({"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "D_has_hdim"),
    ({"ssm_cfg": {"layer": "Mamba2", "d_sate": 16}}, "d_sate"), ({"ssm_cfg": {"d_state": 16}}, "missing"),
    ({"ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}}, "rmsnorm")], ids=str)
def test_a_config_of_what_is_not_built_is_refused(folder, change, word):
    reconfigure(folder, **change)
    refused(folder, word)


@pytest.mark.parametrize("change", [
    {"d_model": "wide"}, {"d_model": 0}, {"d_model": 64.5}, {"d_model": None}, {"n_layer": -1},
    {"vocab_size": 0}, {"n_layer": True}, {"pad_vocab_size_multiple": 0}, {"pad_vocab_size_multiple": "16"},
    {"tie_embeddings": "no"}, {"ssm_cfg": "Mamba2"}, {"ssm_cfg": [1]}, {"ssm_cfg": {"layer": ["Mamba2"]}},
    *({"ssm_cfg": {"layer": "Mamba2", **ssm}} for ssm in (
        {"headdim": 0}, {"headdim": 48}, {"headdim": "64"}, {"d_state": 0}, {"d_state": "128"},
        {"d_state": -8}, {"ngroups": 0}, {"ngroups": 3}, {"expand": 1.5}, {"d_conv": 0},
        {"dt_limit": 3}, {"dt_limit": [1]},
        {"dt_limit": [0.1, 0.01]}, {"dt_limit": ["a", "b"]}))],
                         ids=str)
def test_a_size_that_is_none_is_refused_by_the_config(folder, change):
    """Not later, by a tensor that does not fit, and never by a traceback."""
    reconfigure(folder, **change)
    refused(folder, "config.json", next(iter(change)) if "ssm_cfg" not in change else "")


@pytest.mark.parametrize("ssm", [{"dt_rank": 0}, {"dt_rank": "many"}, {"dt_rank": None}, {"d_state": [16]}],
                         ids=str)
def test_a_size_of_mamba1_that_is_none_is_refused_by_the_config(tmp_path, ssm):
    random_checkpoint(tmp_path, MAMBA1, 0)
    reconfigure(tmp_path, ssm_cfg=ssm)
    refused(tmp_path, "config.json")


def test_a_config_of_another_model_names_every_layout_and_a_broken_one_says_what_to_do(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}')
    refused(folder, "no model built here (model_type='llama'); there are d_model, n_layer, vocab_size and ssm_cfg (state-spaces); "
            "model_type mamba or mamba2 (Hugging Face); ", "mamba_moe_layers (BlackMamba)", "layer._name_ hyena (safari)",
            "model_type llama with query_key_dim (DenseSSM)")
    for text in ("[1, 2]", '{"d_model": 12,'):
        (folder / "config.json").write_text(text)
        refused(folder, "download it again, from where the weights came")
    (folder / "config.json").unlink()
    refused(folder, "no config.json, and its tensors alone do not say what they are", "download config.json too")


def test_a_place_that_is_none_says_what_to_give(folder):
    for path, line in ((folder / "pytorch_model.bin", f"a file; give the folder that holds it: model.path={folder}"),
                       ("/nowhere/at/all", "no such folder; give a checkpoint's folder, a model's name or a hub id (org/name)"),
                       ("./nowhere", "no such folder; give a checkpoint's folder, a model's name or a hub id (org/name)")):
        with pytest.raises(UserError) as caught:
            load(path)
        assert str(caught.value) == f"{path}: {line}"
    with pytest.raises(UserError, match=r"moe-mamba and hub ids \(org/name\); did you mean 'tiny-hyena'\?$"):
        load("tiny-heyna")


def test_what_is_not_there_is_refused_with_what_to_do(tmp_path, folder):
    for path in (tmp_path / "nothing", folder / "config.json"):
        with pytest.raises(UserError, match=str(path)) as caught:
            load(path)
        assert "\n" not in str(caught.value)
    (folder / "config.json").unlink()
    refused(folder, "config.json")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(json.dumps(MAMBA2))
    refused(tmp_path / "bare", "pytorch_model.bin", "config.json")
    with pytest.raises(UserError, match="did you mean 'mamba2-130m'"):
        load("mamba2-130")


@pytest.mark.parametrize(("option", "value", "word"), [
    ("backend", "chunk", "did you mean 'chunked'"), ("dtype", "float23", "did you mean 'float32'"),
    ("dtype", torch.int8, "int8"), ("device", "gpu", "cuda"), ("device", "mps", "mps"),
    ("device", "meta", "meta"), ("device", "cuda:99", "cuda:99")])
def test_an_option_that_is_none_is_refused(folder, option, value, word):
    with pytest.raises(UserError, match=word) as caught:
        load(folder, **{option: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tokens_BL", [torch.zeros(3, dtype=torch.long), torch.zeros(1, 0, dtype=torch.long),
                                       torch.zeros(1, 3), torch.tensor([[0, 48]]), torch.tensor([[0, -1]]),
                                       torch.zeros(0, 3, dtype=torch.long),
                                       torch.zeros(1, 3, dtype=torch.bool)],
                         ids=lambda t: f"{t.dtype}{tuple(t.shape)}")
def test_tokens_that_are_none_of_this_models_are_refused(folder, tokens_BL):
    with pytest.raises(UserError) as caught:
        load(folder)(tokens_BL)
    assert "\n" not in str(caught.value)


def test_an_auto_rank_is_the_published_one(tmp_path, tokens):
    weights = random_checkpoint(tmp_path, MAMBA1, 0)
    reconfigure(tmp_path, ssm_cfg={"dt_rank": "auto", "layer": "Mamba1"})
    lm = load(tmp_path, dtype="float64")
    assert lm.config.dt_rank == 2  # a sixteenth of d_model
    assert deviation(lm(tokens(1, 5))[0][0], inner(MAMBA1, weights, tokens(1, 5)[0].tolist()).logits) <= 1e-10
