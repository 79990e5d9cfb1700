"""Hyena against its equations, token by token; its format, which has no config.json; the traps of both."""
import numpy as np
import pytest
import torch
from oracles import deviation
from oracles.hyena import SIZES, Sizes, hyena, hyena_checkpoint

from mamba_mi import Edit, Replace, Scale, Site, Trace, UserError, evaluate, load, models
from mamba_mi.backends import long_conv, reference
from mamba_mi.models import checkpoints
from mamba_mi.models import hyena as variant_module
from mamba_mi.trace import NeverReached
from tests.available import BACKENDS, SOME

LENGTHS = (1, 2, 3, 4, 5, 7, 33, 64, 65, 70, 130)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """written(name, seed): the folder of a checkpoint as published, and its tensors."""
    made = {}

    def write(name="hyena", seed=0):
        if (name, seed) not in made:
            folder = tmp_path_factory.mktemp("hyena")
            made[name, seed] = folder, hyena_checkpoint(folder, SIZES[name], seed)
        return made[name, seed]

    return write


def draw(rows, length, seed=0):
    return torch.randint(0, 45, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("modulate", [False, True])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kernel", SOME)
def test_logits_equal_the_equations(written, kernel, name, modulate):
    folder, weights = written(name)
    for dtype, bound in (("float32", 1e-5), ("float64", 1e-10)):
        lm = load(folder, backend=kernel, dtype=dtype, options={"modulate": modulate})
        for length in LENGTHS:
            for rows in (1, 3) if length < 64 else (1,):
                tokens_BL = draw(rows, length, length)
                truth = np.stack([hyena(weights, row, modulate=modulate).logits for row in tokens_BL.tolist()])
                assert deviation(lm(tokens_BL)[0], truth) <= bound, (dtype, length, rows)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kernel", BACKENDS)
def test_every_inner_quantity_equals_the_equations(written, kernel, name):
    folder, weights = written(name)
    lm, tokens_BL = load(folder, backend=kernel, dtype="float64"), draw(2, 40)
    with Trace(keep=lm.sites) as trace:
        lm(tokens_BL, trace=trace)
    for row, token_ids in enumerate(tokens_BL.tolist()):
        truth = hyena(weights, token_ids).values
        assert set(truth) == set(lm.sites) == set(trace.values)
        for site, value in truth.items():
            assert deviation(trace.values[site][row], value) <= 1e-10, site


def test_the_published_config_has_no_modulation_and_the_wrong_flag_shows(written):
    folder, weights = written()
    lm, tokens_BL = load(folder, dtype="float64"), draw(1, 20)
    assert lm.config.modulate is False and lm.config.frequency == 14  # the published w
    truth = hyena(weights, tokens_BL[0].tolist()).logits
    wrong = load(folder, dtype="float64", options={"modulate": True})(tokens_BL)[0][0]
    assert deviation(lm(tokens_BL)[0][0], truth) <= 1e-10 and deviation(wrong, truth) > 0.01


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 5e-2), ("float16", 6e-3)])
@pytest.mark.parametrize("kernel", BACKENDS)
def test_in_a_short_type_norms_filters_and_the_stream_stay_float32(written, kernel, dtype, bound):
    """A few times the type's own rounding (4e-3 and 5e-4) of the largest logit, also going on from a past."""
    folder, weights = written()
    lm, tokens_BL, short = load(folder, backend=kernel, dtype=dtype), draw(2, 40), getattr(torch, dtype)
    for name, x in lm.named_parameters():
        assert x.dtype == (torch.float32 if any(part in name for part in ("norm", "filter_fn")) else short), name
    with Trace(keep=lm.sites) as trace:
        logits_BLV, _ = lm(tokens_BL, trace=trace)
    assert {site.name for site, x in trace.values.items() if x.dtype != short} == {"embed", "resid", "resid_mid", "resid_out", "filter"}
    first, past = lm(tokens_BL[:, :5])
    for got in (logits_BLV, torch.cat([first, lm(tokens_BL[:, 5:], past=past)[0]], 1)):
        assert deviation(got, np.stack([hyena(weights, row).logits for row in tokens_BL.tolist()])) <= bound


def test_beyond_the_filters_it_raises_also_when_going_on(written):
    lm = load(written()[0])
    assert lm.config.max_length == 160
    lm(draw(1, 160))
    with pytest.raises(UserError, match="161 tokens.*l_max"):
        lm(draw(1, 161))
    _, past = lm(draw(1, 158))
    with pytest.raises(UserError, match="l_max"):
        lm(draw(1, 3), past=past)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("kernel", BACKENDS)
@pytest.mark.parametrize("own", [False, True])
def test_the_long_convolution_is_the_sum_whatever_was_seen_before(kernel, length, own):
    """FFT of twice the length: of the length alone, the end would come round to the start."""
    from mamba_mi import backends

    generator = torch.Generator().manual_seed(length)
    w_BLD, past_bPD = (torch.randn(n, t, 3, generator=generator, dtype=torch.float64) for n, t in ((4, length), (2, 40)))
    k = torch.randn(*((4,) if own else ()), length + 50, 3, generator=generator, dtype=torch.float64)
    for past in (None, past_bPD):
        truth = reference.long_conv(w_BLD, k, past_bPD=past)
        assert deviation(backends.get(kernel).long_conv(w_BLD, k, past_bPD=past), truth) <= 1e-13


@pytest.mark.parametrize("work", [1, 2 * 4 * 9 * 15])
@pytest.mark.parametrize("own", [False, True])
def test_the_matrix_some_channels_at_a_time_is_the_sum(monkeypatch, work, own):
    """One of five channels at a time, or two, or with a row's own taps fewer: a long text's matrix has no room for all."""
    monkeypatch.setattr(long_conv, "WORK", work)
    generator = torch.Generator().manual_seed(0)
    w_BLD, past_bPD = (torch.randn(n, t, 5, generator=generator, dtype=torch.float64) for n, t in ((4, 9), (2, 6)))
    k = torch.randn(*((4,) if own else ()), 15, 5, generator=generator, dtype=torch.float64)
    for past in (None, past_bPD):
        got = long_conv.whole(w_BLD, k, past_bPD=past)
        assert got.shape == w_BLD.shape and deviation(got, reference.long_conv(w_BLD, k, past_bPD=past)) <= 1e-13


def test_the_sum_is_the_definition():
    w_BLD, k_TD = torch.randn(1, 4, 2).double(), torch.randn(9, 2).double()
    y = reference.long_conv(w_BLD[:, 2:], k_TD, past_bPD=w_BLD[:, :2])
    assert torch.allclose(y[0, 1], sum(k_TD[3 - s] * w_BLD[0, s] for s in range(4)))


@pytest.mark.parametrize("kernel", BACKENDS)
def test_a_prompt_split_anywhere_goes_on_as_if_whole(written, kernel):
    lm, tokens_BL = load(written()[0], backend=kernel, dtype="float64"), draw(2, 70)
    whole = lm(tokens_BL)[0]
    for cuts in ((1,), (2,), (3,), (35,), (69,), (1, 2, 4, 40)):
        past, out = None, []
        for start, end in zip((0, *cuts), (*cuts, 70)):
            logits_BLV, past = lm(tokens_BL[:, start:end], past=past)
            out.append(logits_BLV)
        assert deviation(torch.cat(out, 1), whole) <= 1e-10, cuts
    _, past = lm(tokens_BL[:1, :50])
    many = lm(tokens_BL[:1, 50:].repeat(3, 1), past=past)[0]
    assert deviation(many, whole[:1, 50:].expand(3, -1, -1)) <= 1e-10


@pytest.mark.parametrize("kernel", BACKENDS)
def test_a_short_conv_of_one_tap_brings_nothing_from_the_past(tmp_path, kernel):
    weights, tokens_BL = hyena_checkpoint(tmp_path, SIZES["hyena"]._replace(K=1)), draw(2, 12)
    lm = load(tmp_path, backend=kernel, dtype="float64")
    truth = np.stack([hyena(weights, row).logits for row in tokens_BL.tolist()])
    for cut in (1, 5):
        first, past = lm(tokens_BL[:, :cut])
        assert deviation(torch.cat([first, lm(tokens_BL[:, cut:], past=past)[0]], 1), truth) <= 1e-10


@pytest.mark.parametrize("kernel", BACKENDS)
def test_the_matrix_is_what_the_long_convolution_does(written, kernel):
    lm, tokens_BL = load(written()[0], backend=kernel, dtype="float64"), draw(2, 9)
    layer = lm.layers[1]
    with Trace(keep=[Site(1, name) for name in (*layer.MATRIX, "v", "x1v", "gated")]) as trace:
        lm(tokens_BL, trace=trace)
    values = {site.name: x for site, x in trace.values.items()}
    M_BDTS = layer.matrix(values, None, None)
    skip = values["x0"] * values["x1v"] * layer.filter_fn.bias
    assert deviation(torch.einsum("bdts,bsd->btd", M_BDTS, values["v"]) + skip, values["gated"]) <= 1e-10
    assert torch.equal(layer.matrix(values, [7, 2], [3, 0]), M_BDTS[:, [3, 0]][:, :, [7, 2]])


def test_the_maps_that_read_a_site(written):
    """The stream is read through the norm before the map: its mean goes, its scale is each token's own, its bias a constant."""
    folder, weights = written()
    lm = load(folder, dtype="float64")
    with Trace(keep=lm.sites) as trace:
        lm(draw(1, 6), trace=trace)
    for i in range(2):
        at = {site.name: x for site, x in trace.values.items() if site.layer == i}
        w = {key.removeprefix(f"backbone.layers.{i}."): x.double() for key, x in weights.items()}
        read = {name: at[name] @ lm.reader(Site(i, name)).T for name in ("gated", "normed", "mlp_normed", "mlp_hidden")}
        hidden = read["mlp_normed"] + w["mlp.fc1.bias"]
        assert deviation(read["gated"] + w["mixer.out_proj.bias"], at["out"]) <= 1e-12
        assert deviation(read["normed"] + w["mixer.in_proj.bias"], at["in_proj"]) <= 1e-12
        assert deviation(torch.nn.functional.gelu(hidden, approximate="tanh"), at["mlp_hidden"]) <= 1e-12
        assert deviation(read["mlp_hidden"] + w["mlp.fc2.bias"], at["mlp_out"]) <= 1e-12
        for name, norm, linear, want in (("resid", "norm1", "mixer.in_proj", read["normed"]), ("resid_mid", "norm2", "mlp.fc1", read["mlp_normed"])):
            scale = (at[name].var(-1, keepdim=True, correction=0) + 1e-5).rsqrt()
            got = scale * (at[name] @ lm.reader(Site(i, name)).T) + w[f"{linear}.weight"] @ w[f"{norm}.bias"]
            assert deviation(got, want) <= 1e-12
        assert torch.equal(lm.reader(Site(i, "out")), lm.reader(Site(i, "resid_mid"))) and lm.reader(Site(i, "x1v")) is None
    assert torch.equal(lm.reader(Site(0, "mlp_out")), lm.reader(Site(1, "resid")))


def test_an_edit_of_a_tap_moves_what_is_that_far_away(written):
    lm, tokens_BL = load(written()[0], dtype="float64"), draw(1, 9)
    site = Site(0, "filter")
    clean = lm(tokens_BL)[0]
    with Trace(interventions=[Edit(site, 4, Scale(0.0))]) as trace:
        edited = lm(tokens_BL, trace=trace)[0]
    assert deviation(edited[:, :4], clean[:, :4]) <= 1e-12 and deviation(edited[:, 4], clean[:, 4]) > 1e-6
    with Trace(keep=[site]) as trace:
        lm(tokens_BL, trace=trace)
    with Trace(interventions=[Edit(site, "all", Replace(trace.values[site]))]) as same:
        assert torch.equal(lm(tokens_BL, trace=same)[0], lm(tokens_BL, trace=trace.__class__(keep=[site]))[0])
    _, past = lm(tokens_BL[:, :5])
    with pytest.raises(UserError, match="a lag"), Trace(keep=[site]) as trace:
        lm(tokens_BL[:, 5:], trace=trace, past=past)


def test_a_site_of_other_families_raises_and_its_own_are_named(written):
    lm = load(written()[0])
    with pytest.raises(NeverReached, match="0.dt;.*long_conv"), Trace(keep=[Site(0, "dt")]) as trace:
        lm(draw(1, 3), trace=trace)


def test_gradients_reach_every_trained_parameter():
    lm = models.fresh(variant_module.published_config(variant_module.Config(8, 2, 45, 48, 8, 16, emb_dim=5, filter_order=4)),
                      generator=torch.Generator().manual_seed(0))
    lm(draw(2, 9))[0][..., :45].logsumexp(-1).sum().backward()
    lacking = [name for name, x in lm.named_parameters() if x.requires_grad and x.grad is None]
    assert not lacking
    assert {name.rsplit(".", 1)[1] for name, x in lm.named_parameters() if not x.requires_grad} == {"z", "t", "deltas"}


def test_a_fresh_filter_is_the_published_one():
    """safari's PositionalEmbedding and ExponentialModulation: exp(-i f w) of waves f = 1e-4 … bands - 1, decays of 1.5 and 0.3."""
    D, L, bands = 6, 10, 3
    raw = {"d_model": D, "n_layer": 2, "d_inner": 8, "vocab_size": 45,
           "layer": {"_name_": "hyena", "emb_dim": 2 * bands + 1, "filter_order": 4, "short_filter_order": 3, "l_max": L, "w": 11}}
    lm = models.fresh(raw, generator=torch.Generator().manual_seed(0))
    fn = lm.layers[0].filter_fn
    f, w = np.linspace(1e-4, bands - 1, bands), 2 * np.pi * np.arange(L) / L
    waves = np.exp(-1j * f * w[:, None])
    t = np.arange(L)[:, None] / (L - 1)
    assert np.allclose(fn.z[0], np.concatenate([t, waves.real, waves.imag], axis=1), atol=1e-6)
    assert np.allclose(fn.t[0], t) and np.allclose(fn.deltas[0, 0], np.linspace(np.log(0.01) / 1.5, np.log(0.01) / 0.3, D))
    assert (fn.freq == 11).all() and models.fresh(CONFIG, generator=torch.Generator()).layers[1].filter_fn.freq.unique() == 14


def test_a_fresh_models_weights_are_within_one_over_the_root_of_what_they_read():
    """What is added to the stream is smaller by the root of how often something is added: twice a layer."""
    lm = models.fresh(CONFIG | {"d_model": 32, "d_inner": 64, "n_layer": 3}, generator=torch.Generator().manual_seed(0))
    for layer in lm.layers:
        fn, D, K = layer.filter_fn, 32, 3
        for linear, reads, times in ((layer.in_proj, D, 1), (layer.out_proj, D, 6), (layer.short_filter, K, 1), (layer.fc1, D, 1),
                                     (layer.fc2, 64, 6), (fn.inner[0], 5, 1), (fn.inner[2], 8, 1), (fn.outer, 8, 1)):
            most = (reads * times) ** -0.5
            assert 0.9 * most < linear.weight.abs().max() <= most
            assert linear.bias is None or 0 < linear.bias.abs().max() <= reads ** -0.5
        for norm in (layer.norm1, layer.norm2):
            assert (norm.weight == 1).all() and (norm.bias == 0).all()
        assert 0.5 < fn.bias.std() < 1.5  # of a normal distribution


def test_gpt2s_rows_stand_for_its_tokens(tmp_path):
    hyena_checkpoint(tmp_path, Sizes(D=4, layers=1, rows=50264, F=4, l_max=8, features=3, O=4))
    lm = load(tmp_path)
    assert (lm.config.vocab_size, lm.config.padded_vocab) == (50257, 50264)
    assert (lm(draw(1, 3))[0][..., 50257:] == -torch.inf).all()


def test_saved_and_loaded_it_is_the_same_to_the_bit(written, tmp_path):
    lm = load(written()[0], options={"modulate": True})
    models.save(lm, tmp_path)
    again = load(tmp_path)
    assert again.config == lm.config and torch.equal(again(draw(2, 9))[0], lm(draw(2, 9))[0])
    assert load(tmp_path, options={"modulate": None}).config == lm.config  # nothing is said: what the checkpoint says holds


def spoil(folder, change):
    path = folder / "hyena_small_150b_tok.ckpt"
    weights = torch.load(path, weights_only=True)
    change(weights)
    torch.save(weights, path)


FREQ, LAST_FREQ = (f"backbone.layers.{at}.freq" for at in ("1.mixer.filter_fn.implicit_filter.3", "0.mixer.filter_fn.implicit_filter.5"))
Z = "backbone.layers.0.mixer.filter_fn.pos_emb.z"


@pytest.mark.parametrize("change, message", [
    (lambda w: w.update({FREQ: w[FREQ] + 1}), "share their frequencies"),
    (lambda w: w.update({LAST_FREQ: w[LAST_FREQ] + 1}), "share their frequencies"),
    (lambda w: w.update({Z: w[Z][:, :0]}), "max_length=0 is not a size"),
    (lambda w: w.pop("backbone.layers.1.mixer.out_proj.bias"), "missing backbone.layers.1.mixer.out_proj.bias"),
    (lambda w: w.update(extra=torch.zeros(1)), "unexpected extra"),
    (lambda w: w.pop("backbone.layers.0.mlp.fc1.weight"), "missing backbone.layers.0.mlp.fc1.weight, which say how large"),
    (lambda w: w.update({"backbone.ln_f.weight": torch.ones(3)}), "backbone.ln_f.weight is \\(3,\\), the other tensors say \\(24,\\)"),
    (lambda w: w.update({"lm_head.weight": w["lm_head.weight"] + 1}), "differs from the embedding"),
    (lambda w: [w.pop(key) for key in list(w) if "filter_fn" in key], "no config.json, and its tensors alone do not say"),
])
def test_a_spoilt_checkpoint_is_one_line(tmp_path, change, message):
    hyena_checkpoint(tmp_path, SIZES["hyena"])
    spoil(tmp_path, change)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "layers.0.mlp.fc1.weight", "layers.0.mixer.short_filter.weight",
                                  "layers.0.mixer.filter_fn.pos_emb.z", "layers.0.mixer.filter_fn.implicit_filter.1.freq"])
@pytest.mark.parametrize("reshape", [lambda x: x[0], lambda x: x[None]], ids=["less", "more"])
def test_a_tensor_that_says_a_size_and_has_another_rank_is_named(tmp_path, name, reshape):
    hyena_checkpoint(tmp_path, SIZES["hyena"])
    spoil(tmp_path, lambda w: w.update({f"backbone.{name}": reshape(w[f"backbone.{name}"])}))
    with pytest.raises(UserError, match=rf"^{tmp_path}: backbone.{name} of shape \(.*\) is none of a Hyena's") as e:
        load(tmp_path)
    assert "\n" not in str(e.value)


def test_a_layer_that_is_not_there_is_missing_not_one_layer_fewer(tmp_path):
    hyena_checkpoint(tmp_path, SIZES["hyena-sizes"])
    spoil(tmp_path, lambda w: [w.pop(key) for key in list(w) if key.startswith("backbone.layers.1.")])
    with pytest.raises(UserError, match=r"a hyena of 3 layers: missing backbone\.layers\.1\..*; unexpected none"):
        load(tmp_path)


def test_several_files_and_a_truncated_one_are_one_line(tmp_path):
    hyena_checkpoint(tmp_path, SIZES["hyena"])
    path = tmp_path / "hyena_small_150b_tok.ckpt"
    (tmp_path / "other.ckpt").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="several checkpoints"):
        load(tmp_path)
    (tmp_path / "other.ckpt").unlink()
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="truncated"):
        load(tmp_path)


@pytest.mark.parametrize("raw, message", [
    ({"layer": {"_name_": "hyena"}}, "no d_model, n_layer"), ({"layer": {"_name_": "hyena", "order": 3}, "d_model": 8}, "no n_layer"),
])
def test_a_config_that_lacks_sizes_says_which(raw, message):
    with pytest.raises(UserError, match=message):
        checkpoints.parse_config(raw)


def test_wrong_options_are_one_line(written):
    with pytest.raises(UserError, match="model.modulate=maybe: there are true, false"):
        load(written()[0], options={"modulate": "maybe"})
    with pytest.raises(UserError, match="model.modulate=1: there are true, false"):  # though 1 == True
        load(written()[0], options={"modulate": 1})
    with pytest.raises(UserError, match="model.expert_activation: a hyena has no such option; it has modulate"):
        load(written()[0], options={"expert_activation": "gelu"})


def test_no_way_in_lets_a_prompt_beyond_the_filters_pass(written):
    """A pass of the cone starts where its jobs do, and goes on from a past that is short enough by itself."""
    lm = load(written("hyena")[0], dtype="float64")
    most = lm.config.max_length
    tokens_1L = draw(1, most + 1)
    for make in (*(lambda p=p: evaluate(lm, tokens_1L, [(Edit(Site(0, "out"), p, Scale(0.0)),)], lambda x: x) for p in (0, 3, most)),
                 lambda: lm.layers[0](lm.embed(tokens_1L)), lambda: lm.float64_logits(tokens_1L)):
        with pytest.raises(UserError, match=f"{most + 1} tokens: .*filters of {most} .*l_max.*shorter prompts") as e:
            make()
        assert "\n" not in str(e.value)


CONFIG = {"d_model": 16, "n_layer": 2, "d_inner": 32, "vocab_size": 45,
          "layer": {"_name_": "hyena", "emb_dim": 5, "filter_order": 8, "short_filter_order": 3, "l_max": 32}}


@pytest.mark.parametrize("change, message", [
    ({"d_inner": None}, "d_inner=None is not a size"), ({"layer": {"l_max": "32"}}, "l_max='32' is not a size"),
    ({"layer": {"emb_dim": 4}}, "layer.emb_dim=4 must be odd"), ({"layer": {"emb_dim": 1}}, "layer.emb_dim=1 must be odd"),
    ({"layer": {"w": "ten"}}, "layer.w='ten' is not a number"), ({"layer": {"shift": 0.05}}, "layer.shift=0.05 is not built"),
    ({"layer": {"num_inner_mlps": 4}}, "layer.num_inner_mlps=4 is not built"), ({"layer": {"order": 3}}, "layer.order=3 is not built"),
    ({"layer": {"normalized": True}}, "layer.normalized=True is not built"), ({"layer": {"w": True}}, "layer.w=True is not a number"),
    ({"layer": {"bidirectional": True}}, "layer.bidirectional=True is not built"),
    ({"layer": {"modulate": "yes"}}, "layer.modulate='yes' is neither true nor false"),
    ({"pad_vocab_size_multiple": 0}, "pad_vocab_size_multiple=0 is not a size"),
])
def test_a_config_of_another_hyena_says_so_in_one_line(change, message):
    raw = CONFIG | change | {"layer": CONFIG["layer"] | change.get("layer", {})}
    with pytest.raises(UserError, match=message) as e:
        models.fresh(raw, generator=torch.Generator())
    assert "\n" not in str(e.value)
    config = models.fresh(CONFIG, generator=torch.Generator()).config
    assert (config.frequency, config.modulate, config.padded_vocab) == (14, False, 45)  # what safari takes where nothing is said


@pytest.mark.parametrize("layer", ["hyena", {"_name_": "mha"}, {}])
def test_a_layer_of_another_name_is_no_hyena(layer):
    with pytest.raises(UserError, match="the config of no model built here"):
        checkpoints.parse_config({"n_layer": 2, "layer": layer})


@pytest.mark.parametrize("rows, multiple", [(45, 1), (48, 16), (50, 50)])
def test_the_config_of_a_saved_model_says_all_of_it(rows, multiple):
    config = variant_module.Config(16, 2, 45, rows, 32, 24, d_conv=4, emb_dim=5, filter_order=8, modulate=True, frequency=11.5)
    raw = variant_module.published_config(config)
    assert raw == {"d_model": 16, "n_layer": 2, "d_inner": 32, "vocab_size": 45, "pad_vocab_size_multiple": multiple, "layer": {
        "_name_": "hyena", "order": 2, "l_max": 24, "short_filter_order": 4, "emb_dim": 5, "filter_order": 8, "modulate": True, "w": 11.5}}
    assert checkpoints.parse_config(raw) == (variant_module, config)


def test_it_says_which_of_two_models_it_is(written):
    for modulate in (True, False):
        config = load(written("hyena")[0], options={"modulate": modulate}).config
        assert f"model.modulate={str(modulate).lower()}" in models.variants.about(config)


def test_the_filter_is_made_once_and_again_when_a_weight_changes(written, monkeypatch):
    lm = load(written()[0], dtype="float64", cached=False)
    before, fn, plain = lm(draw(1, 9))[0], lm.layers[0].filter_fn, type(lm.layers[0].filter_fn)._taps
    made = []
    monkeypatch.setattr(type(fn), "_taps", lambda self, taps: made.append(taps) or plain(self, taps))
    assert torch.equal(lm(draw(1, 9))[0], before) and torch.equal(lm.on("reference").layers[0].filter_fn(20)[:9], fn(9)) and not made
    fn.inner[1].weight.mul_(2)
    assert deviation(lm(draw(1, 9))[0], before) > 1e-3 and made == [160]
    fn.inner[1].weight.data = fn.inner[1].weight.data / 2
    assert torch.equal(lm(draw(1, 9))[0], before) and made == [160, 160]
    fn.inner[1].weight.requires_grad_(True)
    assert deviation(lm(draw(1, 9))[0].detach(), before) <= 1e-12 and made == [160, 160, 9]
