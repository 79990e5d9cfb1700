"""The Hugging Face layout as transformers itself writes it, whole and in shards, against transformers' logits."""
import json
import shutil

import pytest
import torch
from oracles import deviation
from safetensors.torch import load_file, save_file
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from mamba_mi import UserError, load, models
from tests.models.spoilt import reconfigure, refused

LENGTHS = (1, 3, 4, 33, 70)
SHARD = "12KB"
SIZES = {
    "mamba": dict(hidden_size=32, num_hidden_layers=2, vocab_size=48),
    "mamba-sizes": dict(hidden_size=32, num_hidden_layers=2, vocab_size=45, state_size=5, conv_kernel=3, expand=3,
                        time_step_rank=3, layer_norm_epsilon=1e-3, tie_word_embeddings=False),
    "mamba2": dict(hidden_size=32, num_hidden_layers=2, vocab_size=48, num_heads=4, head_dim=16, n_groups=1,
                   tie_word_embeddings=True),
    "mamba2-defaults": dict(hidden_size=64, num_hidden_layers=2, vocab_size=45, num_heads=8, head_dim=16),
    "mamba2-sizes": dict(hidden_size=32, num_hidden_layers=3, vocab_size=48, num_heads=4, head_dim=16, n_groups=2,
                         state_size=8, conv_kernel=2, layer_norm_epsilon=1e-3, time_step_limit=(0.01, 0.05)),
}


@pytest.fixture(scope="session", params=SIZES)
def theirs(request):
    """A random model of transformers, no tensor left at a value that hides what it does."""
    kind, sizes = request.param, SIZES[request.param]
    config, model = (Mamba2Config, Mamba2ForCausalLM) if "mamba2" in kind else (MambaConfig, MambaForCausalLM)
    torch.manual_seed(0)
    model = model(config(**sizes, chunk_size=32) if "mamba2" in kind else config(**sizes)).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            x.copy_(spread(name, x))
    return model


def spread(name, x):
    if name.endswith("A_log"):
        return torch.empty_like(x).uniform_(1, 16).log()
    if name.endswith(("norm.weight", "norm_f.weight", "D")):
        return torch.empty_like(x).uniform_(0.5, 1.5)
    if name.endswith(("dt_bias", "dt_proj.bias")):
        return torch.empty_like(x).uniform_(-5, -2)
    return torch.randn_like(x) * (0.3 if x.ndim == 1 or "embedding" in name else x[0].numel() ** -0.5)


@pytest.fixture(scope="session", params=["whole", "sharded"])
def saved(request, theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(folder, **({"max_shard_size": SHARD} if request.param == "sharded" else {}))
    assert (folder / "model.safetensors").is_file() == (request.param == "whole")
    return folder


@torch.no_grad()
def worst(lm, theirs):
    deviations = []
    for length in LENGTHS:
        tokens_BL = torch.randint(0, 45, (2, length), generator=torch.Generator().manual_seed(length))
        deviations.append(deviation(lm(tokens_BL)[0], theirs(tokens_BL).logits))
    return max(deviations)


def test_same_logits_as_the_transformers_that_wrote_it(saved, theirs):
    assert worst(load(saved, cached=False), theirs) <= 1e-5


def test_torch_files_whole_and_in_shards_give_the_same_bits(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size=SHARD)
    logits = [load(folder, cached=False)(torch.arange(7)[None])[0] for folder in (tmp_path / "whole", tmp_path / "sharded")]
    for folder in (tmp_path / "whole", tmp_path / "sharded"):
        as_torch(folder)
        logits.append(load(folder, cached=False)(torch.arange(7)[None])[0])
    assert all(torch.equal(x, logits[0]) for x in logits)


def as_torch(folder):
    """The folder's safetensors rewritten as the pytorch_model files of before."""
    renamed = {}
    for path in folder.glob("*.safetensors"):
        renamed[path.name] = path.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        torch.save(load_file(path), folder / renamed[path.name])
        path.unlink()
    if (index := folder / "model.safetensors.index.json").is_file():
        raw = json.loads(index.read_text())
        raw["weight_map"] = {name: renamed[shard] for name, shard in raw["weight_map"].items()}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(raw))
        index.unlink()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_short_type_in_the_file_is_raised_to_the_one_asked_for(theirs, tmp_path, dtype):
    theirs.save_pretrained(tmp_path)
    weights = {name: x.to(dtype) for name, x in load_file(tmp_path / "model.safetensors").items()}
    save_file(weights, tmp_path / "model.safetensors")
    lm = load(tmp_path, dtype="float64")
    assert {p.dtype for p in lm.parameters()} == {torch.float64}
    assert torch.equal(lm.layers[1].D, weights["backbone.layers.1.mixer.D"].double())


def test_saving_it_writes_the_state_spaces_layout_or_says_why_not(saved, tmp_path):
    lm = load(saved, cached=False)
    if lm.config.eps != 1e-5:
        with pytest.raises(UserError, match="epsilon of 0.001 cannot be written"):
            models.save(lm, tmp_path / "ours")
        return
    models.save(lm, tmp_path / "ours")
    assert "d_model" in json.loads((tmp_path / "ours" / "config.json").read_text())
    again = load(tmp_path / "ours", cached=False)
    assert again.config == lm.config
    assert torch.equal(again(torch.arange(9)[None])[0], lm(torch.arange(9)[None])[0])


@pytest.fixture
def folder(tmp_path):
    """A sharded Mamba-2 to be spoilt."""
    torch.manual_seed(0)
    Mamba2ForCausalLM(Mamba2Config(**SIZES["mamba2"])).save_pretrained(tmp_path / "hf", max_shard_size=SHARD)
    return tmp_path / "hf"


def test_the_fingerprint_is_over_every_shard_and_a_changed_shard_is_another_model(folder):
    first = load(folder)
    shard = sorted(folder.glob("*.safetensors"))[-1]
    weights = load_file(shard)
    save_file({name: x + 1 for name, x in weights.items()}, shard)
    again = load(folder)
    assert again is not first and again.fingerprint != first.fingerprint


def test_every_missing_tensor_is_named_as_the_layout_names_it(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for name, shard in index["weight_map"].items():
        whole = (folder / shard).read_bytes()
        save_file({n: x for n, x in load_file(folder / shard).items() if n != name}, folder / shard)
        refused(folder, shard, "missing", name)
        (folder / shard).write_bytes(whole)
        lacking = {**index, "weight_map": {n: s for n, s in index["weight_map"].items() if n != name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(lacking))
        if shard not in lacking["weight_map"].values():
            refused(folder, "model.safetensors.index.json", "missing", name)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_an_unexpected_and_a_misshapen_tensor_are_named(folder):
    shard = sorted(folder.glob("*.safetensors"))[0]
    weights = load_file(shard)
    save_file(weights | {"backbone.embedding.weight": torch.zeros(48, 32)}, shard)
    refused(folder, "unexpected", "backbone.embedding.weight")
    key = next(iter(weights))
    save_file(weights | {key: torch.zeros(3, 3, 3)}, shard)
    refused(folder, key, "(3, 3, 3)")


@pytest.mark.parametrize("content", [
    "", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": "../b.safetensors"}}',
    '{"weight_map": {"a": 3}}'], ids=repr)
def test_an_index_that_is_none_is_refused(folder, content):
    (folder / "model.safetensors.index.json").write_text(content)
    refused(folder, "model.safetensors.index.json", "weight_map")


def test_a_shard_that_is_not_there_or_holds_anothers_tensor_is_named(folder):
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    save_file(load_file(first) | load_file(second), second)
    refused(folder, second.name, "also in another shard")
    second.unlink()
    refused(folder, "model.safetensors.index.json", second.name, "download")


@pytest.mark.parametrize("change", [
    {"use_bias": True}, {"use_conv_bias": False}, {"hidden_act": "gelu"}, {"rms_norm": False},
    {"quantization_config": {"bits": 4}}, {"num_heads": 3}, {"head_dim": 64}, {"n_groups": 3}, {"expand": 1.5},
    {"state_size": 0}, {"hidden_size": "32"}, {"time_step_limit": 3}, {"time_step_limit": [1, 0]},
    {"time_step_limit": None}, {"layer_norm_epsilon": 0}, {"layer_norm_epsilon": "small"}, {"residual_in_fp32": "no"},
    {"tie_word_embeddings": None}, {"model_type": "zamba2"}, {"intermediate_size": 65}], ids=str)
def test_a_config_that_is_not_built_or_none_is_refused_by_key_and_value(folder, change):
    (key, value), = change.items()
    reconfigure(folder, **change)
    refused(folder, "config.json", {"head_dim": "num_heads", "n_groups": "groups"}.get(key, key))


@pytest.mark.parametrize("written", [[0.0, float("inf")], [0.0, "Infinity"], [0, {"__float__": "Infinity"}]], ids=str)
def test_a_limit_without_end_is_read_however_it_is_written(folder, written):
    reconfigure(folder, time_step_limit=written)
    assert load(folder, cached=False).config.dt_limit == (0.0, float("inf"))


def test_a_converted_checkpoint_that_kept_the_first_layouts_keys_is_still_hugging_faces(folder):
    plain = load(folder, cached=False)
    reconfigure(folder, d_model=32, n_layer=2, ssm_cfg={"layer": "Mamba2"}, pad_vocab_size_multiple=8, rms_norm=True,
                fused_add_norm=True, norm_before_gate=True)  # which transformers never reads
    assert torch.equal(load(folder, cached=False)(torch.arange(5)[None])[0], plain(torch.arange(5)[None])[0])


def test_what_a_config_leaves_out_is_what_transformers_takes_it_for(tmp_path):
    for kind, config in (("mamba", MambaConfig()), ("mamba2", Mamba2Config())):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps({"model_type": kind}))
        ours = models.checkpoints.read_config(tmp_path / kind).config
        assert (ours.d_model, ours.n_layer, ours.padded_vocab) == (config.hidden_size, config.num_hidden_layers, config.vocab_size)
        assert (ours.d_state, ours.d_conv, ours.expand) == (config.state_size, config.conv_kernel, config.expand)
        assert (ours.tie_embeddings, ours.eps) == (config.tie_word_embeddings, config.layer_norm_epsilon)
        if kind == "mamba":
            assert ours.dt_rank == config.time_step_rank
        else:
            assert (ours.headdim, ours.ngroups, ours.heads) == (config.head_dim, config.n_groups, config.num_heads)
            assert ours.dt_limit == tuple(config.time_step_limit)


def test_the_state_spaces_layout_in_shards_is_read_too(published, tmp_path):
    from oracles import MAMBA2

    folder, weights = published(MAMBA2)
    shutil.copy(folder / "config.json", tmp_path)
    names, of = list(weights), {}
    for i, part in enumerate((names[:5], names[5:])):
        of |= dict.fromkeys(part, f"pytorch_model-{i}.bin")
        torch.save({name: weights[name] for name in part}, tmp_path / f"pytorch_model-{i}.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": of}))
    tokens_BL = torch.arange(9)[None]
    assert torch.equal(load(tmp_path, cached=False)(tokens_BL)[0], load(folder, cached=False)(tokens_BL)[0])
