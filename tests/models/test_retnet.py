"""DenseGAU-RetNet against its equations (oracles/retnet.py), from checkpoints in the published layout."""
import json
import shutil

import numpy as np
import pytest
import torch
from oracles import deviation, retnet
from oracles.retnet import CONFIGS, RETNET
from safetensors.torch import load_file

from mamba_mi import Edit, Part, Replace, Scale, Site, Trace, UserError, attention, load, models
from mamba_mi.backends import retention
from mamba_mi.config import stream
from mamba_mi.interventions.patches import head_dims
from mamba_mi.models import checkpoints
from tests.available import BACKENDS

LENGTHS = (1, 2, 3, 5, 7, 33, 64, 65, 70)
TRAPS = ("v plain", "gate plain", "unscaled", "scaled by Q", "pass on dense", "all layers", "last layer", "dense at layer 0",
         "gate linear", "unnormed", "norm over all", "unclamped", "no floor", "mask unsummed", "mask not rooted", "rope angles",
         "halves")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """written(name, seed=0, **how): a checkpoint's folder and its tensors."""
    made = {}

    def make(name, seed=0, **how):
        key = name, seed, *how.values()
        if key not in made:
            folder = tmp_path_factory.mktemp("retnet")
            made[key] = folder, retnet.random_checkpoint(folder, CONFIGS[name], seed, **how)
        return made[key]

    return make


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written("retnet")[0], tmp_path / "spoilt")


def ids(rows, length, seed=0):
    return torch.randint(0, 45, (rows, length), generator=torch.Generator().manual_seed(seed))


def truth(config, weights, tokens_BL, **how):
    return np.stack([retnet.inner(config, weights, row, **how).logits for row in tokens_BL.tolist()])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_same_logits_as_the_equations_on_every_backend(written, name, rows):
    """Of a draw in which no head retains next to nothing: the norm after it would amplify rounding, in any implementation."""
    folder, weights = written(name, {"retnet-near": 6}.get(name, 0), loud=1.2)
    for length in LENGTHS if rows == 1 else LENGTHS[:5]:
        tokens_BL = ids(rows, length, length)
        want = truth(CONFIGS[name], weights, tokens_BL)
        for backend in BACKENDS:
            for dtype, bound in (("float32", 1e-5), ("float64", 1e-10)):
                lm = load(folder, backend=backend, dtype=dtype)
                assert deviation(lm(tokens_BL)[0], want) <= bound, (backend, dtype, length)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_site_equals_the_equations(written, name, backend):
    folder, weights = written(name, 1)
    lm, tokens_BL = load(folder, backend=backend, dtype="float64"), ids(2, 11)
    with Trace(keep=lm.sites) as trace:
        logits_BLV = lm(tokens_BL, trace=trace)[0]
    assert torch.equal(logits_BLV, lm(tokens_BL)[0])  # watching changes no bit
    for row, token_ids in enumerate(tokens_BL.tolist()):
        values = retnet.inner(CONFIGS[name], weights, token_ids).values
        assert set(values) == set(lm.sites)
        for site, value in values.items():
            assert deviation(trace.values[site][row], value) <= 1e-10, site


@pytest.mark.parametrize("wrong", TRAPS)
def test_each_trap_is_told_from_the_right_reading(written, wrong):
    """At some site: the norm of each head takes most of a row's scale off again, and logits can't tell it."""
    folder, weights = written("retnet")
    lm, tokens_1L = load(folder, dtype="float64"), ids(1, 9)
    with Trace(keep=lm.sites) as trace:
        lm(tokens_1L, trace=trace)
    right, made = (retnet.inner(RETNET, weights, tokens_1L[0].tolist(), wrong=w).values for w in ("", wrong))
    assert max(deviation(trace.values[site][0], x) for site, x in right.items()) <= 1e-10
    assert max(deviation(x, made[site]) for site, x in right.items()) > 1e-2


def test_the_first_layers_gates_and_norms_do_nothing(written, folder):
    weights = dict(written("retnet")[1])
    for key in weights:
        if key.startswith("model.layers.0.self_attn.") and ("_select" in key or "k_norm" in key or "v_norm" in key):
            weights[key] = weights[key] + 7
    before = load(written("retnet")[0])(ids(2, 9))[0]
    torch.save(weights, folder / "pytorch_model.bin")
    assert torch.equal(load(folder)(ids(2, 9))[0], before)


def test_the_float64_logits_a_run_is_measured_against(written):
    folder, weights = written("retnet")
    tokens_BL = ids(2, 12)
    assert deviation(load(folder).float64_logits(tokens_BL), truth(RETNET, weights, tokens_BL)) <= 1e-10


def test_a_prompt_split_anywhere_goes_on_as_if_whole(written, backend):
    lm, tokens_BL = load(written("retnet")[0], backend=backend, dtype="float64"), ids(2, 9)
    with Trace(keep=lm.sites) as whole:
        want = lm(tokens_BL, trace=whole)[0]
    for cuts in [(c,) for c in range(1, 9)] + [tuple(range(1, 9)), (2, 5)]:
        past, out = None, []
        with Trace(keep=lm.sites) as trace:
            for start, end in zip((0, *cuts), (*cuts, 9)):
                logits, past = lm(tokens_BL[:, start:end], past=past, trace=trace)
                out.append(logits)
        assert deviation(torch.cat(out, dim=1), want) <= 1e-10
        assert all(deviation(trace.values[site], whole.values[site]) <= 1e-10 for site in lm.sites)


def test_many_rows_go_on_from_few_pasts(written, backend):
    lm, prompts_BL, ends_BL = load(written("retnet")[0], backend=backend, dtype="float64"), ids(2, 6), ids(6, 4, 1)
    past = lm(prompts_BL)[1]
    logits, after = lm(ends_BL, past=past)
    whole = lm(torch.cat([prompts_BL.repeat(3, 1), ends_BL], dim=1))
    assert deviation(logits, whole[0][:, 6:]) <= 1e-10
    for ours, theirs in zip(after.layers, whole[1].layers):
        assert all(deviation(*both) <= 1e-10 for both in zip(ours, theirs))
    assert torch.equal(lm(ends_BL, past=past)[0], logits)
    assert lm.through(lm.embed(ends_BL), past=past, keep=False)[1] is None


def test_what_is_left_is_each_prompts_own_where_rows_share_pasts(written, backend):
    """Two prompts whose memories were cut differently; rows go on from them under one more edit, and under none."""
    lm, prompts_BL, ends_BL = load(written("retnet")[0], backend=backend, dtype="float64"), ids(2, 6), ids(4, 3, 1)
    cut_BLH = torch.rand(2, 6, 2, dtype=torch.float64, generator=stream(0, "cut"))
    cut = Edit(Site(1, "decay"), range(6), Replace(cut_BLH))
    past = lm(prompts_BL, trace=Trace(interventions=[cut]))[1]
    whole_BL = torch.cat([prompts_BL.repeat(2, 1), ends_BL], dim=1)
    for later in ([], [Edit(Site(1, "decay"), (7, 8), Scale(0.5))]):
        edits = [Edit(Site(1, "decay"), range(6), Replace(cut_BLH.repeat(2, 1, 1))), *later]
        want = lm(whole_BL, trace=Trace(interventions=edits))[0][:, 6:]
        assert deviation(lm(ends_BL, past=past, trace=Trace(interventions=later))[0], want) <= 1e-10
        assert deviation(lm(ends_BL, past=lm(prompts_BL)[1], trace=Trace(interventions=later))[0], want) > 1e-3


def test_greedy_generation_is_the_argmax_of_whole_passes(written):
    lm, tokens_BL = load(written("retnet")[0], dtype="float64"), ids(2, 5)
    new_BL = lm.generate(tokens_BL, 6)
    for _ in range(6):
        tokens_BL = torch.cat([tokens_BL, lm(tokens_BL)[0][:, -1:].argmax(-1)], dim=1)
    assert torch.equal(new_BL, tokens_BL[:, 5:])


def test_an_edited_decay_is_what_a_token_leaves_of_what_came_before(written, backend):
    folder, weights = written("retnet")
    lm, tokens_BL = load(folder, backend=backend, dtype="float64"), ids(2, 9)
    for factor in (0.6, 0.0, -0.2, 1.01):
        scales = {(i, "decay", p): factor for i in (0, 2) for p in (3, 6)}
        edits = [Edit(Site(i, "decay"), (3, 6), Scale(factor)) for i in (0, 2)]
        with Trace(interventions=edits) as trace:
            got = lm(tokens_BL, trace=trace)[0]
        assert deviation(got, truth(RETNET, weights, tokens_BL, scales=scales)) <= 1e-10
        with Trace(interventions=edits) as trace:  # and the state after it holds what is left
            past = lm(tokens_BL[:, :5], trace=trace)[1]
            rest = lm(tokens_BL[:, 5:], past=past, trace=trace)[0]
        assert deviation(rest, got[:, 5:]) <= 1e-10


def test_an_edited_decay_acts_on_one_row_alone(written):
    folder, weights = written("retnet")
    lm, tokens_BL = load(folder, dtype="float64"), ids(3, 7)
    other_BLH = torch.rand(3, 7, 2, dtype=torch.float64, generator=stream(0, "decay"))
    with Trace(interventions=[Edit(Site(1, "decay"), "all", Replace(other_BLH))]) as trace:
        got = lm(tokens_BL, trace=trace)[0]
    for row in range(3):
        with Trace(interventions=[Edit(Site(1, "decay"), "all", Replace(other_BLH[row:row + 1]))]) as trace:
            assert deviation(got[row], lm(tokens_BL[row:row + 1], trace=trace)[0][0]) <= 1e-12
    assert deviation(got, truth(RETNET, weights, tokens_BL)) > 1e-3


def test_the_matrix_is_what_was_retained(written):
    lm, tokens_BL = load(written("retnet-near")[0], dtype="float64"), ids(2, 8)
    for layer in lm.layers:
        sites = [Site(layer.layer, name) for name in (*layer.MATRIX, "v_dense", "retained")]
        with Trace(keep=sites, interventions=[Edit(Site(layer.layer, "decay"), 5, Scale(0.3))]) as trace:
            lm(tokens_BL, trace=trace)
        values = {site.name: x for site, x in trace.values.items()}
        M_BHTS = layer.matrix(values, None, None)
        v_BHSV = values["v_dense"].unflatten(-1, (4, -1)).transpose(1, 2)
        assert deviation((M_BHTS @ v_BHSV).transpose(1, 2).flatten(2), values["retained"]) <= 1e-12
        assert torch.equal(M_BHTS, M_BHTS.tril())
        assert deviation(layer.matrix(values, [6, -1], [2, 0]), M_BHTS[:, [2, 0]][:, :, [6, -1]]) <= 1e-12


def test_the_maps_that_read_a_site(written):
    lm = load(written("retnet")[0], dtype="float64")
    with Trace(keep=lm.sites) as trace:
        lm(ids(1, 4), trace=trace)
    for i, layer in enumerate(lm.layers):
        at = {site.name: x for site, x in trace.values.items() if site.layer == i}
        assert deviation(at["gated"] @ lm.reader(Site(i, "gated")).T, at["out"]) <= 1e-12
        read = at["normed"] @ lm.reader(Site(i, "normed")).T
        assert read.shape[-1] == 16 + 16 + 96 + (9 if i else 0)
        assert deviation(torch.nn.functional.silu(read[..., :16]), at["q"]) <= 1e-12
        scale = (at["resid"].square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        assert deviation(scale * (at["resid"] @ lm.reader(Site(i, "resid")).T), read) <= 1e-12
        if i:  # the narrow middle of the gates, keys' first
            F = torch.nn.functional
            assert deviation(F.silu(F.silu(read[..., 128:134]) @ layer.k_select.fc2.weight.T), at["k_gate"]) <= 1e-12
        assert lm.reader(Site(i, "q")) is None


def test_rows_far_above_and_below_the_clamp(backend):
    """retain itself: sums from 1e-6 to 1e9, and one decay a token."""
    lm_backend = __import__(f"mamba_mi.backends.{backend}", fromlist=["retain"])
    g = stream(0, "clamp")
    q, k, v = (torch.randn(1, 6, 2, 4, dtype=torch.float64, generator=g) for _ in range(3))
    q = q * torch.tensor([1e-6, 1e-3, 1, 1e3, 1e6, 1e9])[:, None, None]
    decay = torch.rand(1, 6, 2, dtype=torch.float64, generator=g)
    y = lm_backend.retain(q, k, v, decay)
    for h in range(2):
        M_LL = retnet.mixing(q[0, :, h].numpy(), k[0, :, h].numpy(), decay[0, :, h].numpy())
        for t in range(6):
            assert deviation(y[0, t, h], M_LL[t] @ v[0, :, h].numpy()) <= 1e-12


def test_a_few_rows_of_the_matrix_at_a_time_give_what_all_do(written, monkeypatch):
    """Linear in length: no more entries are ever made at once than `WORK`, or one row's."""
    lm, tokens_BL, made, rows = load(written("retnet")[0], dtype="float64"), ids(2, 23), [], retention._rows
    past, edit = lm(tokens_BL[:1, :4])[1], Edit(Site(1, "decay"), (9, 15), Scale(0.3))
    whole = [lm(tokens_BL)[0], lm(tokens_BL, past=past)[0], lm(tokens_BL, trace=Trace(interventions=[edit]))[0]]
    monkeypatch.setattr(retention, "_rows", lambda q, k, *rest: made.append(len(q) * q.shape[1] * q.shape[2] * k.shape[2])
                        or rows(q, k, *rest))
    for work in (1, 300, 1000):
        monkeypatch.setattr(retention, "WORK", work)
        made.clear()
        parts = [lm(tokens_BL)[0], lm(tokens_BL, past=past)[0], lm(tokens_BL, trace=Trace(interventions=[edit]))[0]]
        assert all(deviation(*both) <= 1e-12 for both in zip(parts, whole))
        assert max(made) <= max(work, 2 * 2 * 23) and len(made) > 3 * 4


def test_gradients_take_the_rows_scale_as_given(written):
    """As in the published model: the sum a row is divided by is cut from the graph."""
    lm = load(written("retnet")[0], dtype="float64")
    sites = [Site(1, name) for name in (*lm.layers[1].MATRIX, "v_dense", "retained")]
    trace = Trace(keep=sites, grad=True)
    lm(ids(1, 6), trace=trace)
    x = {site.name: value for site, value in trace.values.items()}
    dy = torch.randn(x["retained"].shape, generator=stream(0, "dy"), dtype=torch.float64)
    got = torch.autograd.grad((x["retained"] * dy).sum(), [x["q"], x["decay"]])
    q, decay = (x[name].detach().requires_grad_(True) for name in ("q", "decay"))
    layer = lm.layers[1]
    k, v = (x[n].detach() for n in ("k_dense", "v_dense"))
    with torch.no_grad():
        row_BHT1 = layer.matrix({"q": q, "k_dense": k, "decay": decay}).abs().sum(-1, keepdim=True)
    S = _unscaled(layer, q, k, decay)
    given = S.detach().abs().sum(-1, keepdim=True).clamp(1)
    assert (row_BHT1 > 0.999).any() and (given > 1).any()
    y = ((S / given) @ v.unflatten(-1, (2, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)
    for ours, theirs in zip(got, torch.autograd.grad((y * dy).sum(), [q, decay])):
        assert deviation(ours, theirs) <= 1e-10


def _unscaled(layer, q, k, decay):
    """S of a layer, entry by entry, with gradients."""
    length = q.shape[1]
    q, k = (layer.rotate(x.unflatten(-1, (2, -1))).transpose(1, 2) for x in (q, k))
    left = torch.stack([torch.stack([decay[:, s + 1:t + 1].prod(1) if s <= t else 0 * decay[:, 0] for s in range(length)], -1)
                        for t in range(length)], -2)
    return q @ k.mT * left / left.sum(-1, keepdim=True).sqrt()


def test_a_layer_that_is_given_the_stream_alone_says_what_it_needs(written):
    lm, tokens_BL = load(written("retnet")[0], dtype="float64"), ids(1, 4)
    with pytest.raises(UserError, match="layer 2 was given a stream 24 wide and needs 152.*start at layer 0"):
        lm.through(lm.embed(tokens_BL), first=2)
    for cut in (1, 2, 3):
        middle, _ = lm.through(lm.embed(tokens_BL), last=cut)
        assert torch.equal(lm.unembed(lm.through(middle, first=cut)[0]), lm(tokens_BL)[0])
        assert middle.shape[-1] == 24 + min(cut, 2) * 64
    assert lm.through(lm.embed(tokens_BL))[0].shape[-1] == 24


def test_an_edit_of_one_heads_query_changes_that_heads_map_alone(written):
    """So the coordinates of a head follow one another: what a site of BY_HEAD promises."""
    lm = load(written("retnet")[0], dtype="float64")
    clean = attention(lm, ids(1, 6), 1)
    for head in range(2):
        for name in ("q", "k_dense"):
            dims = head_dims(lm, name, head)
            edit = Edit(Site(1, name), 3, Part(Replace(torch.linspace(-1, 1, lm.widths[name][0], dtype=torch.float64)), dims))
            moved = (attention(lm, ids(1, 6), 1, interventions=[edit]) - clean).abs().amax((0, 2, 3))
            assert moved[head] > 1e-9 and moved[1 - head] == 0


def test_its_sites_are_its_own(written):
    lm = load(written("retnet")[0])
    assert {"q", "k", "v", "decay", "gate"} <= set(lm.sites.names) and "dt" not in lm.sites
    assert Site(0, "k_gate") not in lm.sites and Site(1, "k_gate") in lm.sites
    with pytest.raises(LookupError, match="never reached: 1.dt; .* has no dt; its sites .* embed, resid, normed, q, k, v, gate"), Trace(keep=[Site(1, "dt")]) as trace:
        lm(ids(1, 3), trace=trace)
    assert lm.widths["q"] == (16,) and lm.widths["decay"] == (2,) and lm.widths["retained"] == (48,)
    assert lm.mixing == (0, 1, 2, 3) and lm.config.mixes_by == ("heads", 2)


def test_bfloat16_is_as_near_as_bfloat16_can_be(written):
    folder, weights = written("retnet")
    lm = load(folder, dtype="bfloat16")
    kept = {name for name, x in lm.named_parameters() if x.dtype == torch.float32}
    assert all(name.endswith("norm.weight") or name == "norm_f.weight" for name in kept) and len(kept) == 4 * 4 + 1
    assert deviation(lm(ids(2, 9))[0], truth(RETNET, weights, ids(2, 9))) < 0.15


@pytest.mark.parametrize("change, message", [
    ({"deepnorm": True}, "deepnorm=True is not built, only False"), ({"retnorm": True}, "retnorm=True is not built"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings=True is not built"), ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ({"num_attention_heads": 3}, "3 heads do not split"), ({"num_attention_heads": 16}, "16 heads do not split"),
    ({"hidden_size": "24"}, "hidden_size='24' is not a size"), ({"dense_block_layers": 0}, "dense_block_layers=0 is not a size"),
    ({"rms_norm_eps": 2}, "rms_norm_eps=2"), ({"max_position_embeddings": None}, "max_position_embeddings=None"),
    ({"hidden_size": 25}, "6 rows do not divide hidden_size=25|do not split"), ({"vocab_size": None}, "vocab_size=None"),
    ({"num_hidden_layers": 3}, "do not fit a retnet of 3 layers.*unexpected model.layers.3"),
    ({"num_hidden_layers": 5}, "do not fit a retnet of 5 layers.*missing model.layers.4"),
    ({"vocab_size": 46}, r"model.embed_tokens.weight is \(45, 24\), config says \(46, 24\)"),
    ({"k_select_scale": 5}, "k_select_scale=5 does not divide"), ({"v_select_scale": 0}, "v_select_scale=0 is not a size"),
    ({"k_select_scale": 8}, r"k_select.fc1.weight is \(6, 24\), config says \(3, 24\)"),
])
def test_a_config_that_does_not_fit_says_so_in_one_line(folder, change, message):
    (folder / "config.json").write_text(json.dumps(RETNET | change))
    with pytest.raises(UserError, match=message) as e:
        load(folder)
    assert "\n" not in str(e.value)


def test_a_plain_llama_and_what_is_left_out_are_refused(folder):
    for absent, message in (("query_key_dim", "model_type='llama'"), ("v_factor", "needs v_factor"),
                            ("dense_block_layers", "needs dense_block_layers")):
        (folder / "config.json").write_text(json.dumps({k: x for k, x in RETNET.items() if k != absent}))
        with pytest.raises(UserError, match=message):
            load(folder)


def test_tensors_that_do_not_fit_say_so(written, folder):
    weights = written("retnet")[1]
    select = "model.layers.0.self_attn.k_select.fc1.weight"
    ANGLE, DECAY = "model.retnet_rel_pos.angle", "model.retnet_rel_pos.decay"
    for change, message in (
            ({"model.layers.2.self_attn.q_proj.weight": None}, "missing model.layers.2.self_attn.q_proj.weight"),
            ({"extra": torch.ones(1)}, "unexpected extra"), ({select: None}, "no k_select_scale, and no tensor"),
            ({select: torch.ones(7, 24)}, "7 rows do not divide"), ({select: torch.ones(0, 24)}, "0 rows do not divide"),
            ({ANGLE: weights[ANGLE] * 1.1}, "angle is not what 2 heads of width 8"),
            ({ANGLE: torch.ones(4)}, "angle is not"), ({DECAY: weights[DECAY] - 0.01}, "decay is not"),
            ({"lm_head.weight": torch.ones(45, 23)}, r"lm_head.weight is \(45, 23\)")):
        spoilt = {k: x for k, x in (weights | change).items() if x is not None}
        torch.save(spoilt, folder / "pytorch_model.bin")
        with pytest.raises(UserError, match=message) as e:
            load(folder)
        assert "\n" not in str(e.value)
    torch.save({k: x for k, x in weights.items() if "rel_pos" not in k}, folder / "pytorch_model.bin")
    assert torch.equal(load(folder)(ids(1, 5))[0], load(written("retnet")[0])(ids(1, 5))[0])
    (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:2000])
    with pytest.raises(UserError, match="pytorch_model.bin"):
        load(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_is_loaded_to_the_bit(written, name, tmp_path):
    lm = load(written(name)[0])
    models.save(lm, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.config == lm.config and torch.equal(again(ids(2, 7))[0], lm(ids(2, 7))[0])
    theirs = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(torch.equal(x, written(name)[1][key]) for key, x in theirs.items())
    assert set(written(name)[1]) - set(theirs) == {"model.retnet_rel_pos.angle", "model.retnet_rel_pos.decay"}
    written_config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert all(CONFIGS[name][key] == x for key, x in written_config.items() if key in CONFIGS[name] and key not in
               ("auto_map", "dropout"))


def test_an_untrained_one_is_drawn_from_its_generator_and_learns(written):
    config = checkpoints.published_config(load(written("retnet")[0]).config)
    lm, again, other = (models.fresh(config, generator=stream(seed, "fresh"), dtype="float64") for seed in (0, 0, 1))
    assert all(torch.isfinite(x).all() and (x.ndim > 1 or (x == 1).all()) for x in lm.parameters())
    assert all(torch.equal(x, y) for x, y in zip(lm.parameters(), again.parameters()))
    assert all(not torch.equal(x, y) for x, y in zip(lm.parameters(), other.parameters()) if x.ndim > 1)
    assert lm.layers[1].to_out.weight.abs().max() <= 48 ** -0.5 / 2 < lm.layers[1].k_select.fc2.weight.abs().max() * 2
    lm.train()(ids(2, 9))[0].logsumexp(-1).sum().backward()
    idle = {name for name, x in lm.named_parameters() if x.grad is None}
    assert idle == {f"layers.0.{name}" for name in ("k_select.fc1.weight", "k_select.fc2.weight", "v_select.fc1.weight",
                                                    "v_select.fc2.weight", "k_norm.weight", "v_norm.weight")}
    with pytest.raises(UserError, match="no k_select_scale"):
        models.fresh(RETNET, generator=stream(0, "fresh"))


def test_a_pass_takes_the_numbers_it_says():
    config = models.variants.modules()["retnet"].Config(24, 4, 45, 45, 16, 2, 2, 4, 8)
    assert config.floats(5, False) == config.floats(64, True) < config.floats(65, False)
    assert config.floats(9, False) > 2 * (24 + 2 * (16 + 48)) + 10 * 48


def test_it_says_that_it_is_no_mamba(written):
    said = models.variants.about(load(written("retnet")[0]).config)
    assert "DenseMamba" in said and "DenseGAU-RetNet" in said and "no dt, A, B or C" in said
    assert models.HUB["densemamba-350m"] == "jamesHD2001/DenseMamba-350M"
