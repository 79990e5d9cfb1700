"""Falcon-Mamba against transformers' own class and against its equations (oracles/falcon_mamba.py), and its checkpoints."""
import json
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from oracles import deviation
from oracles.falcon_mamba import CONFIGS, FALCON, falcon, falcon_checkpoint, shapes
from safetensors.torch import load_file, save_file
from transformers import FalconMambaConfig, FalconMambaForCausalLM

from mamba_mi import Trace, UserError, cli, load, models
from mamba_mi.config import stream
from mamba_mi.models import checkpoints, falcon_mamba, mamba1
from mamba_mi.models.variants import Meant
from tests.models.spoilt import reconfigure, refused
from tests.models.test_past import in_pieces

LENGTHS = (1, 2, 3, 4, 5, 7, 33, 64, 65, 70)
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By config the checkpoint's folder and its tensors as written."""
    made = {name: tmp_path_factory.mktemp(name) for name in CONFIGS}
    return {name: (folder, falcon_checkpoint(folder, CONFIGS[name])) for name, folder in made.items()}


@pytest.fixture(params=CONFIGS)
def name(request):
    return request.param


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the published one, to be spoilt."""
    return shutil.copytree(folders["published"][0], tmp_path / "spoilt")


def theirs(folder):
    """transformers' own reading of the folder, with nothing missing and nothing over."""
    model, told = FalconMambaForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not (told["missing_keys"] or told["unexpected_keys"] or told["mismatched_keys"])
    return model.eval()


@torch.no_grad()
def test_the_logits_are_transformers_and_those_of_the_equations(folders, name, backend, tokens):
    (folder, weights), model = folders[name], theirs(folders[name][0])
    single, double = (load(folder, backend=backend, dtype=dtype, cached=False) for dtype in ("float32", "float64"))
    for length in LENGTHS:
        for tokens_BL in (tokens(1, length), tokens(3, length, seed=1)):
            got = single(tokens_BL)[0]
            assert deviation(got, model(tokens_BL).logits) <= 1e-5, length
            truth = np.stack([falcon(CONFIGS[name], weights, row).logits for row in tokens_BL[:2].tolist()])
            assert deviation(got[:2], truth) <= 1e-5 and deviation(double(tokens_BL)[0][:2], truth) <= 1e-10, length
    assert deviation(single.float64_logits(tokens_BL)[:2], truth) <= 1e-10


@pytest.mark.parametrize("calm", [True, False], ids=["calm", "wild"])
def test_every_inner_quantity_equals_the_equations(name, backend, calm, tokens, tmp_path):
    """Of B, C and dt those that the scan reads: after the norms."""
    weights, tokens_BL = falcon_checkpoint(tmp_path, CONFIGS[name], 1, calm=calm), tokens(2, 66)
    lm = load(tmp_path, backend=backend, dtype="float64", cached=False)
    with Trace(keep=lm.sites) as trace:
        logits_BLV, _ = lm(tokens_BL, trace=trace)
    for row, token_ids in enumerate(tokens_BL.tolist()):
        truth = falcon(CONFIGS[name], weights, token_ids)
        assert set(truth.values) == set(lm.sites) == set(trace.values)
        assert deviation(logits_BLV[row], truth.logits) <= 1e-10
        for site, value in truth.values.items():
            assert deviation(trace.values[site][row], value) <= 1e-10, site


def test_without_the_norms_it_is_mamba1_and_another_model(folder, tokens):
    lm, tokens_BL = load(folder, dtype="float64", cached=False), tokens(1, 9)
    with_norms = lm(tokens_BL)[0]
    reconfigure(folder, model_type="mamba", expand=2)
    plain = load(folder, dtype="float64", cached=False)
    assert plain.config.variant == "mamba1" and deviation(plain(tokens_BL)[0], with_norms) > 1e-2


def test_a_prompt_split_anywhere_goes_on_as_if_whole(folders, name, backend, tokens):
    lm, tokens_BL = load(folders[name][0], backend=backend, dtype="float64"), tokens(2, 9)
    whole = lm(tokens_BL)[0]
    for cuts in (*((cut,) for cut in range(1, 9)), tuple(range(1, 9))):
        assert deviation(in_pieces(lm, tokens_BL, cuts), whole) <= 1e-10, cuts


@pytest.mark.parametrize(("dtype", "within"), [("bfloat16", 5e-2), ("float16", 6e-3)])
def test_in_a_short_type_the_norms_are_made_in_float32(folders, backend, dtype, within, tokens):
    (folder, weights), tokens_BL = folders["published"], tokens(1, 67)
    lm = load(folder, backend=backend, dtype=dtype)
    with Trace(keep=lm.sites) as trace:
        got = lm(tokens_BL, trace=trace)[0]
    short, long = getattr(torch, dtype), torch.float32
    kept = {site.name: x.dtype for site, x in trace.values.items()}
    assert (kept["conv"], kept["B"], kept["C"], kept["dt"], kept["state"], got.dtype) == (short, short, short, long, long, long)
    assert deviation(got[0], falcon(FALCON, weights, tokens_BL[0].tolist()).logits) <= within
    tiny = lm.layers[0].x_proj.normed(torch.full((1, 1, 4), 2e-4, dtype=short))  # whose square is 0 in float16
    assert tiny.dtype == short and deviation(tiny.float(), torch.full((1, 1, 4), 2e-4 / math.sqrt(4e-8 + 1e-6))) <= 5e-3


def test_training_reaches_every_parameter_and_an_untrained_one_starts_as_mamba1_does(tokens):
    lm, plain = (models.fresh(config, generator=stream(0, "fresh"), dtype="float32") for config in (
        FALCON, {**FALCON, "model_type": "mamba", "expand": 2}))
    assert all(torch.equal(x, plain.state_dict()[n]) for n, x in lm.state_dict().items())
    lm(tokens(2, 9))[0].logsumexp(-1).sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() > 0 for x in lm.parameters())


def test_a_job_takes_more_memory_than_mamba1s_by_what_is_normed(folders):
    config = load(folders["published"][0]).config
    plain = mamba1.Config(32, 3, 45, 45, dt_rank=8)
    assert all(config.floats(9, watched) == plain.floats(9, watched) + 3 * (8 + 2 * 16) for watched in (True, False))


# Checkpoints


@pytest.mark.parametrize("how", [{}, {"max_shard_size": "20KB"}], ids=["whole", "sharded"])
@torch.no_grad()
def test_what_transformers_writes_is_read_and_what_is_written_transformers_reads(name, how, tmp_path, tokens):
    sizes = {key: x for key, x in CONFIGS[name].items() if key not in ("model_type", "architectures", "torch_dtype")}
    torch.manual_seed(0)
    model, tokens_BL = FalconMambaForCausalLM(FalconMambaConfig(**sizes)).eval(), tokens(2, 33)
    model.save_pretrained(tmp_path / "theirs", **how)
    assert (tmp_path / "theirs" / INDEX).is_file() == bool(how)
    lm, want = load(tmp_path / "theirs", cached=False), model(tokens_BL).logits
    assert deviation(lm(tokens_BL)[0], want) <= 1e-5
    models.save(lm, tmp_path / "ours")
    again = load(tmp_path / "ours", cached=False)
    assert again.config == lm.config and torch.equal(again(tokens_BL)[0], lm(tokens_BL)[0])
    assert torch.equal(theirs(tmp_path / "ours")(tokens_BL).logits, want)


def test_the_published_config_makes_the_published_count():
    """It says expand 16 beside an inner width of twice the model's: transformers goes by the width."""
    published = {**FALCON, "hidden_size": 4096, "num_hidden_layers": 64, "vocab_size": 65024, "intermediate_size": 8192,
                 "time_step_rank": 256}
    config = checkpoints.parse_config(published)[1]
    assert (config.d_inner, config.expand, config.dt_rank, config.d_state) == (8192, 2, 256, 16)
    assert (config.tie_embeddings, config.eps, config.mixer_rms_eps, config.variant) == (False, 1e-5, 1e-6, "falcon_mamba")
    count = sum(math.prod(shape) for shape in shapes(published).values())
    assert {each.parameters for each in falcon_mamba.PUBLISHED.values()} == {count} == {7_272_665_088}
    assert FalconMambaConfig(**published).intermediate_size == 8192


def test_what_a_config_leaves_out_is_what_transformers_takes_it_for():
    ours, its = checkpoints.parse_config({"model_type": "falcon_mamba"})[1], FalconMambaConfig()
    assert (ours.d_model, ours.n_layer, ours.padded_vocab) == (its.hidden_size, its.num_hidden_layers, its.vocab_size)
    assert (ours.d_inner, ours.d_state, ours.d_conv, ours.dt_rank) == (
        its.intermediate_size, its.state_size, its.conv_kernel, its.time_step_rank)
    assert (ours.tie_embeddings, ours.eps, ours.mixer_rms_eps) == (
        its.tie_word_embeddings, its.layer_norm_epsilon, its.mixer_rms_eps)
    wider = {"model_type": "falcon_mamba", "expand": 3}
    assert checkpoints.parse_config(wider)[1].d_inner == FalconMambaConfig(expand=3).intermediate_size
    narrow = {"model_type": "falcon_mamba", "intermediate_size": 768}
    assert checkpoints.parse_config(narrow)[1].d_inner == FalconMambaConfig(intermediate_size=768).intermediate_size == 768


@pytest.mark.parametrize(("change", "word"), [
    ({"use_bias": True}, "use_bias=True is not built"), ({"use_conv_bias": False}, "use_conv_bias=False is not built"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu' is not built"), ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"mixer_rms_eps": 0}, "mixer_rms_eps=0 is not a small positive number"), ({"mixer_rms_eps": "1e-6"}, "mixer_rms_eps='1e-6'"),
    ({"layer_norm_epsilon": -1}, "layer_norm_epsilon=-1"), ({"tie_word_embeddings": None}, "tie_word_embeddings=None"),
    ({"intermediate_size": 65}, "intermediate_size=65 is not built, only a multiple of hidden_size=32"),
    ({"intermediate_size": "64"}, "intermediate_size='64' is not a size"), ({"hidden_size": 0}, "hidden_size=0 is not a size"),
    ({"state_size": 0}, "state_size=0 is not a size"), ({"time_step_rank": 1.5}, "time_step_rank=1.5 is not a size"),
    ({"model_type": "falcon_h1"}, "there are")], ids=str)
def test_a_config_that_is_not_built_or_none_is_refused_by_key_and_value(folder, change, word):
    reconfigure(folder, **change)
    refused(folder, "config.json", word)


@pytest.mark.parametrize(("change", "word"), [
    ({"state_size": 8}, "A_log is (64, 16), config says (64, 8)"), ({"time_step_rank": 4}, "x_proj.weight is (40, 64)"),
    ({"intermediate_size": 96}, "A_log is (64, 16), config says (96, 16)"), ({"vocab_size": 46}, "embeddings.weight is (45, 32)"),
    ({"num_hidden_layers": 2}, "unexpected backbone.layers.2."), ({"num_hidden_layers": 4}, "missing backbone.layers.3."),
    ({"tie_word_embeddings": True}, "lm_head.weight differs from the embedding")], ids=str)
def test_a_config_of_another_size_than_its_tensors_is_refused(folder, change, word):
    reconfigure(folder, **change)
    refused(folder, word)


def test_each_missing_tensor_and_shard_and_what_is_over_is_named(folder):
    index = json.loads((folder / INDEX).read_text())
    for key, shard in index["weight_map"].items():
        whole = (folder / shard).read_bytes()
        held = load_file(folder / shard)
        save_file({n: x for n, x in held.items() if n != key}, folder / shard)
        refused(folder, shard, "missing", key)
        (folder / shard).write_bytes(whole)
        lacking = {**index, "weight_map": {n: s for n, s in index["weight_map"].items() if n != key}}
        save_file({n: x for n, x in held.items() if n != key}, folder / shard)
        (folder / INDEX).write_text(json.dumps(lacking))
        refused(folder, INDEX, "missing", key)
        (folder / shard).write_bytes(whole)
    (folder / INDEX).write_text(json.dumps(index))
    # the kernels' dummy weights of the norms are in no published file
    save_file(held | {"backbone.layers.0.mixer.b_layernorm.weight": torch.ones(16)}, folder / shard)
    refused(folder, INDEX, "unexpected backbone.layers.0.mixer.b_layernorm.weight")
    (folder / shard).write_bytes(whole[:-100])
    refused(folder, shard, "truncated", "download it again")
    (folder / shard).unlink()
    refused(folder, INDEX, shard, "not there")


def test_a_checkpoint_of_another_variant_is_refused_in_a_line(folder, published):
    from oracles import MAMBA1

    with pytest.raises(UserError) as caught:
        load(folder, cached=False, meant=Meant("mamba-130m", "mamba1", "model.path=x"))
    assert str(caught.value).startswith("model.path=x holds a falcon_mamba, but model=mamba-130m is a mamba1: ")
    assert str(caught.value).endswith("(falcon-mamba-7b, falcon-mamba-7b-instruct)")
    with pytest.raises(UserError, match="^model.path=x holds a mamba1, but model=falcon-mamba-7b is a falcon_mamba: .*mamba-130m"):
        load(published(MAMBA1)[0], cached=False, meant=Meant("falcon-mamba-7b", "falcon_mamba", "model.path=x"))
    with pytest.raises(UserError, match="model.variant=falcon-mamba: there are .*did you mean 'falcon_mamba'"):
        load(folder, cached=False, meant=Meant("falcon-mamba-7b", "falcon-mamba", "model.path=x"))


@pytest.fixture(scope="module")
def with_words(tmp_path_factory):
    """A small untrained one with the embedded vocabulary, as a checkpoint."""
    folder, tiny = tmp_path_factory.mktemp("words"), load("tiny", device="cpu")
    models.save(models.fresh(checkpoints.published_config(falcon_mamba.SMALL), generator=stream(0, "words"),
                             tokenizer=tiny.tokenizer, embedding_std=1.0), folder)
    return folder


QUICK = {
    "patching": ["method.resamples=200", "method.sites=[dt,B,C,mixed,state]", "dataset.n=4"],
    "info_flow": ["method.resamples=200", "dataset.n=4"], "heatmap": ["method.resamples=200", "dataset.n=4"],
    "construct": ["method.resamples=200", "dataset.n=8"], "compare_paths": ["method.resamples=200", "dataset.n=8"],
    "evaluate": ["method.resamples=200", "method.shuffles=200", "method.prompts=dataset", "method.max_per_category=2", "dataset.n=8"],
    "train": ["debug=fast", "method.steps=4"]}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", QUICK)
def test_every_experiment_of_mamba1_runs(with_words, experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [
        "launch.py", f"experiment={experiment}", "model=falcon-mamba-7b", f"model.path={with_words}",
        f"model.tokenizer={with_words}", "dataset=facts", "dataset.only_correct=false", "device=cpu", f"paths.logs={tmp_path}",
        *QUICK[experiment]])
    cli.main()
    manifest, = tmp_path.glob("*/falcon-mamba-7b/*/manifest.json")
    told = json.loads(manifest.read_text())
    assert told["status"] == "done" and (manifest.parent / "report.html").is_file()
    if experiment == "train":  # what it leaves is read again
        assert load(manifest.parent / "artifacts", cached=False).config == load(with_words, cached=False).config
    else:
        assert told["deviation"]["relative"] < 1e-5
