"""Hub ids, against a hub of our own on this machine: what is fetched, what is not, and what a refusal says."""
import hashlib
import json
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from oracles import MAMBA2, random_checkpoint, retnet
from oracles.hyena import SIZES, hyena_checkpoint
from safetensors.torch import load_file
from transformers import Mamba2Config, Mamba2ForCausalLM

from mamba_mi import UserError, data, load
from mamba_mi.models import EMBEDDED
from mamba_mi.models.tokenizer import load_tokenizer
from mamba_mi.models.variants import Meant
from tests.pages import Pages

SHA = "0" * 40


class Hub(Pages):
    """The few pages of the hub a download asks for: a repo's files, its commit, each file."""

    def do_GET(self):
        path = self.path.partition("?")[0].strip("/").split("/")
        repo = "/".join(path[1:3] if path[0] != "api" else path[2:4])
        repo = "/".join(path[:2]) if path[0] != "api" else repo
        if repo not in self.server.repos:
            return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        files = self.server.repos[repo]
        if path[0] == "api":
            if "tree" in path:
                return self.answer(200, json.dumps([
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()]).encode())
            return self.answer(200, json.dumps({"id": repo, "sha": SHA, "siblings": [
                {"rfilename": name} for name in files]}).encode())
        if repo in self.server.gated:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        name = "/".join(path[4:])
        if self.command == "GET":
            self.server.fetched.append(name)
        if name not in files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = files[name]
        return self.answer(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": SHA})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub, and nothing but it: `hub.repos[name] = {file: bytes}`, `hub.fetched` are the files it gave out."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repos, server.gated, server.fetched = {}, set(), []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def files_of(folder: Path):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A repo as published: shards, torch's format beside them, its own tokenizer, and what nobody reads."""
    folder = tmp_path_factory.mktemp("repo")
    torch.manual_seed(0)
    Mamba2ForCausalLM(Mamba2Config(hidden_size=32, num_hidden_layers=2, vocab_size=700, num_heads=4, head_dim=16,
                                   n_groups=1, state_size=8)).save_pretrained(folder, max_shard_size="60KB")
    weights = {name: x for path in folder.glob("*.safetensors") for name, x in load_file(path).items()}
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "tokenizer.json").write_bytes((EMBEDDED["tiny"] / "tokenizer.json").read_bytes())
    (folder / "README.md").write_text("a card")
    (folder / "model.onnx").write_bytes(bytes(99))
    return folder


def test_a_hub_id_gives_the_model_of_its_folder_its_tokenizer_and_one_format(hub, sharded):
    hub.repos["some/mamba2-hf"] = files_of(sharded)
    lm, here = load("some/mamba2-hf", cached=False), load(sharded, cached=False)
    tokens_BL = torch.arange(9)[None]
    assert torch.equal(lm(tokens_BL)[0], here(tokens_BL)[0]) and lm.fingerprint == here.fingerprint
    assert lm.name == "mamba2-hf" and lm.tokenizer.vocab_size == here.tokenizer.vocab_size > 100
    shards = sorted(path.name for path in sharded.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert sorted(hub.fetched) == sorted(["config.json", "tokenizer.json", "model.safetensors.index.json", *shards])


def test_a_known_name_and_a_repo_with_torchs_format_alone(hub, tmp_path):
    random_checkpoint(tmp_path / "written", MAMBA2, 0)
    hub.repos["state-spaces/mamba2-130m"] = files_of(tmp_path / "written")
    assert load("mamba2-130m", cached=False).name == "mamba2-130m"
    assert sorted(hub.fetched) == ["config.json", "pytorch_model.bin"]


def test_a_repo_that_is_one_ckpt_without_a_config_is_fetched_and_found_again(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    hyena_checkpoint(tmp_path / "written", SIZES["hyena"], 0)
    hub.repos["Zymrael/hyena-small-150b-tok"] = files_of(tmp_path / "written") | {"README.md": b"a card"}
    lm, here = load("hyena-small-150b", cached=False), load(tmp_path / "written", cached=False)
    assert lm.config == here.config and lm.fingerprint == here.fingerprint and lm.name == "hyena-small-150b"
    assert hub.fetched == [next(name for name in files_of(tmp_path / "written"))]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load("hyena-small-150b", cached=False).fingerprint == lm.fingerprint


def test_several_ckpts_and_weights_without_a_config_are_refused_before_they_are_fetched(hub):
    hub.repos["some/several"] = {"a.ckpt": b"x", "b.ckpt": b"y"}
    line_of("some/several", "a.ckpt, b.ckpt")
    hub.repos["some/weights"] = {"model.safetensors": b"x", "a.ckpt": b"y"}
    line_of("some/weights", "config.json", "a.ckpt")
    assert not hub.fetched


def line_of(repo, *words):
    with pytest.raises(UserError) as caught:
        load(repo, cached=False)
    line = str(caught.value)
    assert "\n" not in line
    for word in (repo, *words):
        assert word in line, f"{word!r} is not in: {line}"


FETCH = "hf download some/model --local-dir DIR"


def test_what_was_fetched_once_is_there_when_the_hub_is_not(hub, sharded, monkeypatch):
    from huggingface_hub import constants

    hub.repos["some/model"] = files_of(sharded)
    once = load("some/model", cached=False).fingerprint
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load("some/model", cached=False).fingerprint == once
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert load("some/model", cached=False).fingerprint == once


def test_offline_the_line_says_that_it_is_and_what_to_do(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line_of("some/model", "HF_HUB_OFFLINE", FETCH, "model.path=DIR")


def test_no_network_no_such_repo_and_a_gated_one_each_have_their_line(hub, sharded, monkeypatch):
    from huggingface_hub import constants

    line_of("some/model", "no such repo", "private", "model.path=DIR")
    hub.repos["some/model"] = files_of(sharded)
    hub.gated.add("some/model")
    line_of("some/model", "gated", "hf auth login", FETCH, "model.path=DIR")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    line_of("some/model", "not to be had from the hub", "Connect", FETCH, "model.path=DIR")


def test_a_tokenizer_or_data_set_of_a_hub_that_does_not_answer_is_one_line_at_once(hub, monkeypatch, capfd):
    from huggingface_hub import constants

    pytest.importorskip("datasets")
    hub.repos["some/kept"] = {"tokenizer.json": (EMBEDDED["tiny"] / "tokenizer.json").read_bytes(),
                              "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
                              "config.json": b'{"model_type": "gpt2"}'}  # transformers wants one
    words = load_tokenizer("some/kept").get_vocab()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}")
    began = time.monotonic()
    assert load_tokenizer("some/kept").get_vocab() == words  # fetched before
    with pytest.raises(UserError, match=r"model.tokenizer=some/words: neither a local file nor to be had from the hub \(ConnectError\)"):
        load_tokenizer("some/words")
    with pytest.raises(UserError, match=r"dataset.hub=some/facts: not to be had \(ConnectError: .*\) and dataset.path is not set"):
        data.load({"name": "counterfact", "hub": "some/facts"}, None, 0)
    assert time.monotonic() - began < 15  # it took 23 s each, and a line every time it tried
    assert "etry" not in "".join(capfd.readouterr()) and constants.HF_HUB_OFFLINE is False


def test_a_repo_of_another_model_is_refused_before_its_weights_are_fetched(hub, sharded):
    files = files_of(sharded)
    hub.repos["some/model"] = files | {"config.json": b'{"model_type": "llama"}'}
    with pytest.raises(UserError, match="llama"):
        load("some/model", cached=False)
    assert not any("safetensors" in name for name in hub.fetched)
    hub.repos["some/data"] = {"README.md": b"", "train.parquet": b""}
    line_of("some/data", "config.json", "train.parquet")


def test_a_repo_of_another_family_is_refused_before_its_weights_are_fetched(hub, sharded):
    hub.repos["some/model"] = files_of(sharded)
    with pytest.raises(UserError, match="model.path=some/model holds a mamba2, but model=tiny-moe is a moe: .*mamba2-130m"):
        load("some/model", cached=False, meant=Meant("tiny-moe", "moe", "model.path=some/model"))
    assert not any("safetensors" in name for name in hub.fetched)
    assert load("some/model", cached=False, meant=Meant("tiny", "mamba2", "model.path=some/model")).name == "model"
    hub.fetched.clear()
    with pytest.raises(UserError, match="model.expert_activation=foo: there are gelu, silu"):
        load("other/model", options={"expert_activation": "foo"}, meant=Meant("tiny-moe", "moe", "model.path=other/model"))


def test_a_repo_whose_config_leaves_sizes_to_its_tensors_is_fetched(hub, tmp_path):
    retnet.random_checkpoint(tmp_path, retnet.RETNET)
    hub.repos["jamesHD2001/DenseMamba-350M"] = files_of(tmp_path)
    assert load("densemamba-350m", cached=False).config == load(tmp_path, cached=False).config


@pytest.mark.parametrize("asked", ["some/mo del", "some/--", "a/.."])
def test_an_id_that_is_none_is_refused(hub, asked):
    line_of(asked, "not a hub id")
