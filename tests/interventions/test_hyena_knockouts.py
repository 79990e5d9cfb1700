"""Knockouts and edits in Hyena: the sum of k_{t-s} w_s with its terms left out or made anew (oracles/hyena.py); and the cone."""
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from oracles import deviation, knocks_of
from oracles.hyena import SIZES, hyena, hyena_checkpoint

from mamba_mi import Add, Edit, Knockout, Replace, Scale, Site, Trace, UserError, evaluate, load
from mamba_mi.interventions import Ledger, contrast
from tests.available import BACKENDS

L, D, LAYERS = 11, 16, 3


@cache
def written():
    """A random checkpoint's tensors and the models that read it, by backend."""
    with TemporaryDirectory() as folder:
        weights = hyena_checkpoint(Path(folder), SIZES["hyena-sizes"], 1)
        return weights, {backend: load(folder, backend=backend, dtype="float64", cached=False) for backend in BACKENDS}


def model(backend="chunked"):
    return written()[1][backend]


def ids(rows, length=L, seed=0):
    return torch.randint(0, 45, (rows, length), generator=torch.Generator().manual_seed(seed))


def truth(tokens_BL, knockouts):
    rows, length = tokens_BL.shape
    return np.stack([hyena(written()[0], tokens_BL[r].tolist(), knocks=knocks_of(knockouts, r, length)).logits
                     for r in range(rows)])


def run(lm, tokens_BL, *interventions, **how):
    with Trace(interventions=interventions) as trace:
        return lm(tokens_BL, trace=trace, **how)[0]


MASKS = tuple(torch.zeros(2, L, dtype=torch.bool) for _ in range(2))
MASKS[0][0, [4, 8]] = MASKS[0][1, 10] = MASKS[1][0, [1, 2]] = MASKS[1][1, [5, 10]] = True
CASES = {
    "last-to-one": [dict(layers=1, queries=-1, sources=3)],
    "own-term": [dict(layers=(0, 1, 2), queries=-1, sources=-1)],
    "near": [dict(layers=1, queries=(6, 7, 8, 10), sources=(5, 6))],
    "first-token": [dict(layers=(0, 2), queries="all", sources=0)],
    "all-of-all": [dict(layers=(0, 1), queries="all", sources="all")],
    "a-mask-a-prompt": [dict(layers=(0, 1), queries=MASKS[0], sources=MASKS[1])],
    "later-sources": [dict(layers=1, queries=2, sources=(1, 7))],
    "several-layers": [dict(layers=0, queries=-1, sources=(1, 2)), dict(layers=2, queries=(6, 7), sources=5)],
    "several-at-one-layer": [dict(layers=1, queries=(6, -1), sources=(1, 2)), dict(layers=1, queries=(7, -1), sources=5)],
    "channels": [dict(layers=1, queries=(6, -1), sources=(2, 5), channels=(0, 3, 15))],
    "channels-that-overlap": [dict(layers=1, queries=(6, -1), sources=5, channels=(0, 1)),
                              dict(layers=1, queries=-1, sources=(2, 5), channels=(1, 2)), dict(layers=1, queries=6, sources=3)],
}
POLICIES = [dict(conv="scan"), dict(conv="both"), dict(conv="conv"), dict(span="token+conv"), dict(conv="both", query_conv=True),
            dict(conv="conv", query_conv=True)]


@cache
def wanted(case, policy):
    """The knockouts of a case under a policy, and their truth."""
    knockouts = [Knockout(**one, **POLICIES[policy]) for one in CASES[case]]
    return knockouts, truth(ids(2), knockouts)


@pytest.mark.parametrize("policy", range(len(POLICIES)), ids=["-".join(map(str, how.values())) for how in POLICIES])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_knockout_is_the_sum_without_its_terms(backend, case, policy):
    lm, tokens_BL, how, (knockouts, want) = model(backend), ids(2), POLICIES[policy], wanted(case, policy)
    assert deviation(run(lm, tokens_BL, *knockouts), want) <= 1e-10
    assert deviation(evaluate(lm, tokens_BL, [(), knockouts], lambda x: x)[1], want[:, -1]) <= 1e-10
    assert deviation(lm(tokens_BL)[0], want) > 1e-6 or how.get("conv") == "conv"  # nothing lies between a token and itself


@pytest.mark.parametrize("length, rows", [(1, 2), (2, 1), (3, 3), (33, 1), (70, 1)])
def test_other_lengths_and_policies_together(length, rows):
    tokens_BL = ids(rows, length)
    knockouts = [Knockout(1, -1, 0, "both"), Knockout(2, length // 2, sorted({length // 3, length - 1})),
                 Knockout(1, -1, length // 4, "scan")]
    assert deviation(run(model(), tokens_BL, *knockouts), truth(tokens_BL, knockouts)) <= 1e-10


def test_a_slot_that_one_policy_empties_is_empty_though_another_would_make_it_anew():
    """Before the pass of the cone, and in the pass: token 4 is taken out of the slots after it, and slot 5 writes nothing."""
    knockouts = [Knockout(1, -1, 4, "both"), Knockout(1, -1, (5, 6), "scan"), Knockout(1, -1, 3, "conv")]
    want = truth(ids(2), knockouts)
    assert deviation(run(model(), ids(2), *knockouts), want) <= 1e-10
    assert deviation(evaluate(model(), ids(2), [(), knockouts], lambda x: x)[1], want[:, -1]) <= 1e-10


def test_the_bias_term_stays_and_goes_with_query_conv():
    lm, tokens_1L = model(), ids(1)
    layer, site = lm.layers[1], Site(1, "long_conv")
    with Trace(keep=[site, Site(1, "x1v")], interventions=[Knockout(1, -1, "all")]) as trace:
        lm(tokens_1L, trace=trace)
    assert deviation(trace.values[site][:, -1], trace.values[Site(1, "x1v")][:, -1] * layer.filter_fn.bias) <= 1e-12


def test_what_was_convolved_is_the_first_to_change():
    lm, sites = model(), [site for site in model().sites if site.layer == 1]
    with Trace(keep=sites) as clean:
        lm(ids(2), trace=clean)
    with Trace(keep=sites, interventions=[Knockout(1, -1, 3)]) as knocked:
        lm(ids(2), trace=knocked)
    changed = [site.name for site in sites if not torch.equal(clean.values[site], knocked.values[site])]
    assert changed == ["long_conv", "gated", "out", "resid_mid", "mlp_normed", "mlp_hidden", "mlp_out", "resid_out"]
    assert torch.equal(clean.values[sites[-1]][:, :-1], knocked.values[sites[-1]][:, :-1])


def test_no_source_and_one_that_comes_later_change_nothing():
    lm, clean = model(), model()(ids(2))[0]
    for sources in ((), torch.zeros(2, L, dtype=torch.bool), 6):
        assert deviation(run(lm, ids(2), Knockout((0, 1), (2, 5), sources)), clean) <= 1e-12


@pytest.mark.parametrize("site", [site for site in model().sites if site.layer == 1], ids=str)
def test_an_edit_at_each_site_goes_through_the_cone_as_through_a_whole_pass(site):
    tokens_BL, edit = ids(2), Edit(site, (4, 7), Scale(0.6))
    sets = [[edit], [edit, Knockout((1, 2), (5, -1), (3, 4))], [edit, Knockout(1, (6, -1), (3, 5), "both")],
            [edit, Knockout(1, -1, (3, 5), "conv", query_conv=True)], [Knockout(2, -1, 6)]]
    got, clean = contrast(model(), tokens_BL, sets, lambda x: x)
    for value, each in zip(got, sets):
        for backend in BACKENDS:
            assert deviation(value, run(model(backend), tokens_BL, *each)[:, -1]) <= 1e-10, (backend, each)
    assert deviation(clean[0], model()(tokens_BL)[0][:, -1]) <= 1e-10
    assert deviation(got[0], clean[0]) > 1e-9


def sets():
    masks = tuple(torch.cat([mask, mask[:1]]) for mask in MASKS)
    return [
        (), (Knockout(2, -1, 8),), (Knockout((0, 1), -1, (2, 3), "both"),), (Knockout(1, (4, 6), (4, 5)),),
        (Knockout(1, -1, "all"), Edit(Site(2, "x0"), -1, Scale(0.0))), (Knockout((0, 2), *masks),),
        (Edit(Site(1, "v"), 5, Scale(0.5)), Knockout(1, -1, 4, channels=2)), (Edit(Site(2, "filter"), 6, Scale(0.0)),),
        (Edit(Site(1, "resid"), 7, Add(torch.ones(D))), Knockout(2, -1, (6, 7), "conv")),
        (Edit(Site(2, "mlp_out"), -1, Replace(torch.ones(1, 1, D, dtype=torch.float64))),),
        *[(Knockout(layer, -1, s, conv),) for layer in range(LAYERS) for s in range(L) for conv in ("scan", "both", "conv")],
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_cone_equals_one_full_forward_a_set(backend):
    lm, tokens_BL, ledger = model(backend), ids(3), Ledger()
    got = evaluate(lm, tokens_BL, sets(), lambda x: x, ledger=ledger)
    want = torch.stack([run(lm, tokens_BL, *each)[:, -1] for each in sets()])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    assert ledger.token_layers < 0.25 * len(sets()) * L * LAYERS * 3
    parts = evaluate(lm, tokens_BL, sets(), lambda x: x, memory=200_000)
    torch.testing.assert_close(parts, got, rtol=0, atol=1e-12)


def test_a_knockout_goes_on_from_a_past_but_not_into_it():
    lm, tokens_BL = model(), ids(2)
    past = lm(tokens_BL[:, :5])[1]
    inside = Knockout(1, (7, 9), (5, 6), "both")
    assert deviation(run(lm, tokens_BL[:, 5:], inside, past=past), truth(tokens_BL, [inside])[:, 5:]) <= 1e-10
    one = lm(tokens_BL[:1, :5])[1]  # three rows on one past
    rows_BL = torch.cat([tokens_BL[:1].expand(3, -1)[:, :5], ids(3)[:, 5:]], dim=1)
    assert deviation(run(lm, rows_BL[:, 5:], inside, past=one), truth(rows_BL, [inside])[:, 5:]) <= 1e-10
    four_BL = torch.cat([tokens_BL.repeat(2, 1)[:, :5], ids(4)[:, 5:]], dim=1)  # two rows on each of two
    for conv in ("scan", "both", "conv"):
        inside = Knockout(1, (7, 9), (5, 6), conv)
        assert deviation(run(lm, four_BL[:, 5:], inside, past=past), truth(four_BL, [inside])[:, 5:]) <= 1e-10
    with pytest.raises(UserError, match="earlier pass"):
        run(lm, tokens_BL[:, 5:], Knockout(1, -1, 3), past=past)


def test_heads_are_refused_and_channels_counted():
    with pytest.raises(UserError, match="a hyena has no heads but 16 channels; give channels="):
        run(model(), ids(1), Knockout(1, -1, 0, heads=0))
    with pytest.raises(UserError, match="there are channels 0-15"):
        run(model(), ids(1), Knockout(1, -1, 0, channels=16))


@pytest.mark.parametrize("site", [Site(1, name) for name in ("in_proj", "x1v", "filter", "long_conv", "mlp_hidden")], ids=str)
def test_the_gradient_at_a_site_is_its_finite_difference(site):
    lm, tokens_BL = model(), ids(1)
    mix = torch.randn(45, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def loss(*edits, **how):
        with Trace(interventions=edits, **how) as trace:
            return (lm(tokens_BL, trace=trace)[0][0, -1, :45] * mix).sum(), trace

    scalar, trace = loss(keep=[site], grad=True)
    scalar.backward()
    g = trace.grads[site]
    direction = g / g.norm() * trace.values[site].detach().norm()
    ends = [loss(Edit(site, "all", Add(direction, step)))[0].item() for step in (1e-5, -1e-5)]
    assert float((g * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("how", [dict(conv="conv"), dict(conv="both"), dict(conv="both", query_conv=True)], ids=str)
def test_a_gradient_at_a_value_that_is_made_twice_is_refused(how):
    """What is left of it without the sources is another tensor: its gradient would be of a part of the truth."""
    for name in ("conv", "x1", "v", "x1v", *["x0"] * ("query_conv" in how)):
        with pytest.raises(UserError, match=f"gradient at 1.{name} under a knockout of layer 1") as e:
            model()(ids(1), trace=Trace(keep=[Site(1, name)], interventions=[Knockout(1, -1, 3, **how)], grad=True))
        assert "\n" not in str(e.value)
    allowed = [Site(0, "x1v"), Site(1, "in_proj"), Site(1, "long_conv")]
    for knockout in (Knockout(1, -1, 3, **how), Knockout(1, -1, 3)):
        sites = allowed if knockout.conv != "scan" else [*allowed, Site(1, "x1v")]
        with Trace(keep=sites, interventions=[knockout], grad=True) as trace:
            model()(ids(1), trace=trace)[0][:, -1, :45].sum().backward()
        assert all(trace.grads[site].any() for site in sites)
