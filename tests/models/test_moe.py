"""Mamba-MoE: checkpoints in BlackMamba's layout, each quantity against its equations, and where its traps lie."""
import shutil

import numpy as np
import pytest
import torch
from oracles import deviation
from oracles.moe import CODES, MOE_CONFIGS, PUBLISHED, least_margin, moe, moe_checkpoint, moe_shapes, silu

from mamba_mi import Ablate, Edit, Replace, Scale, Site, Trace, UserError, load, models
from mamba_mi.config import stream
from mamba_mi.models import checkpoints, variants
from mamba_mi.models import moe as moe_module
from mamba_mi.models.experts import Experts, imbalance
from mamba_mi.models.moe import BALANCE
from mamba_mi.trace import NeverReached
from mamba_mi.training import packing
from tests.models.spoilt import reconfigure, refused
from tests.models.test_past import in_pieces

LENGTHS = (1, 2, 3, 5, 7, 33, 64, 65, 70)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {name: tmp_path_factory.mktemp(name) for name in MOE_CONFIGS}
    return {name: (folder, moe_checkpoint(folder, MOE_CONFIGS[name])) for name, folder in made.items()}


@pytest.fixture(params=MOE_CONFIGS)
def name(request):
    return request.param


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the published one, to be spoilt."""
    return shutil.copytree(folders["published"][0], tmp_path / "spoilt")


@pytest.mark.parametrize(("dtype", "within"), [("float32", 1e-5), ("float64", 1e-10)])
def test_the_logits_are_those_of_the_equations(folders, name, backend, dtype, within, tokens):
    lm, weights = load(folders[name][0], backend=backend, dtype=dtype), folders[name][1]
    compared = 0
    for length in LENGTHS:
        for tokens_BL in (tokens(1, length), tokens(3, length, seed=1)):
            truth = [moe(MOE_CONFIGS[name], weights, row) for row in tokens_BL.tolist()]
            sure = [row for row, inner in enumerate(truth) if least_margin(inner) > 1e-4]
            compared += len(sure)
            if sure:
                want = np.stack([truth[row].logits for row in sure])
                assert deviation(lm(tokens_BL)[0][sure], want) <= within, length
    assert compared >= 0.8 * 4 * len(LENGTHS)


def test_every_inner_quantity_equals_the_equations(folders, name, backend, tokens):
    (folder, weights), tokens_BL = folders[name], tokens(2, 66)
    lm = load(folder, backend=backend, dtype="float64")
    with Trace(keep=lm.sites) as trace:
        logits_BLV, _ = lm(tokens_BL, trace=trace)
    for row, token_ids in enumerate(tokens_BL.tolist()):
        truth = moe(MOE_CONFIGS[name], weights, token_ids)
        assert least_margin(truth) > 1e-10 and set(truth.values) == set(lm.sites) == set(trace.values)
        assert deviation(logits_BLV[row], truth.logits) <= 1e-10
        for site, value in truth.values.items():
            assert deviation(trace.values[site][row], value) <= 1e-10, site
    assert all(x.dtype == torch.int64 for site, x in trace.values.items() if site.name == "choice")
    order = list(lm.sites)
    assert [site for site in trace.counts if site.name not in ("write", "state")] == [
        site for site in order if site.name not in ("write", "state")]  # met in the order that SITES has


def test_every_expert_is_used_and_tokens_of_a_prompt_have_several(folders, name, tokens):
    lm = load(folders[name][0])
    sites = [site for site in lm.sites if site.name == "choice"]
    with Trace(keep=sites) as trace:
        lm(tokens(8, 70), trace=trace)
    for site in sites:
        experts = lm.layers[site.layer].moe.router.out_features
        assert len(trace.values[site].unique()) > experts / 2 and experts == int(lm.config.pattern[site.layer][-1])


def test_the_float64_logits_a_run_is_measured_against_equal_the_equations(folders, name, tokens):
    ours = load(folders[name][0], dtype="float32").float64_logits(tokens(2, 30))
    for row, token_ids in enumerate(tokens(2, 30).tolist()):
        assert deviation(ours[row], moe(MOE_CONFIGS[name], folders[name][1], token_ids).logits) <= 1e-10


def test_a_prompt_split_anywhere_goes_on_as_if_whole(folders, name, backend, tokens):
    lm, tokens_BL = load(folders[name][0], backend=backend, dtype="float64"), tokens(2, 9)
    for cuts in (*((cut,) for cut in range(1, 9)), (1, 3, 4, 8)):
        assert deviation(in_pieces(lm, tokens_BL, cuts), lm(tokens_BL)[0]) <= 1e-10, cuts
    prompt_1L, ends_BL = tokens(1, 6), tokens(3, 4, seed=1)
    whole = lm(torch.cat([prompt_1L.expand(3, -1), ends_BL], dim=1))[0][:, 6:]
    assert deviation(lm(ends_BL, past=lm(prompt_1L)[1])[0], whole) <= 1e-10


def test_greedy_generation_is_the_argmax_of_whole_passes(folders, name, tokens):
    lm, tokens_BL = load(folders[name][0], dtype="float64"), tokens(2, 5)
    new_BL = lm.generate(tokens_BL, 6)
    for _ in range(6):
        tokens_BL = torch.cat([tokens_BL, lm(tokens_BL)[0][:, -1:].argmax(-1)], dim=1)
    assert torch.equal(new_BL, tokens_BL[:, 5:])


# The traps


def test_experts_run_gelu_though_the_config_says_swiglu_and_silu_when_asked(folders, tokens):
    folder, weights = folders["published"]
    tokens_BL = tokens(1, 9)
    truth = {name: moe(PUBLISHED, weights, tokens_BL[0].tolist(), **how).logits
             for name, how in (("gelu", {}), ("silu", {"activation": silu}))}
    assert deviation(truth["silu"], truth["gelu"]) > 1e-3
    for options, want in (({}, "gelu"), ({"expert_activation": None}, "gelu"), ({"expert_activation": "silu"}, "silu")):
        lm = load(folder, dtype="float64", options=options, cached=False)
        assert deviation(lm(tokens_BL)[0][0], truth[want]) <= 1e-10
        assert want.upper() in variants.about(lm.config)
    with pytest.raises(UserError, match="expert_activation=gelo: there are gelu, silu; did you mean 'gelu'"):
        load(folder, options={"expert_activation": "gelo"}, cached=False)


def test_a_router_that_is_sure_beyond_rounding_sends_to_the_first_of_those_it_is_sure_of(folders, tokens):
    """Sigmoids that round to 1 are equal, and the published code takes the first of equals, not the larger logit."""
    lm = load(folders["published"][0], dtype="float32")
    sure = torch.tensor([0.0, 30, 0, 40, 0, 0, 0, 0])
    with Trace(keep=[Site(1, "choice"), Site(1, "margin")],
               interventions=[Edit(Site(1, "router"), 2, Replace(sure.expand(1, 1, 8)))]) as trace:
        lm(tokens(1, 4), trace=trace)
    assert trace.values[Site(1, "choice")][0, 2, 0] == 1 and trace.values[Site(1, "margin")][0, 2, 0] == 0


def test_the_routers_own_bias_and_the_final_norms_bias_and_mean_matter(folder, tokens):
    lm, tokens_BL = load(folder, dtype="float64", cached=False), tokens(1, 30)
    clean = lm(tokens_BL)[0]
    for parameter in (lm.layers[1].moe.router.bias, lm.norm_f.bias):
        kept = parameter.clone()
        parameter.zero_()
        assert deviation(lm(tokens_BL)[0], clean) > 1e-3
        parameter.copy_(kept)
    shifted = lm.norm_f(torch.randn(1, 1, 32, dtype=torch.float64, generator=stream(0, "x")) + 3)
    assert shifted.isfinite().all() and torch.equal(lm(tokens_BL)[0], clean)


def test_both_norms_of_a_layer_side_by_side_read_the_stream_itself(folders, tokens):
    lm = load(folders["codes"][0], dtype="float64")
    with Trace(keep=[Site(1, "resid"), Site(1, "normed"), Site(1, "normed_moe")]) as trace:
        lm(tokens(1, 5), trace=trace)
    resid, normed, beside = trace.values.values()
    assert deviation(normed, lm.layers[1].norm(resid)) <= 1e-12 and deviation(beside, lm.layers[1].norm_moe(resid)) <= 1e-12


def test_a_token_sent_to_another_expert_comes_back_with_that_experts_probability(folders, name, backend, tokens):
    (folder, weights), tokens_BL = folders[name], tokens(2, 7)
    lm = load(folder, backend=backend, dtype="float64")
    for layer in (layer.layer for layer in lm.layers if "choice" in layer.SITES):
        experts = lm.layers[layer].moe.router.out_features
        edit = Edit(Site(layer, "choice"), (2, 5), Replace(torch.tensor([[[0], [experts - 1]]] * 2)))
        with Trace(interventions=[edit]) as trace:
            got = lm(tokens_BL, trace=trace)[0]
        for row, token_ids in enumerate(tokens_BL.tolist()):
            want = moe(MOE_CONFIGS[name], weights, token_ids, sent={(layer, 2): 0, (layer, 5): experts - 1})
            assert deviation(got[row], want.logits) <= 1e-10


@pytest.mark.parametrize(("edit", "message"), [
    (Edit(Site(1, "choice"), 0, Replace(torch.tensor([[[8]]]))), "edit at site 1.choice: expert 8; there are experts 0-7"),
    (Edit(Site(1, "choice"), 0, Replace(torch.tensor([[[-1]]]))), "edit at site 1.choice: expert -1; there are"),
    (Edit(Site(1, "margin"), 0, Scale(2.0)), "edit at site 1.margin: it can only be read"),
])
def test_what_cannot_be_edited_says_so(folders, edit, message, tokens):
    with pytest.raises(UserError, match=message):
        load(folders["published"][0])(tokens(1, 3), trace=Trace(interventions=[edit]))


def test_a_site_of_experts_in_a_layer_of_mamba_is_never_reached(folders, tokens):
    lm = load(folders["published"][0])
    with pytest.raises(NeverReached, match="0.router"), Trace(interventions=[Edit(Site(0, "router"), 0, Ablate())]) as trace:
        lm(tokens(1, 3), trace=trace)


def test_each_expert_runs_once_on_its_own_tokens_alone(folders, tokens, monkeypatch):
    lm, rows = load(folders["published"][0]), []
    for expert in lm.layers[1].moe.local_experts:
        hidden = expert.hidden
        monkeypatch.setattr(expert, "hidden", lambda n, hidden=hidden: rows.append(len(n)) or hidden(n))
    for prompts, length in ((3, 20), (1, 3)):
        rows.clear()
        lm(tokens(prompts, length))
        assert sum(rows) == prompts * length and len(rows) <= 8 and 0 not in rows


def test_a_linear_map_reads_each_site_it_is_said_to(folders):
    """Moving a site within the null space of its reader changes nothing that follows but by the skip."""
    lm = load(folders["codes"][0], dtype="float64")
    shapes = {(layer.layer, name): layer.reader(name) for layer in lm.layers for name in layer.SITES}
    W = {site: tuple(x.shape) for site, x in shapes.items() if x is not None}
    assert W[1, "resid"] == (128 + 4 + 4 * 48, 32) and W[1, "normed"] == (128, 32) and W[1, "normed_moe"] == (196, 32)
    assert W[0, "mlp_hidden"] == (32, 24) and W[2, "resid"] == (48, 32) and W[4, "normed"] == (3 + 3 * 48, 32)
    assert W[3, "gated"] == (32, 64) and (4, "router") not in W and (4, "expert_out") not in W
    layer = lm.layers[4]
    torch.testing.assert_close(layer.reader("resid"), layer.reader("normed") * layer.norm.weight)
    torch.testing.assert_close(layer.reader("normed")[:3], layer.moe.router.weight)


# Checkpoints


def test_the_tensors_and_the_types_are_those_of_the_file(folders, name):
    config, lm = MOE_CONFIGS[name], load(folders[name][0], dtype="bfloat16", cached=False)
    assert {moe_module.their_name(n, lm.config) for n in lm.state_dict()} == set(moe_shapes(config))
    wide = {n for n, x in lm.named_parameters() if x.dtype == torch.float32}
    assert all(any(part in n for part in ("norm", "router", "A_log", ".D", "dt_proj.bias")) for n in wide)
    assert {n for n, _ in lm.named_parameters() if "norm" in n or "router" in n} <= wide
    assert lm(torch.tensor([[1, 2, 3]]))[0].dtype == torch.float32


def test_a_safetensors_file_holds_the_same(folders, tmp_path, tokens):
    from safetensors.torch import save_file

    folder, weights = folders["published"]
    save_file(dict(weights), tmp_path / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    assert torch.equal(load(tmp_path)(tokens(1, 5))[0], load(folder)(tokens(1, 5))[0])


@pytest.mark.parametrize(("changes", "words"), [
    ({"mamba_moe_layers": ["r", "8", "r"]}, ["list of 4 codes"]), ({"mamba_moe_layers": "r8r8"}, ["list of 4 codes"]),
    ({"mamba_moe_layers": ["r", "8", "r", "16"]}, ["layer 3 is '16'", '"2" to "9"']),
    ({"mamba_moe_layers": ["r", "0", "r", "8"]}, ["layer 1 is '0'"]), ({"mamba_moe_layers": ["a", "8", "r", "8"]}, ["layer 0 is 'a'"]),
    ({"mamba_moe_layers": ["r", 8, "r", "8"]}, ["layer 1 is 8"]), ({"mamba_moe_layers": ["r", "8r", "r", "8"]}, ["layer 1 is '8r'"]),
    ({"add_bias_linear": True}, ["add_bias_linear=True is not built"]), ({"bias": True}, ["bias=True is not built"]),
    ({"rms_norm": False}, ["rms_norm=False is not built"]), ({"fused_add_norm": True}, ["fused_add_norm=True is not built"]),
    ({"layernorm_epsilon": 1e-6}, ["layernorm_epsilon=1e-06 is not built"]),
    ({"routing_mode": "top2"}, ["routing_mode='top2' is not built; there are sinkhorn, top1"]),
    ({"expert_activation": "relu"}, ["there are gelu, silu"]), ({"swiglu": 1}, ["swiglu=1 is neither"]),
    ({"ffn_hidden_size": 0}, ["ffn_hidden_size=0 is not a size"]), ({"hidden_size": "32"}, ["hidden_size='32' is not a size"]),
    ({"ffn_hidden_size": 20}, ["linear_fc1.weight is (48, 32), config says (40, 32)"]),
    ({"num_layers": 5, "mamba_moe_layers": ["r", "8", "r", "8", "1"]}, ["missing decoder.layers.4.mixer.linear_fc1.weight"]),
    ({"mamba_moe_layers": ["r", "8", "r", "7"]}, ["unexpected decoder.layers.3.mixer.local_experts.7.linear_fc1.weight"]),
], ids=str)
def test_a_config_that_is_not_built_or_does_not_fit_is_refused(folder, changes, words):
    reconfigure(folder, **changes)
    refused(folder, *words)


def test_a_config_without_its_sizes_is_refused(folder):
    (folder / "config.json").write_text('{"mamba_moe_layers": ["r"], "num_layers": 1}')
    refused(folder, "no hidden_size, vocab_size, state_size")


def test_missing_unexpected_and_nested_tensors_are_refused(folder):
    path = folder / "pytorch_model.bin"
    whole = torch.load(path, weights_only=True)
    lost = {key: w for key, w in whole["model"].items() if key != "decoder.layers.1.mixer.router.bias"}
    for content, words in (({"model": lost}, ["missing decoder.layers.1.mixer.router.bias"]),
                           ({"model": {**whole["model"], "extra": torch.zeros(1)}}, ["unexpected extra"]),
                           ({"model": {"model": whole["model"]}}, ["expected a mapping of names to tensors"]),
                           ({"model": whole["model"], "step": 1}, ["expected a mapping of names to tensors"])):
        torch.save(content, path)
        refused(folder, "pytorch_model.bin", *words)
    torch.save(whole, path)
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, "pytorch_model.bin", "download it again")


def test_an_untrained_model_is_filled_saved_and_read_back_to_the_bit(name, tmp_path, tokens):
    made = [models.fresh(MOE_CONFIGS[name], generator=stream(seed, "fresh"), dtype="float32").eval().requires_grad_(False)
            for seed in (0, 0, 1)]
    assert all(x.isfinite().all() and (x != 0).any() or n.endswith("bias") for n, x in made[0].state_dict().items())
    assert all(torch.equal(x, made[1].state_dict()[n]) for n, x in made[0].state_dict().items())
    assert not torch.equal(made[0].layers[0].in_proj.weight, made[2].layers[0].in_proj.weight)
    models.save(made[0], tmp_path)
    back = load(tmp_path, cached=False)
    assert back.config == made[0].config and list(back.state_dict()) == list(made[0].state_dict())
    assert all(torch.equal(x, made[0].state_dict()[n]) for n, x in back.state_dict().items())
    assert torch.equal(back(tokens(2, 9))[0], made[0](tokens(2, 9))[0])


def test_untrained_experts_start_alike_in_size_and_their_router_undecided():
    lm = models.fresh({**CODES, "hidden_size": 256, "ffn_hidden_size": 400}, generator=stream(0, "fresh")).requires_grad_(False)
    fed = [layer.moe for layer in lm.layers if hasattr(layer, "moe")]
    for net in (net for moe_ in fed for net in getattr(moe_, "local_experts", [moe_])):
        assert float(net.linear_fc1.weight.std()) == pytest.approx((3 * 256) ** -0.5, rel=0.02)
        assert float(net.linear_fc2.weight.std()) == pytest.approx((3 * 400 * 6) ** -0.5, rel=0.02)
    for router in (moe_.router for moe_ in fed if hasattr(moe_, "router")):
        assert float(router.weight.abs().max()) == pytest.approx(0.1 / 16, rel=0.05) and not router.bias.any()
    assert all((x == 1).all() for n, x in lm.state_dict().items() if n.endswith((".norm.weight", "norm_moe.weight")))


def test_what_a_pass_takes_in_memory_counts_both_sides_of_a_layer():
    wide, apart = (checkpoints.parse_config(config)[1] for config in (CODES, {**PUBLISHED, "state_size": 5}))
    assert wide.floats(9, False) == apart.floats(9, False) + 6 * 32 + 3 * 24
    many = checkpoints.parse_config({**PUBLISHED, "ffn_hidden_size": 10_000})[1]
    assert many.floats(9, False) == 6 * 32 + 30_000


def test_what_a_user_asked_of_it_stays_with_an_untrained_and_a_saved_model(folder, tmp_path):
    lm = models.blank(folder, seed=0, options={"expert_activation": "silu"})
    assert lm.config.expert_activation == "silu"
    models.save(lm, tmp_path / "saved")
    assert load(tmp_path / "saved", cached=False).config == lm.config
    reconfigure(folder, dt_rank=5)
    assert checkpoints.published_config(checkpoints.read_config(folder).config)["dt_rank"] == 5


@pytest.mark.parametrize(("sizes", "billions"), [((1152, 30, 3072), 1.5), ((1472, 36, 3872), 2.8)])
def test_the_published_sizes_make_the_published_count(sizes, billions):
    config = {**PUBLISHED, **dict(zip(("hidden_size", "num_layers", "ffn_hidden_size"), sizes, strict=True)), "vocab_size": 50304}
    module, sized = checkpoints.parse_config({**config, "mamba_moe_layers": ["r", "8"] * (sizes[1] // 2)})
    lm = models._empty(module, sized, "chunked", "cpu", "published", None)
    assert sum(x.numel() for x in lm.parameters()) == pytest.approx(billions * 1e9, rel=0.03)


# Training


def test_the_balancing_loss_is_switchs():
    router_BLE = torch.randn(2, 5, 4, generator=stream(0, "router"), dtype=torch.float64)
    p_TE = router_BLE.softmax(-1).reshape(10, 4).numpy()
    share_E = np.bincount(router_BLE.reshape(10, 4).numpy().argmax(1), minlength=4) / 10
    assert float(imbalance(router_BLE)) == pytest.approx(4 * float((share_E * p_TE.mean(0)).sum()), rel=1e-12)
    assert float(imbalance(torch.eye(4).expand(3, 4, 4) * 50)) == pytest.approx(1)
    assert float(imbalance(torch.eye(4)[:1].expand(3, 4, 4) * 50)) == pytest.approx(4)


def test_training_adds_each_routers_balance_and_moves_every_parameter(tokens):
    lm = models.fresh(MOE_CONFIGS["softmax"], generator=stream(0, "train"), dtype="float64", embedding_std=0.15)
    tokens_BL, weights_BL = tokens(2, 40), torch.ones(2, 40)
    routers = [Site(i, "router") for i, layer in enumerate(lm.layers) if "router" in layer.SITES]
    with Trace(keep=routers) as trace:
        logits_BLV = lm(tokens_BL, trace=trace)[0]
    plain = torch.nn.functional.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), tokens_BL[:, 1:].flatten())
    added = sum(BALANCE * imbalance(trace.values[site]) for site in routers)
    loss = packing.next_token_loss(lm, tokens_BL, weights_BL)
    torch.testing.assert_close(loss, plain + added)
    with torch.no_grad():
        torch.testing.assert_close(packing.next_token_loss(lm, tokens_BL, weights_BL), loss.detach())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in lm.parameters())
    assert all(lm.layers[site.layer].moe.router.weight.grad.abs().max() > 0 for site in routers)


def test_gradients_at_the_sites_of_experts_are_their_finite_differences(folders, name, tokens):
    lm = load(folders[name][0], dtype="float64")
    whole, tokens_BL = ("choice", "margin", "write", "state"), tokens(1, 5)
    mix = torch.randn(45, generator=stream(0, "mix"), dtype=torch.float64)
    sites = [site for site in lm.sites if site.name not in whole]
    with Trace(keep=[*sites, *(site for site in lm.sites if site.name == "choice")], grad=True) as trace:
        (lm(tokens_BL, trace=trace)[0][:, -1] @ mix).sum().backward()
    with pytest.raises(NeverReached, match="whole numbers"):
        _ = trace.grads
    with Trace(keep=sites, grad=True) as trace:
        (lm(tokens_BL, trace=trace)[0][:, -1] @ mix).sum().backward()
    for site in sites:
        g, at = trace.grads[site], {}
        for step in (-1e-6, 1e-6):  # too small to send a token elsewhere
            value = trace.values[site].detach() + step * g / max(float(g.norm()), 1e-30)
            with Trace(interventions=[Edit(site, "all", Replace(value))]) as edited:
                at[step] = float(lm(tokens_BL, trace=edited)[0][:, -1] @ mix)
        assert float(g.norm()) == pytest.approx((at[1e-6] - at[-1e-6]) / 2e-6, rel=1e-5, abs=1e-7), site


def test_experts_know_their_type(folders):
    assert all(layer.moe.dtype == torch.bfloat16 for layer in load(folders["codes"][0], dtype="bfloat16").layers
               if isinstance(getattr(layer, "moe", None), Experts))


def test_codes_say_what_a_layer_is_and_which_mix(folders):
    lm = load(folders["codes"][0])
    assert lm.mixing == (0, 1, 3, 5) and lm.config.pattern == tuple(CODES["mamba_moe_layers"])
    assert lm.config.max_length is None and lm.config.mixes_by == ("channels", 64) and lm.config.d_conv == 4
