"""DenseMamba against its definition, state by state (oracles/densemamba.py)."""
import json
import re
from functools import cache

import numpy as np
import pytest
import torch
from oracles import deviation
from oracles.densemamba import CONFIGS, DENSE, random_checkpoint, run
from oracles.recurrence import mamba1

from mamba_mi import Add, Edit, Replace, Scale, Site, StateEdit, Trace, UserError, evaluate, load, models
from mamba_mi.config import stream
from mamba_mi.models import variants
from tests.models.spoilt import reconfigure

V = 45
PLAIN = "plain"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """written(name, calm=True): the checkpoint's folder and its tensors."""
    @cache
    def make(name, calm=True):
        folder = tmp_path_factory.mktemp("dense")
        return folder, random_checkpoint(folder, CONFIGS[name], 5, calm=calm)

    return make


def tokens(rows, length, seed=0):
    return torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(seed))


def truth(name, weights, tokens_BL, scales=None):
    return np.stack([run(CONFIGS[name], weights, row, scales=scales).logits[:, :V] for row in tokens_BL.tolist()])


@pytest.mark.parametrize("rows", [1, 3])
def test_the_logits_are_those_of_the_definition(written, backend, rows):
    folder, weights = written(PLAIN)
    single, double = (load(folder, backend=backend, dtype=d, cached=False) for d in ("float32", "float64"))
    for length in (1, 2, 3, 5, 7, 33) if rows == 3 else (4, 64, 65, 70):
        tokens_BL = tokens(rows, length, length)
        want = truth(PLAIN, weights, tokens_BL)
        assert deviation(single(tokens_BL)[0][..., :V], want) <= 1e-5, length
        assert deviation(double(tokens_BL)[0][..., :V], want) <= 1e-10, length
    assert deviation(single.float64_logits(tokens_BL), want) <= 1e-10


@pytest.mark.parametrize("calm", [True, False], ids=["calm", "wild"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_site_holds_what_the_definition_says(written, name, backend, calm):
    folder, weights = written(name, calm)
    lm, tokens_BL = load(folder, backend=backend, dtype="float64"), tokens(2, 9)
    with Trace(keep=lm.sites) as trace:
        lm(tokens_BL, trace=trace)
    for row, ids in enumerate(tokens_BL.tolist()):
        inner = run(CONFIGS[name], weights, ids)
        assert set(inner.values) == set(lm.sites)
        for site, value in inner.values.items():
            assert deviation(trace.values[site][row], value) <= 1e-10, site


def test_the_routes_matter_and_without_them_it_is_mamba1(written):
    """And a projection transposed, or neighbours that change places, would be seen."""
    folder, weights = written(PLAIN)
    tokens_BL = tokens(1, 9)
    want = truth(PLAIN, weights, tokens_BL)
    plain = {**DENSE, "ssm_cfg": {}}
    alone = {k: w for k, w in weights.items() if ".dense." not in k}
    assert deviation(want, mamba1(plain, alone, tokens_BL[0].tolist()).logits[None, :, :V]) > 1e-3
    shut = {k: w * 0 if k.endswith("fc2.weight") else w for k, w in weights.items()}
    assert deviation(truth(PLAIN, shut, tokens_BL), mamba1(plain, alone, tokens_BL[0].tolist()).logits[None, :, :V]) <= 1e-12
    turned = {k: w.T.contiguous() if k.endswith("proj.weight") and ".dense." in k else w for k, w in weights.items()}
    swapped = {k if ".1.mixer" in k else re.sub(r"dense\.(\d)", lambda m: f"dense.{1 - int(m[1])}", k): w
               for k, w in weights.items()}
    for other in (turned, swapped):
        assert deviation(truth(PLAIN, other, tokens_BL), want) > 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_a_prompt_split_anywhere_goes_on_as_if_whole(written, name, backend):
    lm, tokens_BL = load(written(name)[0], backend=backend, dtype="float64"), tokens(2, 9)
    whole = lm(tokens_BL)[0][..., :V]
    for cuts in (*((c,) for c in range(1, 9)), tuple(range(1, 9)), (2, 3, 7)):
        past, out = None, []
        for start, end in zip((0, *cuts), (*cuts, 9)):
            logits_BLV, past = lm(tokens_BL[:, start:end], past=past)
            out.append(logits_BLV[..., :V])
        assert deviation(torch.cat(out, dim=1), whole) <= 1e-10, cuts


def test_one_past_serves_many_rows_and_is_left_as_it_was(written, backend):
    lm = load(written(PLAIN)[0], backend=backend, dtype="float64")
    prompt_2L, ends_BL = tokens(2, 6), tokens(6, 4, seed=1)
    past = lm(prompt_2L)[1]
    first, again = lm(ends_BL, past=past)[0], lm(ends_BL, past=past)[0]
    assert torch.equal(first, again)
    whole = lm(torch.cat([prompt_2L.repeat(3, 1), ends_BL], dim=1))[0][:, 6:]
    assert deviation(first[..., :V], whole[..., :V]) <= 1e-10


def test_layers_hand_on_what_later_ones_read_and_the_last_the_stream_alone(written):
    lm, tokens_BL = load(written(PLAIN)[0], dtype="float64"), tokens(2, 7)
    with Trace(keep=[Site(2, "resid")]) as trace:
        whole = lm(tokens_BL, trace=trace)[0]
    first, past = lm.through(lm.embed(tokens_BL), last=2)
    assert first.shape[-1] > lm.config.d_model
    rest, _ = lm.through(first, first=2)
    assert torch.equal(lm.unembed(rest), whole) and rest.shape[-1] == lm.config.d_model
    with pytest.raises(UserError, match="layer 2 of a densemamba reads .* start at layer 0, or from what `through` returned"):
        lm.through(trace.values[Site(2, "resid")], first=2)


def test_the_other_backend_of_a_model_and_a_copy_in_lower_precision(written, monkeypatch):
    folder, weights = written(PLAIN)
    lm, tokens_BL = load(folder, dtype="float64"), tokens(1, 9)
    assert deviation(lm.on("reference")(tokens_BL)[0][..., :V], truth(PLAIN, weights, tokens_BL)) <= 1e-10
    low = load(folder, dtype="bfloat16")
    assert deviation(low(tokens_BL)[0][..., :V].float(), truth(PLAIN, weights, tokens_BL)) <= 0.05
    wide_BLX, _ = low.through(low.embed(tokens_BL), last=1)
    backend, took = low.layers[1].backend, []
    scan = backend.scan
    monkeypatch.setattr(backend, "scan", lambda v, dt, *args, **how: took.append(dt) or scan(v, dt, *args, **how))
    with Trace(keep=[Site(0, "dt")]) as trace:
        low(tokens_BL, trace=trace)
    E = low.config.d_inner
    assert torch.equal(took[2], trace.values[Site(0, "dt")])  # layer 0's scan, layer 1's own, then its route's
    assert torch.equal(wide_BLX[..., low.config.d_model + E:low.config.d_model + 2 * E], trace.values[Site(0, "dt")])


def test_watching_changes_no_bit(written):
    lm, tokens_BL = load(written(PLAIN)[0]), tokens(2, 9)
    with Trace(keep=lm.sites) as trace:
        assert torch.equal(lm(tokens_BL, trace=trace)[0], lm(tokens_BL)[0])


EDITED = ("resid", "in_proj", "conv", "dt", "B", "C", "dense_gate_1", "dense_gate_2", "write", "state", "fused", "dense")


@pytest.mark.parametrize("site", EDITED)
def test_an_edit_is_the_definition_with_that_edit_also_for_the_layers_that_read_this_one(written, backend, site):
    """Of a state or a write too: the routes read what they hold."""
    folder, weights = written("sizes" if site == "dense_gate_2" else PLAIN)
    name = "sizes" if site == "dense_gate_2" else PLAIN
    lm, tokens_BL, at = load(folder, backend=backend, dtype="float64"), tokens(2, 9), (3, 4, 8)
    layer = 2 if site == "dense_gate_2" else 1
    edits = [StateEdit(layer, p, Scale(0.4)) for p in at] if site == "state" else [Edit(Site(layer, site), at, Scale(0.4))]
    if site == "resid":
        want = lm(tokens_BL, trace=Trace(interventions=edits))[0][..., :V]  # the oracle has no edit there: the cone only
    else:
        want = truth(name, weights, tokens_BL, {(layer, site, p): 0.4 for p in at})
    with Trace(interventions=edits) as trace:
        got = lm(tokens_BL, trace=trace)[0][..., :V]
    assert deviation(got, want) <= 1e-10
    assert deviation(got[:, -1], lm(tokens_BL)[0][:, -1, :V]) > 1e-7
    other = [Edit(Site(3, "gate"), 6, Scale(0.5))]
    cone = evaluate(lm, tokens_BL, [other, edits, ()], lambda x: x[..., :V])
    assert deviation(cone[1], want[:, -1]) <= 1e-10
    assert deviation(cone[2], lm(tokens_BL)[0][:, -1, :V]) <= 1e-12


def test_edits_in_two_layers_scans_and_of_what_is_replaced(written):
    folder, weights = written(PLAIN)
    lm, tokens_BL = load(folder, dtype="float64"), tokens(1, 9)
    scales = {(1, "write", 3): 0.3, (2, "write", 4): 0.5, (2, "state", 5): 1.5, (3, "fused", 8): 0.7, (3, "dense", 8): 0.5,
              (0, "state", 2): 0.2}
    edits = [Edit(Site(1, "write"), 3, Scale(0.3)), Edit(Site(2, "write"), 4, Scale(0.5)), StateEdit(2, 5, Scale(1.5)),
             Edit(Site(3, "fused"), 8, Scale(0.7)), Edit(Site(3, "dense"), 8, Scale(0.5)), StateEdit(0, 2, Scale(0.2))]
    with Trace(interventions=edits) as trace:
        got = lm(tokens_BL, trace=trace)[0]
    assert deviation(got[..., :V], truth(PLAIN, weights, tokens_BL, scales)) <= 1e-10
    past, pieces = None, []
    with Trace(interventions=edits) as trace:
        for part_BL in tokens_BL.split(4, dim=1):
            logits_BLV, past = lm(part_BL, trace=trace, past=past)
            pieces.append(logits_BLV)
    assert deviation(torch.cat(pieces, dim=1)[..., :V], got[..., :V]) <= 1e-10
    with Trace(keep=[Site(3, "fused")]) as other:
        lm(tokens(1, 9, seed=3), trace=other)
    with Trace(keep=[Site(3, "scan_out"), Site(3, "conv")],
               interventions=[Edit(Site(3, "fused"), "all", Replace(other.values[Site(3, "fused")]))]) as trace:
        lm(tokens_BL, trace=trace)
    with Trace(keep=[Site(3, "C")]) as clean:
        lm(tokens_BL, trace=clean)
    y_BLE = (other.values[Site(3, "fused")][..., 0, :] * clean.values[Site(3, "C")]).sum(-1)
    y_BLE = y_BLE + lm.layers[3].D * trace.values[Site(3, "conv")]
    assert deviation(trace.values[Site(3, "scan_out")], y_BLE) <= 1e-12


@pytest.mark.parametrize("site", [Site(0, "state"), Site(1, "write"), Site(1, "conv"), Site(2, "dense_gate_2"), Site(2, "fused"),
                                  Site(1, "state"), Site(3, "dense"), Site(0, "dt"), Site(0, "B"), Site(2, "C")], ids=str)
def test_gradients_are_their_finite_differences(written, site):
    lm, tokens_BL = load(written(PLAIN)[0], dtype="float64"), tokens(1, 6)
    mix = torch.randn(1, 2, V, generator=stream(0, "mix"), dtype=torch.float64)

    def loss(*edits, **how):
        with Trace(interventions=edits, **how) as trace:
            return (lm(tokens_BL, trace=trace)[0][:, -2:, :V] * mix).sum(), trace

    scalar, trace = loss(keep=[site, Site(1, "resid"), Site(2, "scan_out")], grad=True)
    scalar.backward()
    g = trace.grads[site]
    other = torch.randn(g.shape, generator=stream(1, site.name), dtype=g.dtype)
    direction = (g / g.norm() + other / other.norm()) * trace.values[site].detach().norm()
    at = {k: loss(Edit(site, "all", Add(direction, k * 1e-3)))[0].item() for k in (-2, -1, 1, 2)}
    assert float((g * direction).sum()) == pytest.approx((8 * (at[1] - at[-1]) - (at[2] - at[-2])) / 12e-3, rel=1e-6)


def test_training_reaches_every_parameter(written):
    lm = models.fresh(CONFIGS[PLAIN], generator=stream(0, "dense"), embedding_std=1.0)
    lm(tokens(2, 9))[0][..., :V].logsumexp(-1).sum().backward()
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in lm.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_loaded_it_is_the_same_to_the_bit(name, tmp_path):
    lm = models.fresh(CONFIGS[name], generator=stream(0, "dense")).requires_grad_(False)
    assert all(torch.isfinite(x).all() for x in lm.parameters())
    models.save(lm, tmp_path)
    again = load(tmp_path)
    assert again.config == lm.config and again.config.variant == "densemamba"
    assert torch.equal(again(tokens(2, 9))[0], lm(tokens(2, 9))[0])
    names = json.loads((tmp_path / "config.json").read_text())["ssm_cfg"]
    assert names["layer"] == "DenseMamba1" and names["dense_layers"] == lm.config.dense_layers


def test_its_layer_is_known_by_name_and_a_rank_may_be_left_to_the_width():
    of = {layer: models.fresh({**DENSE, "ssm_cfg": {"layer": layer}}, generator=stream(0, "x")).config.variant
          for layer in ("Mamba1", "DenseMamba1")}
    assert of == {"Mamba1": "mamba1", "DenseMamba1": "densemamba"}
    config = {**DENSE, "ssm_cfg": {"layer": "DenseMamba1", "dense_rank": "auto"}}
    assert models.fresh(config, generator=stream(0, "x")).config.dense_rank == 2


def test_a_start_at_the_identity():
    lm = models.fresh(CONFIGS[PLAIN], generator=stream(0, "dense"))
    assert all(torch.equal(r.proj.weight, torch.eye(16)) for layer in lm.layers for r in layer.dense)


@pytest.mark.parametrize("ssm, word", [
    ({"dense_layers": 0}, "dense_layers=0"), ({"dense_rank": "many"}, "dense_rank"), ({"dense_rank": 1.5}, "dense_rank"),
    ({"dense_layer": 2}, "known keys are .*dense_layers"), ({"headdim": 4}, "not built for DenseMamba1")])
def test_a_config_that_cannot_be_meant_is_refused_in_one_line(tmp_path, ssm, word):
    random_checkpoint(tmp_path, DENSE, 0)
    reconfigure(tmp_path, ssm_cfg={"layer": "DenseMamba1", **ssm})
    refused(tmp_path, word)


@pytest.mark.parametrize("spoil, word", [
    (lambda w: w.pop("backbone.layers.1.mixer.dense.0.proj.weight"), "missing backbone.layers.1.mixer.dense.0.proj.weight"),
    (lambda w: w.update({"backbone.layers.0.mixer.dense.0.fc1.weight": torch.zeros(2, 32)}), "unexpected .*layers.0.mixer.dense.0"),
    (lambda w: w.update({"backbone.layers.2.mixer.dense.1.fc2.weight": torch.zeros(63, 2)}), r"fc2.weight is \(63, 2\)")])
def test_tensors_that_do_not_fit_are_named(tmp_path, spoil, word):
    from safetensors.torch import save_file

    weights = random_checkpoint(tmp_path, DENSE, 0)
    spoil(weights)
    save_file(weights, tmp_path / "model.safetensors")
    refused(tmp_path, word)


def test_a_truncated_file_is_refused(tmp_path):
    random_checkpoint(tmp_path, DENSE, 0)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(tmp_path, "truncated")


def refused(folder, word):
    with pytest.raises(UserError, match=word) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_the_matrix_is_that_of_the_layers_own_writes(written):
    lm, tokens_BL = load(written(PLAIN)[0], dtype="float64"), tokens(2, 9)
    layer = lm.layers[2]
    sites = [Site(2, name) for name in ("dt", "B", "C", "conv", "dense", "scan_out")]
    with Trace(keep=sites) as trace:
        lm(tokens_BL, trace=trace)
    values = {site.name: trace.values[site] for site in sites}
    M_BHTS = layer.matrix(values, None, None)
    y_BLE = torch.einsum("bets,bse->bte", M_BHTS, values["conv"]) + layer.D * values["conv"] + values["dense"]
    assert deviation(y_BLE, values["scan_out"]) <= 1e-12
    assert torch.equal(layer.matrix(values, [3, -1], [5]), M_BHTS[:, [5]][:, :, [3, -1]])


@pytest.mark.parametrize("watched", [False, True])
def test_the_memory_of_a_job_counts_what_travels_and_what_is_scanned_again(written, watched):
    dense, plain = (load(written(PLAIN)[0]).config, models.fresh({**DENSE, "ssm_cfg": {}}, generator=stream(0, "x")).config)
    E, N, m = dense.d_inner, dense.d_state, dense.dense_layers
    more = m * (2 * E + N + 2 * E + (2 * E * N if watched else 0))  # the stream's width; gates and what they let in; states
    assert dense.floats(64, watched) >= plain.floats(64, watched) + more


def test_readers_of_results_are_told_what_it_is(written):
    assert "no checkpoint of it is public" in variants.about(load(written(PLAIN)[0]).config)
    assert not variants.modules()["densemamba"].PUBLISHED
