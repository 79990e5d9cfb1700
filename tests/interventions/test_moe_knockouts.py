"""Knockouts and edits in models of experts: against the matrix written out, through the cone, and what changes its expert."""
from collections import Counter

import numpy as np
import pytest
import torch
from oracles import deviation, knocks_of
from oracles.moe import MOE_CONFIGS, least_margin, moe, moe_checkpoint

from mamba_mi import Add, Edit, Knockout, Replace, Scale, Site, StateEdit, Trace, UserError, load
from mamba_mi.config import stream
from mamba_mi.interventions import Ledger, contrast, evaluate
from mamba_mi.models.moe import Feed
from mamba_mi.trace import NeverReached
from tests.available import SOME

L = 9
CONVS = ("scan", "conv", "both")
MIXING = {"published": (0, 2), "codes": (0, 1, 3, 5), "softmax": (0, 1, 3, 5)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {name: tmp_path_factory.mktemp(name) for name in MOE_CONFIGS}
    return {name: (folder, moe_checkpoint(folder, MOE_CONFIGS[name], seed=2, loud=True)) for name, folder in made.items()}


@pytest.fixture(params=MOE_CONFIGS)
def name(request):
    return request.param


@pytest.fixture(params=SOME)
def lm(request, folders, name):
    return load(folders[name][0], backend=request.param, dtype="float64")


def tokens(rows, length=L, seed=0):
    return torch.randint(0, 45, (rows, length), generator=stream(seed, "tokens", rows, length))


def truth(folders, name, tokens_BL, knockouts=()):
    """The oracle's logits, prompt by prompt; no prompt in which a token is near another expert."""
    length, out = tokens_BL.shape[1], []
    for r, row in enumerate(tokens_BL.tolist()):
        out.append(moe(MOE_CONFIGS[name], folders[name][1], row, knocks=knocks_of(knockouts, r, length)))
        assert least_margin(out[-1]) > 1e-8
    return np.stack([inner.logits for inner in out])


def run(lm, tokens_BL, *interventions):
    with Trace(interventions=interventions) as trace:
        return lm(tokens_BL, trace=trace)[0]


def brute_force(lm, tokens_BL, sets):
    return torch.stack([run(lm, tokens_BL, *interventions)[:, -1] for interventions in sets])


def cases(layers, conv):
    first, last = layers[0], layers[-1]
    yield [Knockout(first, -1, 3, conv)]
    yield [Knockout(layers, (4, -1), (1, 3, 4), conv)]
    yield [Knockout(first, (5, 6, -1), (4, 5), conv, span="token+conv"), Knockout(last, -1, 0, conv)]
    yield [Knockout(layers[1], (6, -1), 5, conv, channels=range(0, 64, 3)), Knockout(layers[1], -1, (2, 5), conv, channels=(1, 3))]
    if conv != "scan":
        yield [Knockout(layers, (4, 5, -1), (3, 4), conv, query_conv=True)]


@pytest.mark.parametrize("conv", CONVS)
def test_a_knockout_is_the_matrix_with_its_entries_zeroed_or_its_columns_rebuilt(folders, name, lm, conv):
    tokens_BL = tokens(2)
    clean = truth(folders, name, tokens_BL)
    for knockouts in cases(MIXING[name], conv):
        want = truth(folders, name, tokens_BL, knockouts)
        assert deviation(run(lm, tokens_BL, *knockouts), want) <= 1e-10
        got, beside = contrast(lm, tokens_BL, [knockouts], lambda x: x)
        assert deviation(got[0], want[:, -1]) <= 1e-10 and deviation(beside[0], clean[:, -1]) <= 1e-10
        assert deviation(want, clean) > 1e-3


def test_what_mixing_gives_is_the_first_site_that_a_knockout_changes(lm, name):
    tokens_BL = tokens(1)
    for layer in MIXING[name]:
        kept = []
        for how in ((), (Knockout(layer, -1, (2, 4)),)):
            with Trace(keep=lm.sites, interventions=how) as trace:
                lm(tokens_BL, trace=trace)
            kept.append(trace.values)
        order = [site for site in trace.counts if site in kept[0]]
        assert next(site for site in order if not torch.equal(kept[0][site], kept[1][site])) == Site(layer, "scan_out")


def patches(lm, source_BL):
    """Every site but the margin at several position sets, patched from another run: tokens change their experts."""
    with Trace(keep=lm.sites) as trace:
        lm(source_BL, trace=trace)
    return [(Edit(site, at, Replace(trace.values[site][:, list(at)])),) for site in lm.sites if site.name != "margin"
            for at in ([(L - 1,)] if site.name == "final_norm" else [(2, 5, 7), (L - 1,)])]


def sets(lm, mixing):
    first, last = mixing[0], mixing[-1]
    router = next(layer.layer for layer in lm.layers if "router" in layer.SITES)
    return [(), (Knockout(mixing, -1, (2, 3), "both"),), (StateEdit(last, 4, Scale(0.0)), Edit(Site(router, "router"), -1, Scale(-1.0))),
            (Edit(Site(router, "choice"), (1, 6), Replace(torch.zeros(1, 2, 1, dtype=torch.long))), Knockout(last, (6, 8), (4, 5), "conv")),
            (Edit(Site(router, "expert_out"), 3, Scale(-2.0)), Edit(Site(first, "resid"), 7, Add(torch.ones(32)))),
            *((Knockout(layer, -1, s, conv),) for layer in mixing for s in (0, 5, 8) for conv in CONVS)]


def test_the_cone_equals_one_full_forward_a_set(lm, name):
    tokens_BL, ledger = tokens(2), Ledger()
    every = [*sets(lm, MIXING[name]), *patches(lm, tokens(2, seed=1))[::1 if lm.choice.used == "chunked" else 4]]
    got = evaluate(lm, tokens_BL, every, lambda x: x, ledger=ledger)
    torch.testing.assert_close(got, brute_force(lm, tokens_BL, every), rtol=0, atol=1e-10)
    routing = {layer.layer for layer in lm.layers if "router" in layer.SITES}
    assert set(ledger.routed) == set(ledger.flips) == routing and all(ledger.flips[i] > 0 for i in routing)
    assert 0 < ledger.least_margin < 0.1
    parts = evaluate(lm, tokens_BL, every, lambda x: x, memory=300_000)
    torch.testing.assert_close(parts, got, rtol=0, atol=1e-11)


def test_a_flip_is_counted_where_a_near_tie_is_tipped(folders):
    """Two experts within 1e-5 of each other at every token: a push of 1e-4 sends that token, and no other, elsewhere."""
    lm, tokens_BL = load(folders["published"][0], dtype="float64", cached=False), tokens(2)
    lm.layers[1].moe.router.weight.zero_()
    lm.layers[1].moe.router.bias.copy_(torch.tensor([2.0, -2, -2, 2 - 1e-5, -2, -2, -2, -2]))
    push_BKE = torch.zeros(2, 1, 8)
    push_BKE[1, 0, 3] = 1e-4
    for sign, flips in ((1, 1), (-1, 0)):
        ledger = Ledger()
        got, clean = contrast(lm, tokens_BL, [(Edit(Site(1, "router"), 6, Add(sign * push_BKE)),)], lambda x: x, ledger=ledger)
        assert ledger.flips[1] == flips and ledger.routed[1] == 2 * (L - 6)
        assert 0 < ledger.least_margin < 1e-5
        assert (deviation(got, clean) > 1e-4) == bool(flips)  # a flip is no small change, however little tipped it


def test_an_edited_choice_counts_as_a_flip_and_a_clean_job_has_none(folders):
    lm, ledger = load(folders["published"][0], dtype="float64", cached=False), Ledger()
    with Trace(keep=["1.choice"]) as trace:
        lm(tokens(1), trace=trace)
    other = (trace.values[Site(1, "choice")][:, [4]] + 1) % 8
    evaluate(lm, tokens(1), [(), (Edit(Site(1, "choice"), 4, Replace(other)),)], lambda x: x, ledger=ledger)
    assert ledger.flips[1] == 1 and ledger.routed[1] == L - 4  # the clean job meets no layer


def test_a_manifest_has_the_flips_of_each_layer_and_nothing_where_there_are_no_experts():
    ledger = Ledger(routed=Counter({3: 5, 1: 8}), flips=Counter({1: 2}), least_margin=0.25)
    by_layer = {"1": [2, 8], "3": [0, 5]}
    assert ledger.routing == {"routing": {"tokens": 13, "flips": 2, "least_margin": 0.25, "by_layer": by_layer}}
    assert list(ledger.routing["routing"]["by_layer"]) == ["1", "3"] and Ledger().routing == {}


def test_a_layer_that_mixes_nothing_cannot_be_knocked_out(lm, name):
    (layer, *_), tokens_BL = [layer.layer for layer in lm.layers if isinstance(layer, Feed)], tokens(1)
    with pytest.raises(UserError, match=f"knockout at layer {layer}: it mixes no tokens"):
        evaluate(lm, tokens_BL, [(Knockout(layer, -1, 0),)], lambda x: x)
    with pytest.raises(NeverReached, match=f"{layer}.knockout"):
        run(lm, tokens_BL, Knockout(layer, -1, 0))
    with pytest.raises(UserError, match=f"layer {MIXING[name][0]}|no heads but"):
        run(lm, tokens_BL, Knockout(MIXING[name][0], -1, 0, heads=0))


def test_a_gradient_at_a_value_that_is_made_twice_is_refused(folders):
    lm = load(folders["codes"][0], dtype="float64", cached=False)
    for site in ("conv", "B", "dt"):
        with pytest.raises(UserError, match=f"1.{site} under a knockout of layer 1"):
            lm(tokens(1), trace=Trace(keep=[Site(1, site)], interventions=[Knockout(1, -1, 2, "both")], grad=True))
