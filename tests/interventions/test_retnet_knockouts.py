"""Knockouts and edits in DenseGAU-RetNet: M written out, its entries at 0 after the clamp (oracles/retnet.py); and the cone."""
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from oracles import Knock, deviation, knocks_of, retnet
from oracles.retnet import RETNET

from mamba_mi import Add, Edit, Knockout, Replace, Scale, Site, Trace, UserError, evaluate, load
from mamba_mi.config import stream
from mamba_mi.interventions import Ledger, contrast
from tests.available import BACKENDS

L = 9
CONFIG = RETNET | {"num_attention_heads": 4, "query_key_dim": 32}


@cache
def written():
    """A random checkpoint's tensors and the models that read it, by backend."""
    with TemporaryDirectory() as folder:
        weights = retnet.random_checkpoint(Path(folder), CONFIG)
        return weights, {backend: load(folder, backend=backend, dtype="float64", cached=False) for backend in BACKENDS}


def model(backend="chunked"):
    return written()[1][backend]


def ids(rows, length=L, seed=0):
    return torch.randint(0, 45, (rows, length), generator=torch.Generator().manual_seed(seed))


def truth(tokens_BL, knockouts, **how):
    rows, length = tokens_BL.shape
    return np.stack([retnet.inner(CONFIG, written()[0], tokens_BL[r].tolist(), knocks_of(knockouts, r, length), **how).logits
                     for r in range(rows)])


def run(lm, tokens_BL, *interventions, **how):
    with Trace(interventions=interventions) as trace:
        return lm(tokens_BL, trace=trace, **how)[0]


MASKS = (torch.tensor([[0, 0, 0, 0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0, 0, 1]]).bool(),
         torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0, 1]]).bool())
CASES = {
    "last-to-one": [dict(layers=1, queries=-1, sources=3)],
    "own-term": [dict(layers=(0, 1, 2, 3), queries=-1, sources=-1)],
    "near": [dict(layers=1, queries=(5, 6, 7, 8), sources=(4, 5))],
    "first-token": [dict(layers=(0, 2), queries="all", sources=0)],
    "all-of-all": [dict(layers=(0, 3), queries="all", sources="all")],
    "a-mask-a-prompt": [dict(layers=(0, 1), queries=MASKS[0], sources=MASKS[1])],
    "one-mask-for-all": [dict(layers=2, queries=MASKS[0][:1], sources=MASKS[1][:1])],
    "later-sources": [dict(layers=1, queries=2, sources=(1, 6))],
    "several-layers": [dict(layers=0, queries=-1, sources=(1, 2)), dict(layers=2, queries=(6, 7), sources=5)],
    "several-at-one-layer": [dict(layers=1, queries=(6, -1), sources=(1, 2)), dict(layers=1, queries=(7, -1), sources=5),
                             dict(layers=(0, 1), queries=4, sources=(1, 2))],
    "heads": [dict(layers=1, queries=(6, -1), sources=(2, 5), heads=(0, 3))],
    "heads-that-overlap": [dict(layers=1, queries=(6, -1), sources=5, heads=(0, 1)),
                           dict(layers=1, queries=-1, sources=(2, 5), heads=(1, 2)), dict(layers=1, queries=6, sources=3)],
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_knockout_is_m_with_its_entries_zeroed(backend, case):
    lm, tokens_BL, knockouts = model(backend), ids(2), [Knockout(**how) for how in case]
    want = truth(tokens_BL, knockouts)
    assert deviation(run(lm, tokens_BL, *knockouts), want) <= 1e-10
    assert deviation(evaluate(lm, tokens_BL, [(), knockouts], lambda x: x)[1], want[:, -1]) <= 1e-10
    assert deviation(lm(tokens_BL)[0], want) > 1e-3


@pytest.mark.parametrize("length, rows", [(1, 2), (2, 1), (3, 3), (33, 1), (70, 1)])
def test_other_lengths(length, rows):
    tokens_BL = ids(rows, length)
    knockouts = [Knockout(1, -1, 0), Knockout(2, length // 2, sorted({length // 3, length - 1}))]
    assert deviation(run(model(), tokens_BL, *knockouts), truth(tokens_BL, knockouts)) <= 1e-10


def test_sources_go_after_the_clamp():
    """Before it the rest of the row would get louder; the norm after it then hides most of that from the logits."""
    lm, tokens_1L, knocks = model(), ids(1), [Knock((1,), frozenset(range(4, L)), frozenset(range(4)))]
    with Trace(keep=[Site(1, "retained")], interventions=[Knockout(1, range(4, L), range(4))]) as trace:
        lm(tokens_1L, trace=trace)
    right, wrong = (retnet.inner(CONFIG, written()[0], tokens_1L[0].tolist(), knocks, wrong=w).values[1, "retained"]
                    for w in ("", "knocked before the clamp"))
    assert deviation(trace.values[Site(1, "retained")][0], right) <= 1e-10
    assert deviation(wrong, right) > 0.1


def test_what_all_sources_are_taken_from_is_nothing_at_all():
    """Not a small rest, which the norm of each head would make loud."""
    lm = model()
    with Trace(keep=[Site(2, "retained")], interventions=[Knockout(2, -1, "all", heads=(1, 2))]) as trace:
        lm(ids(2), trace=trace)
    last_BHV = trace.values[Site(2, "retained")][:, -1].unflatten(-1, (4, -1))
    assert not last_BHV[:, 1:3].any() and last_BHV[:, [0, 3]].all()


def test_what_was_retained_is_the_first_to_change():
    lm, sites = model(), [site for site in model().sites if site.layer == 1]
    with Trace(keep=sites) as clean:
        lm(ids(2), trace=clean)
    with Trace(keep=sites, interventions=[Knockout(1, -1, 3)]) as knocked:
        lm(ids(2), trace=knocked)
    changed = [site.name for site in sites if not torch.equal(clean.values[site], knocked.values[site])]
    assert changed == ["retained", "gated", "out", "resid_out"]
    assert torch.equal(clean.values[sites[-1]][:, :-1], knocked.values[sites[-1]][:, :-1])


def test_no_source_and_one_that_comes_later_change_nothing():
    lm, clean = model(), model()(ids(2))[0]
    for sources in ((), torch.zeros(2, L, dtype=torch.bool), 6):
        assert deviation(run(lm, ids(2), Knockout((0, 1), (2, 5), sources)), clean) <= 1e-12


INNER = [site for site in model().sites if site.layer in (1, 3)]


@pytest.mark.parametrize("site", INNER, ids=str)
def test_an_edit_at_each_site_alone_and_under_knockouts(site):
    tokens_BL, at = ids(2), (4, 7)
    edit, knockouts = Edit(site, at, Scale(0.6)), [Knockout((1, 3), (5, -1), (3, 4)), Knockout(2, -1, 6)]
    scales = {(*site, p): 0.6 for p in at}
    for sets in ([edit], [edit, *knockouts]):
        want = truth(tokens_BL, sets[1:], scales=scales)
        for backend in BACKENDS:
            assert deviation(run(model(backend), tokens_BL, *sets), want) <= 1e-10, backend
        got, clean = contrast(model(), tokens_BL, [sets, knockouts], lambda x: x)
        assert deviation(got[0], want[:, -1]) <= 1e-10
        assert deviation(clean[0], truth(tokens_BL, [])[:, -1]) <= 1e-10


def sets():
    masks = tuple(torch.cat([mask, mask[:1]]) for mask in MASKS)
    return [
        (), (Knockout(2, -1, 8),), (Knockout((0, 1), -1, (2, 3)),), (Knockout(1, (4, 6), (4, 5)),),
        (Knockout(1, -1, "all"), Edit(Site(2, "k_gate"), -1, Scale(0.0))), (Knockout((0, 2), *masks),),
        (Edit(Site(1, "v"), 5, Scale(0.5)), Knockout(1, -1, 4, heads=2)), (Edit(Site(2, "decay"), 6, Scale(0.0)),),
        (Edit(Site(1, "resid"), 7, Add(torch.ones(24))), Knockout(2, -1, (6, 7), heads=(1, 3))),
        (Edit(Site(0, "k"), (2, 8), Scale(3.0)), Edit(Site(3, "decay"), -1, Scale(0.5)), Knockout(3, -1, 2)),
        *[(Knockout(layer, -1, s),) for layer in range(4) for s in range(L)],
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_cone_equals_one_full_forward_a_set(backend):
    lm, tokens_BL, ledger = model(backend), ids(3), Ledger()
    got = evaluate(lm, tokens_BL, sets(), lambda x: x, ledger=ledger)
    want = torch.stack([run(lm, tokens_BL, *each)[:, -1] for each in sets()])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    assert ledger.token_layers < 0.25 * len(sets()) * L * 4 * 3
    again = Ledger()
    parts = evaluate(lm, tokens_BL, sets(), lambda x: x, memory=200_000, ledger=again)
    torch.testing.assert_close(parts, got, rtol=0, atol=1e-12)
    assert again.token_layers > ledger.token_layers


def test_noise_before_the_first_layer_and_several_last_positions_go_through_the_cone():
    lm, tokens_BL = model(), ids(2)
    noisy_BLD = lm.embed(tokens_BL) + 0.3 * torch.randn(2, L, 24, generator=stream(0, "noise"), dtype=torch.float64)
    patch = Edit(Site(2, "resid_out"), 5, Replace(torch.ones(2, 1, 24, dtype=torch.float64)))
    got, clean = contrast(lm, tokens_BL, [(patch,), (Knockout(1, -2, 3),)], lambda x: x, embedded_BLD=noisy_BLD, tail=2)
    for each, value in zip(((patch,), (Knockout(1, -2, 3),)), got):
        with Trace(interventions=each) as trace:
            whole = lm.unembed(lm.through(noisy_BLD, trace=trace)[0], trace)[:, -2:]
        assert deviation(value, whole) <= 1e-10
    assert deviation(clean[0], lm.unembed(lm.through(noisy_BLD)[0])[:, -2:]) <= 1e-10


def test_a_knockout_goes_on_from_a_past_but_not_into_it():
    lm, tokens_BL = model(), ids(2)
    past = lm(tokens_BL[:, :5])[1]
    inside = Knockout(1, (6, 8), (5, 6))
    assert deviation(run(lm, tokens_BL[:, 5:], inside, past=past), truth(tokens_BL, [inside])[:, 5:]) <= 1e-10
    one = lm(tokens_BL[:1, :5])[1]  # three rows on one past
    rows_BL = torch.cat([tokens_BL[:1].expand(3, -1)[:, :5], ids(3)[:, 5:]], dim=1)
    for backend in BACKENDS:
        got = run(model(backend), rows_BL[:, 5:], inside, past=one)
        assert deviation(got, truth(rows_BL, [inside])[:, 5:]) <= 1e-10
    with pytest.raises(UserError, match="earlier pass"):
        run(lm, tokens_BL[:, 5:], Knockout(1, -1, 3), past=past)


@pytest.mark.parametrize("how, said", [
    (dict(conv="both"), "conv='both'"), (dict(conv="conv"), "conv='conv'"), (dict(span="token+conv"), r"span='token\+conv'"),
    (dict(conv="both", query_conv=True), "conv='both', query_conv=True"),
])
def test_policies_of_a_conv_are_refused(how, said):
    for act in (lambda k: run(model(), ids(1), k), lambda k: evaluate(model(), ids(1), [(k,)], lambda x: x)):
        with pytest.raises(UserError, match=f"{said}.*: a retnet has no conv; give conv=\"scan\"") as e:
            act(Knockout(1, -1, 0, **how))
        assert "\n" not in str(e.value)


def test_dense_ways_are_not_to_be_cut_apart():
    """Dense keys and values are one with the layer's own, behind a norm."""
    with pytest.raises(UserError, match="a retnet has no ways from earlier layers that can be cut apart"):
        run(model(), ids(1), Knockout(1, -1, 0, dense=True))


def test_channels_are_refused_and_heads_counted():
    with pytest.raises(UserError, match="a retnet has no channels but 4 heads; give heads="):
        run(model(), ids(1), Knockout(1, -1, 0, channels=0))
    with pytest.raises(UserError, match="there are heads 0-3"):
        run(model(), ids(1), Knockout(1, -1, 0, heads=4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_values_under_a_knockout_are_their_finite_differences(backend):
    """Of what M is linear in, or does not depend on; of q and k the row's scale is taken as given."""
    lm, tokens_BL, mix = model(backend), ids(2), torch.randn(2, 45, generator=stream(0, "mix"), dtype=torch.float64)
    sites, knockout = [Site(3, name) for name in ("v", "gate", "v_gate", "v_dense", "retained", "out")], Knockout(3, (6, -1), (3, 5))

    def loss(*edits, **how):
        with Trace(interventions=(knockout, *edits), **how) as trace:
            return (lm(tokens_BL, trace=trace)[0][:, -1] * mix).sum(), trace

    scalar, trace = loss(keep=sites, grad=True)
    scalar.backward()
    for site in sites:
        g = trace.grads[site]
        direction = g / g.norm() * trace.values[site].detach().norm()
        at = {k: loss(Edit(site, "all", Add(direction, k * 1e-5)))[0].item() for k in (-2, -1, 1, 2)}
        measured = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / 12e-5
        assert float((g * direction).sum()) == pytest.approx(measured, rel=1e-6), site
