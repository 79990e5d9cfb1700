"""DenseMamba's knockouts against states made without the sources (oracles/densemamba.py); the cone against the pass."""
from functools import cache

import numpy as np
import pytest
import torch
from oracles import deviation, knocks_of
from oracles.checkpoints import with_ssm
from oracles.densemamba import DENSE, run

from mamba_mi import Edit, Knockout, Scale, Site, StateEdit, Trace, UserError, evaluate, models
from mamba_mi.config import stream
from mamba_mi.interventions import Ledger
from mamba_mi.models.densemamba import their_name
from tests.available import BACKENDS, SOME
from tests.small import small, tokens

V, L = 45, 9
CONFIG = with_ssm({**DENSE, "n_layer": 4}, d_state=4)
MASKS = (torch.tensor([[0, 0, 0, 0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0, 0, 1]]).bool(),
         torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0, 1]]).bool())


@cache
def model(backend="chunked"):
    """A small model whose scans, conv and routes are loud."""
    lm = models.fresh(CONFIG, generator=stream(0, "dense"), backend=backend, dtype="float64", embedding_std=1.0)
    lm.eval().requires_grad_(False)
    for layer in lm.layers:
        layer.dt_proj.bias.add_(2)
        layer.conv1d.weight.mul_(3)
        layer.x_proj.weight.mul_(3)
        layer.A_log.sub_(1)
        for route in layer.dense:
            route.fc2.weight.mul_(6)
            route.proj.weight.add_(torch.randn(4, 4, generator=stream(1, str(layer.layer)), dtype=torch.float64) / 2)
    return lm


def ids(batch, length=L):
    return tokens(batch, length, vocab=V)


def truth(lm, tokens_BL, knockouts, scales=None):
    weights = {their_name(n, lm.config): x.numpy() for n, x in lm.state_dict().items()}
    length = tokens_BL.shape[1]
    return np.stack([run(CONFIG, weights, row, knocks_of(knockouts, r, length), scales).logits[:, :V]
                     for r, row in enumerate(tokens_BL.tolist())])


def passed(lm, tokens_BL, *interventions):
    with Trace(interventions=interventions) as trace:
        return lm(tokens_BL, trace=trace)[0][..., :V]


CASES = {
    "last-to-one": [dict(layers=2, queries=-1, sources=3)],
    "own-term": [dict(layers=(0, 1, 2, 3), queries=-1, sources=-1)],
    "near": [dict(layers=3, queries=(5, 6, 7, 8), sources=(4, 5))],
    "all-of-all": [dict(layers=(0, 2), queries="all", sources="all")],
    "a-mask-a-prompt": [dict(layers=(1, 2), queries=MASKS[0], sources=MASKS[1])],
    "later-sources": [dict(layers=1, queries=2, sources=(1, 6))],
    "several-at-one-layer": [dict(layers=1, queries=(6, -1), sources=(1, 2)), dict(layers=1, queries=(7, -1), sources=5),
                             dict(layers=(0, 3), queries=4, sources=(1, 2))],
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("conv", ["scan", "conv", "both"])
@pytest.mark.parametrize("dense", [False, True])
def test_a_knockout_is_the_state_without_what_the_sources_wrote(dense, conv, case):
    tokens_BL, knockouts = ids(2), [Knockout(**how, conv=conv, dense=dense) for how in case]
    want = truth(model(), tokens_BL, knockouts)
    for backend in BACKENDS:
        lm = model(backend)
        assert deviation(passed(lm, tokens_BL, *knockouts), want) <= 1e-11, backend
        cone = evaluate(lm, tokens_BL, [knockouts, ()], lambda x: x[..., :V])
        assert deviation(cone[0], want[:, -1]) <= 1e-11, backend


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("how", [
    dict(span="token+conv"), dict(span="token+conv", conv="both"), dict(conv="both", query_conv=True),
    dict(conv="conv", query_conv=True), dict(channels=range(0, 64, 3)), dict(channels=(1, 3), conv="both", query_conv=True)],
    ids=str)
def test_wider_spans_the_querys_own_conv_and_channels_alone(how, dense):
    """A query's own C is made without the sources for what the routes are read by, too."""
    tokens_BL, knockout = ids(2), Knockout((1, 3), (4, 5, 6, -1), (3, 4), dense=dense, **how)
    want = truth(model(), tokens_BL, [knockout])
    for backend in BACKENDS:
        assert deviation(passed(model(backend), tokens_BL, knockout), want) <= 1e-11, backend
    assert deviation(evaluate(model(), tokens_BL, [(knockout,)], lambda x: x[..., :V])[0], want[:, -1]) <= 1e-11


def test_the_option_cuts_what_the_plain_knockout_leaves():
    tokens_BL = ids(2)
    far, near = (truth(model(), tokens_BL, [Knockout(2, -1, 3, dense=dense)]) for dense in (True, False))
    assert deviation(far[:, -1], near[:, -1]) > 1e-3
    first = [passed(model(), tokens_BL, Knockout(0, -1, 3, dense=dense)) for dense in (True, False)]
    assert torch.equal(*first)  # the first layer has no route


def test_knockouts_with_and_without_the_option_meet_at_one_query():
    tokens_BL = ids(2)
    knockouts = [Knockout(2, (7, 8), 6, dense=True), Knockout(2, (6, 8), (5, 4), "both"), Knockout(2, -1, 2, channels=(1, 5)),
                 Knockout(3, 7, 3, dense=True), Knockout(3, 8, 3)]
    want = truth(model(), tokens_BL, knockouts)
    assert deviation(passed(model(), tokens_BL, *knockouts), want) <= 1e-11
    assert deviation(evaluate(model(), tokens_BL, [knockouts], lambda x: x[..., :V])[0], want[:, -1]) <= 1e-11


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("layer, site", [(2, s) for s in (
    "in_proj", "conv", "dt", "B", "C", "write", "state", "dense_gate_1", "fused", "dense")] + [(1, "write"), (0, "conv"), (1, "B")])
def test_an_edit_acts_in_what_a_knockout_makes_again(layer, site, dense):
    tokens_BL, at = ids(2), (4, 5, 8)
    knockouts = [Knockout(2, (5, -1), (3, 4), "both", query_conv=True, dense=dense), Knockout(3, -1, 6, dense=dense)]
    edits = [StateEdit(layer, p, Scale(0.6)) for p in at] if site == "state" else [Edit(Site(layer, site), at, Scale(0.6))]
    want = truth(model(), tokens_BL, knockouts, {(layer, site, p): 0.6 for p in at})
    assert deviation(passed(model(), tokens_BL, *edits, *knockouts), want) <= 1e-10
    values = evaluate(model(), tokens_BL, [knockouts, (*knockouts, *edits), edits], lambda x: x[..., :V])
    assert deviation(values[1], want[:, -1]) <= 1e-10
    assert deviation(values[0], truth(model(), tokens_BL, knockouts)[:, -1]) <= 1e-10


def sets():
    masks = tuple(torch.cat([mask, mask[:1]]) for mask in MASKS)
    return [
        (), (Knockout(2, -1, 8),), (Knockout((0, 1), -1, (2, 3), "both"),), (Knockout(1, (4, 6), (4, 5), "conv"),),
        (Knockout(1, -1, "all"), Edit(Site(2, "dt"), -1, Scale(0.0))), (Knockout((0, 2), *masks, "both"),),
        (Edit(Site(1, "conv"), 5, Scale(0.5)), Knockout(1, -1, 4, "both", query_conv=True)),
        (StateEdit(1, 6, Scale(0.0)), Knockout(1, (5, -1), (5, 7)), Knockout(3, -1, 3, "conv")),
        (Edit(Site(2, "fused"), -1, Scale(0.5)),), (Edit(Site(3, "dense"), (5, 7), Scale(0.5)),),
        *[(Knockout(layer, -1, s),) for layer in range(4) for s in range(L)],
    ]


@pytest.mark.parametrize("backend", SOME)
@pytest.mark.parametrize("dense", [(), (1, 2, 3)])
def test_the_cone_equals_one_full_forward_a_set(backend, dense):
    lm, tokens_BL, ledger = model(backend), ids(3), Ledger()
    asked = [*sets(), *[(Knockout(layer, at, 2, conv, dense=True),) for layer in dense
                        for at, conv in (((4, -1), "both"), (-1, "scan"))]]
    got = evaluate(lm, tokens_BL, asked, lambda x: x[..., :V], ledger=ledger)
    want = torch.stack([passed(lm, tokens_BL, *interventions)[:, -1] for interventions in asked])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    if not dense:  # plain knockouts start at their queries
        assert ledger.token_layers < 0.3 * len(asked) * L * 3 * 4
    small_parts = evaluate(lm, tokens_BL, asked, lambda x: x[..., :V], memory=200_000)
    torch.testing.assert_close(small_parts, got, rtol=0, atol=1e-11)


def test_a_pass_that_goes_on_from_a_state():
    tokens_BL, within = ids(2), Knockout((1, 2), (6, 8), (5, 7), "both", dense=True)
    with Trace(interventions=[within]) as trace:
        first, past = model()(tokens_BL[:, :5], trace=trace)
        pieces = torch.cat([first, model()(tokens_BL[:, 5:], trace=trace, past=past)[0]], dim=1)
    assert deviation(pieces[..., :V], truth(model(), tokens_BL, [within])) <= 1e-11
    with pytest.raises(UserError, match="earlier pass"):
        model()(tokens_BL[:, 5:], trace=Trace(interventions=[Knockout(1, 8, 3, dense=True)]), past=past)


def test_a_value_made_twice_has_no_one_gradient():
    for name, conv in (("dense", "scan"), ("fused", "scan"), ("state", "scan"), ("dt", "both")):
        with pytest.raises(UserError, match=f"2.{name} under a knockout of layer 2"):
            model()(ids(1), trace=Trace(keep=[Site(2, name)], interventions=[Knockout(2, -1, 2, conv)], grad=True))


@pytest.mark.parametrize("variant", ["mamba1", "mamba2"])
def test_other_variants_have_no_dense_routes_and_say_so(variant):
    lm = small(variant)
    for run_it in (lambda k: passed(lm, ids(1), k), lambda k: evaluate(lm, ids(1), [(k,)], lambda x: x)):
        with pytest.raises(UserError, match=f"dense=True\\): a {variant} has no ways from earlier layers") as caught:
            run_it(Knockout(1, -1, 2, dense=True))
        assert "\n" not in str(caught.value)
