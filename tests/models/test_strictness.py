"""Weights are loaded strictly: every tensor accounted for, nothing executed, a refusal is one line."""
import math
import os
import pickle

import pytest
import torch
from oracles import MAMBA1, MAMBA2, deviation, inner, random_checkpoint, shapes
from safetensors.torch import save_file

from mamba_mi import UserError, load
from tests.models.spoilt import reconfigure, refused, rewrite


@pytest.mark.parametrize("config", [MAMBA1, MAMBA2], ids=["mamba1", "mamba2"])
def test_each_missing_tensor_is_named_as_the_file_names_it(tmp_path, config):
    weights = random_checkpoint(tmp_path, config, 0)
    for key in shapes(config):
        if key != "lm_head.weight":
            torch.save({k: w for k, w in weights.items() if k != key}, tmp_path / "pytorch_model.bin")
            refused(tmp_path, "pytorch_model.bin", "missing", key)


@pytest.mark.parametrize("key", ["backbone.layers.0.mixer.extra", "backbone.layers.2.norm.weight", "extra",
                                 "backbone.layers.0.mixer.in_proj.bias", "layers.0.in_proj.weight",
                                 "backbone.layers.0.gated_norm.weight", "embedding.weight"])
def test_each_unexpected_tensor_is_named(folder, key):
    """Also one with our name for a tensor instead of the published one: it must not quietly replace it."""
    rewrite(folder, lambda w: w.update({key: torch.zeros(64)}))
    refused(folder, "pytorch_model.bin", "unexpected", key)


@pytest.mark.parametrize("key", ["backbone.embedding.weight", "backbone.layers.1.mixer.A_log",
                                 "backbone.layers.0.mixer.conv1d.weight",
                                 "backbone.layers.0.mixer.norm.weight", "backbone.norm_f.weight"])
def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(folder, key):
    shape = shapes(MAMBA2)[key]
    rewrite(folder, lambda w: w.update({key: torch.zeros(3, *shape)}))
    refused(folder, "pytorch_model.bin", key, str((3, *shape)), str(shape))


@pytest.mark.parametrize("key", ["backbone.embedding.weight", "backbone.layers.1.mixer.in_proj.weight", "backbone.layers.0.mixer.conv1d.weight"])
def test_a_tensor_of_as_many_numbers_in_another_shape_is_named(folder, key):
    rewrite(folder, lambda w: w.update({key: w[key].mT.contiguous()} | ({"lm_head.weight": w[key].mT.contiguous()} if "emb" in key else {})))
    refused(folder, "pytorch_model.bin", key, str((*shapes(MAMBA2)[key][:-2], *shapes(MAMBA2)[key][:-3:-1])), str(shapes(MAMBA2)[key]))


def test_a_model_keeps_its_numbers_when_its_file_is_written_over(folder, tokens):
    lm = load(folder, cached=False)
    before, path = lm(tokens(1, 5))[0], folder / "pytorch_model.bin"
    with path.open("r+b") as file:  # in place: what is read of it later is something else
        file.write(bytes(path.stat().st_size))
    assert torch.equal(lm(tokens(1, 5))[0], before)


def test_a_head_that_is_not_the_embedding_it_should_be_tied_to_is_refused(folder):
    rewrite(folder, lambda w: w.update({"lm_head.weight": w["lm_head.weight"] + 1}))
    refused(folder, "pytorch_model.bin", "lm_head.weight", "tie_embeddings")


def test_an_untied_checkpoint_without_its_head_is_refused(folder):
    reconfigure(folder, tie_embeddings=False)
    rewrite(folder, lambda w: w.pop("lm_head.weight"))
    refused(folder, "missing", "lm_head.weight")


def test_the_tied_head_may_be_left_out_and_tied_is_the_default(published, tmp_path, tokens):
    config = {key: value for key, value in MAMBA2.items() if key != "tie_embeddings"}
    weights = random_checkpoint(tmp_path, config, 0)
    whole = load(tmp_path, cached=False)(tokens(1, 5))[0]
    rewrite(tmp_path, lambda w: w.pop("lm_head.weight"))
    assert torch.equal(load(tmp_path, cached=False)(tokens(1, 5))[0], whole)
    assert deviation(whole[0], inner(config, weights, tokens(1, 5)[0].tolist()).logits) <= 1e-5


def test_a_truncated_file_is_refused_wherever_it_ends(folder):
    path = folder / "pytorch_model.bin"
    whole = path.read_bytes()
    for keep in (0, 1, 2, 3, 4, 60, 1000, len(whole) // 2, len(whole) - 60, len(whole) - 1):
        path.write_bytes(whole[:keep])
        refused(folder, "pytorch_model.bin", "download it again")


def test_of_what_torch_says_of_a_damaged_file_the_first_sentence_is_told(folder):
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-60])
    refused(folder, "archive: failed finding central directory); download it again")
    path.write_bytes(b"PK\x03\x04")  # too short to be mapped: an errno
    with pytest.raises(UserError) as caught:
        load(folder, cached=False)
    assert "Errno" not in str(caught.value) and "()" not in str(caught.value)


@pytest.mark.parametrize("value, said", [(math.nan, "NaN"), (math.inf, "infinity"), (-math.inf, "infinity")])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_number_that_is_none_is_refused_by_file_and_tensor(folder, value, said, kind):
    name = "backbone.layers.1.mixer.out_proj.weight"

    def spoil(weights):
        weights[name] = weights[name].to(kind)
        weights[name][2, 3] = value

    rewrite(folder, spoil)
    refused(folder, f"{folder / 'pytorch_model.bin'}: {name} holds {said}; download it again")


def test_a_file_that_is_no_checkpoint_is_refused(folder):
    path = folder / "pytorch_model.bin"
    for content in (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", b"\x80\x05K\x01.",
                    b"<html>", b"{}", os.urandom(5000), bytes(5000), pickle.dumps({"a": 1})):
        path.write_bytes(content)
        refused(folder, "pytorch_model.bin")


@pytest.mark.parametrize("content", [[], torch.zeros(3), {"model": {"a": torch.zeros(1)}}, {"a": 1}, None,
                                     {0: torch.zeros(3)}, {"backbone": None}], ids=str)
def test_a_file_that_is_no_mapping_of_names_to_tensors_is_refused(folder, content):
    torch.save(content, folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin")


class Touch:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "bare"])
def test_a_pickle_that_would_execute_code_is_refused_and_executes_nothing(folder, tmp_path, zipped):
    sentinel = tmp_path / "executed"
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    if zipped:
        torch.save({**weights, "backbone.extra": Touch(sentinel)}, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(sentinel)))
    refused(folder, "pytorch_model.bin")
    assert not sentinel.exists()
    pickle.loads(pickle.dumps(Touch(sentinel)))
    assert sentinel.exists()  # the trap does spring


def test_a_file_of_torch_before_1_6_is_refused(folder):
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    refused(folder, "pytorch_model.bin", "zip archive")


def test_safetensors_come_first_and_a_broken_one_is_refused(folder, tokens):
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    doubled = {key: w.clone() for key, w in weights.items() if key != "lm_head.weight"}
    doubled["backbone.norm_f.weight"] *= 2
    plain = load(folder, cached=False)(tokens(1, 5))[0]
    save_file(doubled, folder / "model.safetensors")
    torch.testing.assert_close(load(folder, cached=False)(tokens(1, 5))[0], 2 * plain)
    whole = (folder / "model.safetensors").read_bytes()
    for broken in (b"", whole[:7], whole[:200], whole[:-1], b"\xff" * 64):
        (folder / "model.safetensors").write_bytes(broken)
        refused(folder, "model.safetensors", "download it again")
