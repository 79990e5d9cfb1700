"""Hyena against its equations, token by token; its format, which has no config.json; the traps of both."""
import numpy as np
import pytest
import torch
from oracles import deviation
from oracles.hyena import SIZES, Sizes, hyena, hyena_checkpoint

from mamba_mi import Edit, Replace, Scale, Site, Trace, UserError, evaluate, load, models
from mamba_mi.backends import reference
from mamba_mi.models import checkpoints
from mamba_mi.models import hyena as variant_module
from mamba_mi.trace import NeverReached
from tests.available import BACKENDS

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
@pytest.mark.parametrize("kernel", BACKENDS)
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
    assert lm.config.modulate is False
    truth = hyena(weights, tokens_BL[0].tolist()).logits
    wrong = load(folder, dtype="float64", options={"modulate": True})(tokens_BL)[0][0]
    assert deviation(lm(tokens_BL)[0][0], truth) <= 1e-10 and deviation(wrong, truth) > 0.01


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


def spoil(folder, change):
    path = folder / "hyena_small_150b_tok.ckpt"
    weights = torch.load(path, weights_only=True)
    change(weights)
    torch.save(weights, path)


FREQ = "backbone.layers.1.mixer.filter_fn.implicit_filter.3.freq"


@pytest.mark.parametrize("change, message", [
    (lambda w: w.update({FREQ: w[FREQ] + 1}), "share their frequencies"),
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
])
def test_a_config_of_another_hyena_says_so_in_one_line(change, message):
    raw = CONFIG | change | {"layer": CONFIG["layer"] | change.get("layer", {})}
    with pytest.raises(UserError, match=message) as e:
        models.fresh(raw, generator=torch.Generator())
    assert "\n" not in str(e.value)
    assert models.fresh(CONFIG, generator=torch.Generator()).config.frequency == 14


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
