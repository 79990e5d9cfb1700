"""Knockouts against M written out entry by entry, zeroed or rebuilt (oracles/knockout.py); and the cone against the pass."""
from functools import cache

import numpy as np
import pytest
import torch
from oracles import deviation, knocked, knocks_of
from oracles.falcon_mamba import falcon

from mamba_mi import Ablate, Add, Edit, Knockout, Replace, Scale, Site, StateEdit, Trace, UserError, evaluate
from mamba_mi.config import stream
from mamba_mi.data import facts
from mamba_mi.interventions import Ledger
from mamba_mi.models import load
from mamba_mi.models.checkpoints import written
from mamba_mi.models.mixer import Mixer
from mamba_mi.models.state_spaces import published_config
from mamba_mi.trace import NeverReached
from tests.available import BACKENDS, SOME
from tests.small import CONFIGS, small, tokens

V, L = 61, 9
CONVS = ("scan", "conv", "both")


@cache
def model(variant, backend="chunked"):
    """A small model in which the scan and the conv are loud: in a fresh one a knockout moves the logits by 1e-5."""
    lm = small(variant, backend=backend)
    for layer in lm.layers:
        (layer.dt_bias if variant == "mamba2" else layer.dt_proj.bias).add_(2)
        layer.conv1d.weight.mul_(3)
        if variant == "mamba1":  # Falcon-Mamba's norms undo it
            layer.x_proj.weight.mul_(3)
        layer.A_log.sub_(1)
    return lm


def published(lm):
    """The model's config and weights under their published names, for the oracle."""
    renamed = {n.replace("layers.", "backbone.layers.").replace("gated_norm", "mixer.norm"): x.numpy()
               for n, x in lm.state_dict().items()}
    inside = ("in_proj", "conv1d", "x_proj", "dt_proj", "A_log", "D", "dt_bias", "out_proj")
    weights = {".".join([*n.split(".")[:3], "mixer", *n.split(".")[3:]]) if n.split(".")[-2] in inside
               or n.split(".")[-1] in inside else n: x for n, x in renamed.items()}
    return published_config(lm.config), weights | {"backbone.embedding.weight": renamed["embedding.weight"],
                                                   "backbone.norm_f.weight": renamed["norm_f.weight"]}


def truth(lm, tokens_BL, knockouts, scales=None):
    """The oracle's logits, prompt by prompt."""
    rows, length = tokens_BL.shape
    config, weights = written(lm) if lm.config.variant == "falcon_mamba" else published(lm)
    of = knocked if "ssm_cfg" in config else lambda *asked: falcon(*asked).logits
    return np.stack([of(config, weights, tokens_BL[r].tolist(), knocks_of(knockouts, r, length), scales)[:, :V]
                     for r in range(rows)])


def run(lm, tokens_BL, *interventions):
    with Trace(interventions=interventions) as trace:
        return lm(tokens_BL, trace=trace)[0][..., :V]


def brute_force(lm, tokens_BL, sets):
    return torch.stack([run(lm, tokens_BL, *interventions)[:, -1] for interventions in sets])


MASKS = (torch.tensor([[0, 0, 0, 0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0, 0, 1]]).bool(),
         torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0, 1]]).bool())
CASES = {
    "last-to-one": [dict(layers=1, queries=-1, sources=3)],
    "own-term": [dict(layers=(0, 1, 2), queries=-1, sources=-1)],
    "near": [dict(layers=1, queries=(5, 6, 7, 8), sources=(4, 5))],
    "first-token": [dict(layers=(0, 2), queries="all", sources=0)],
    "all-sources": [dict(layers=1, queries=(4, -1), sources="all")],
    "all-of-all": [dict(layers=(0, 2), queries="all", sources="all")],
    "a-mask-a-prompt": [dict(layers=(0, 1), queries=MASKS[0], sources=MASKS[1])],
    "one-mask-for-all": [dict(layers=2, queries=MASKS[0][:1], sources=MASKS[1][:1])],
    "later-sources": [dict(layers=1, queries=2, sources=(1, 6))],
    "several-layers": [dict(layers=0, queries=-1, sources=(1, 2)), dict(layers=2, queries=(6, 7), sources=5)],
    "several-at-one-layer": [dict(layers=1, queries=(6, -1), sources=(1, 2)), dict(layers=1, queries=(7, -1), sources=5),
                             dict(layers=(0, 1), queries=4, sources=(1, 2))],
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("variant", CONFIGS)
def test_a_knockout_is_m_with_its_entries_zeroed_or_its_columns_rebuilt(variant, conv, case):
    tokens_BL = tokens(2, L)
    knockouts = [Knockout(**how, conv=conv) for how in case]
    want = truth(model(variant), tokens_BL, knockouts)
    for backend in BACKENDS:
        lm = model(variant, backend)
        assert deviation(run(lm, tokens_BL, *knockouts), want) <= 1e-12, backend
    if not (conv == "conv" and case == CASES["own-term"]):  # by its own tap alone a token stays in its own slot
        assert deviation(lm(tokens_BL)[0][..., :V], want) > 1e-3


@pytest.mark.parametrize("how", [
    dict(span="token+conv"), dict(span="token+conv", conv="both"), dict(conv="both", query_conv=True),
    dict(conv="conv", query_conv=True)], ids=str)
@pytest.mark.parametrize("variant", CONFIGS)
def test_wider_spans_and_the_querys_own_conv(variant, how):
    tokens_BL, knockout = tokens(2, L), Knockout((0, 1), (4, 5, 6, -1), (3, 4), **how)
    want = truth(model(variant), tokens_BL, [knockout])
    for backend in BACKENDS:
        assert deviation(run(model(variant, backend), tokens_BL, knockout), want) <= 1e-12, backend


@pytest.mark.parametrize("length, rows", [(1, 2), (2, 1), (3, 1), (4, 3), (5, 1), (65, 1), (70, 1)])
@pytest.mark.parametrize("variant", CONFIGS)
def test_lengths_around_the_convs_width_and_off_the_chunks(variant, length, rows):
    lm, tokens_BL = model(variant), tokens(rows, length)
    for conv in CONVS:
        knockouts = [Knockout(1, -1, (0,), conv), Knockout(1, length // 2, sorted({length // 3, length - 1}), conv)]
        got = run(lm, tokens_BL, *knockouts)[:, [length // 2, -1]]
        assert deviation(got, truth(lm, tokens_BL, knockouts)[:, [length // 2, -1]]) <= 1e-12


@pytest.mark.parametrize("variant", CONFIGS)
def test_policies_mix_at_one_query(variant):
    lm, tokens_BL = model(variant), tokens(2, L)
    knockouts = [Knockout(1, (7, 8), 6, "conv"), Knockout(1, (6, 8), (5, 6), "both"), Knockout(1, -1, 4)]
    assert deviation(run(lm, tokens_BL, *knockouts), truth(lm, tokens_BL, knockouts)) <= 1e-12


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["mamba1", "falcon_mamba"])
def test_channels_alone(variant, backend, conv):
    lm, tokens_BL = model(variant, backend), tokens(2, L)
    knockouts = [Knockout(1, (6, -1), 5, conv, channels=range(0, 64, 3)), Knockout(1, -1, (2, 5), conv, channels=(1, 3, 4))]
    assert deviation(run(lm, tokens_BL, *knockouts), truth(lm, tokens_BL, knockouts)) <= 1e-12


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_heads_alone_and_overlapping(backend, conv):
    lm, tokens_BL = model("mamba2", backend=backend), tokens(2, L)
    for knockouts in ([Knockout(1, -1, (5, 7), conv, heads=(0, 3))],
                      [Knockout(1, (6, -1), 5, conv, heads=(0, 1), query_conv=conv != "scan"),
                       Knockout(1, -1, (2, 5), conv, heads=(1, 2), query_conv=conv != "scan"), Knockout(1, 6, 3)]):
        assert deviation(run(lm, tokens_BL, *knockouts), truth(lm, tokens_BL, knockouts)) <= 1e-12


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("variant", CONFIGS)
def test_no_source_and_a_source_no_query_can_read_change_nothing(variant, conv):
    lm, tokens_BL = model(variant), tokens(2, L)
    clean = lm(tokens_BL)[0][..., :V]
    for sources in ((), torch.zeros(2, L, dtype=torch.bool), 6):
        assert deviation(run(lm, tokens_BL, Knockout((0, 1), (2, 5), sources, conv)), clean) <= 1e-12


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("site", ["in_proj", "conv", "dt", "B", "C", "write", "state"])
@pytest.mark.parametrize("variant", CONFIGS)
def test_an_edit_in_the_same_layer_acts_in_the_scan_without_the_sources_too(variant, site, conv):
    lm, tokens_BL = model(variant), tokens(2, L)
    at = (4, 5, 7)
    knockouts = [Knockout(1, (5, -1), (3, 4), conv, query_conv=conv == "both"), Knockout(2, -1, 6, conv)]
    edits = [StateEdit(1, p, Scale(0.6)) for p in at] if site == "state" else [Edit(Site(1, site), at, Scale(0.6))]
    want = truth(lm, tokens_BL, knockouts, {(1, site, p): 0.6 for p in at})
    assert deviation(run(lm, tokens_BL, *edits, *knockouts), want) <= 1e-12
    values = evaluate(lm, tokens_BL, [knockouts, (*knockouts, *edits), edits], lambda x: x[..., :V])
    assert deviation(values[1], want[:, -1]) <= 1e-10


@pytest.mark.parametrize("variant", CONFIGS)
def test_an_edit_below_is_a_knockout_of_a_pass_that_starts_from_there(variant):
    lm, tokens_BL = model(variant), tokens(2, L)
    other_BLD = torch.randn(2, L, 32, dtype=torch.float64, generator=stream(0, "below"))
    knockout = Knockout((1, 2), -1, (2, 3), "both")
    got = run(lm, tokens_BL, Edit(Site(1, "resid"), "all", Replace(other_BLD)), knockout)
    with Trace(interventions=[knockout]) as trace:
        want = lm.unembed(lm.through(other_BLD, trace=trace, first=1)[0])
    assert deviation(got, want[..., :V]) <= 1e-12


def test_the_conv_carries_a_subject_around_the_slots_of_its_tokens():
    """What a declared policy is for: blocking the subject's slots says it hardly matters, and it is all that does."""
    lm = load("tiny-mamba1")
    prompts = [p for p in facts.load(facts.Knobs(n=64), lm.tokenizer, 0).prompts
               if len(p.token_ids) == 10 and p.spans["subject"] == (4, 7)]
    tokens_BL = torch.tensor([p.token_ids for p in prompts])
    at = torch.arange(len(prompts)), torch.tensor([p.target_id for p in prompts])
    last_reads = [(), *((Knockout(range(lm.config.n_layer), -1, (4, 5, 6), **how),) for how in (
        dict(conv="scan"), dict(conv="conv"), dict(conv="both"), dict(span="token+conv")))]
    clean, *blocked = evaluate(lm, tokens_BL, last_reads, lambda x: x.softmax(-1)[:, *at]).mean(dim=1).tolist()
    assert len(prompts) > 30 and clean > 0.95
    assert blocked[0] > 0.8 * clean and max(blocked[1:]) < 0.25 * clean


def sets():
    """Knockouts alone, several and beside edits, that start at different layers and positions."""
    masks = tuple(torch.cat([mask, mask[:1]]) for mask in MASKS)
    return [
        (), (Knockout(2, -1, 8),), (Knockout((0, 1), -1, (2, 3), "both"),), (Knockout(1, (4, 6), (4, 5), "conv"),),
        (Knockout(1, -1, "all"), Edit(Site(2, "dt"), -1, Ablate())), (Knockout((0, 2), *masks, "both"),),
        (Edit(Site(1, "conv"), 5, Scale(0.5)), Knockout(1, -1, 4, "both", query_conv=True)),
        (StateEdit(1, 6, Scale(0.0)), Knockout(1, (5, -1), (5, 7)), Knockout(1, -1, 3, "conv")),
        (Edit(Site(1, "resid"), 7, Add(torch.ones(32))), Knockout(2, -1, (6, 7), span="token+conv")),
        *[(Knockout(layer, -1, s, conv),) for layer in range(3) for s in range(L) for conv in CONVS],
    ]


@pytest.mark.parametrize("backend", SOME)
@pytest.mark.parametrize("variant", CONFIGS)
def test_the_cone_equals_one_full_forward_a_set(variant, backend):
    lm, tokens_BL, ledger = model(variant, backend=backend), tokens(3, L), Ledger()
    got = evaluate(lm, tokens_BL, sets(), lambda x: x[..., :V], ledger=ledger)
    torch.testing.assert_close(got, brute_force(lm, tokens_BL, sets()), rtol=0, atol=1e-10)
    assert ledger.edits["knockout"] == sum(len(k.sites) for s in sets() for k in s if isinstance(k, Knockout))
    assert ledger.token_layers < 0.2 * len(sets()) * L * 3 * 3
    for memory, more in ((200_000, 1), (30_000, 2)):  # in more chunks; and too little to hold what lies before a query
        again = Ledger()
        parts = evaluate(lm, tokens_BL, sets(), lambda x: x[..., :V], memory=memory, ledger=again)
        torch.testing.assert_close(parts, got, rtol=0, atol=1e-12)
        assert again.token_layers > more * ledger.token_layers


def test_a_distinct_set_of_sources_costs_one_scan_however_many_queries_and_knockouts_name_it(monkeypatch):
    lm, rows = small("mamba2"), []
    scan = lm.layers[1].backend.scan
    monkeypatch.setattr(lm.layers[1].backend, "scan", lambda v, *args, **how: rows.append(len(v)) or scan(v, *args, **how))
    run(lm, tokens(2, L), Knockout(1, (5, 6), (1, 2)), Knockout(1, 7, (2, 1)), Knockout(1, -1, 3))
    assert rows == [2, 2, 4, 2]  # layer 0, layer 1, its two sets of sources for two prompts, layer 2


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("backend", SOME)
@pytest.mark.parametrize("variant", CONFIGS)
def test_gradients_through_a_knockout_are_their_finite_differences(variant, backend, conv):
    lm, tokens_BL = model(variant, backend=backend), tokens(2, L)
    twice = {"write", "state"} | {"scan": set(), "conv": {"conv", "B"}, "both": {"conv", "B", "C"}}[conv]
    twice |= {"dt"} if variant != "mamba2" and conv != "scan" else set()
    sites = [Site(-1, "embed"), Site(0, "state"), *(Site(1, n) for n in Mixer.SITES if n not in twice), Site(2, "dt")]
    mix = torch.randn(2, 2, V, generator=stream(0, "mix"), dtype=torch.float64)
    knockout = Knockout(1, (6, -1), (3, 5, 8), conv, query_conv=conv == "both")

    def loss(*edits, **how):
        with Trace(interventions=(knockout, *edits), **how) as trace:
            return (lm(tokens_BL, trace=trace)[0][:, -2:, :V] * mix).sum(), trace

    scalar, trace = loss(keep=sites, grad=True)
    scalar.backward()
    for site in sites:
        g = trace.grads[site]
        other = torch.randn(g.shape, generator=stream(1, site.name), dtype=g.dtype)
        direction = (g / g.norm() + other / other.norm()) * trace.values[site].detach().norm()
        at = {k: loss(Edit(site, "all", Add(direction, k * 1e-3)))[0].item() for k in (-2, -1, 1, 2)}
        measured = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / 12e-3
        assert float((g * direction).sum()) == pytest.approx(measured, rel=1e-6), site


@pytest.mark.parametrize("variant", CONFIGS)
def test_a_gradient_at_a_value_that_is_made_twice_is_refused(variant):
    lm = model(variant)
    for conv, name in (("scan", "write"), ("scan", "state"), ("both", "conv"), ("conv", "B")):
        with pytest.raises(UserError, match=f"1.{name} under a knockout of layer 1"):
            lm(tokens(1, L), trace=Trace(keep=[Site(1, name)], interventions=[Knockout(1, -1, 2, conv)], grad=True))


@pytest.mark.parametrize("knockout, message", [
    (Knockout(3, -1, 0), "3.knockout"), (Knockout((0, 7), -1, 0), "7.knockout"),
    (Knockout(0, L, 0), f"query {L}|position {L}"), (Knockout(0, (2, L + 3), 0), f"query {L + 3}"),
    (Knockout(1, -1, (0, L)), f"source {L}"), (Knockout(1, -1, -L - 1), f"source {-L - 1}|position -1"),
    (Knockout(1, torch.ones(1, L + 1).bool(), 0), f"query {L}"),
])
def test_what_can_never_be_reached_raises(knockout, message):
    lm = model("mamba2")
    with pytest.raises(NeverReached, match=message):
        evaluate(lm, tokens(2, L), [(knockout,)], lambda x: x)
    with pytest.raises(NeverReached, match=message):
        run(lm, tokens(2, L), knockout)


@pytest.mark.parametrize("variant", CONFIGS)
def test_a_pass_that_goes_on_from_a_state_holds_the_source_or_says_so(variant):
    lm, tokens_BL = model(variant), tokens(2, L)
    own, within = Knockout((0, 1), -1, -1, "both"), Knockout(1, (6, 8), (5, 7))
    with Trace(interventions=[own]) as trace:  # each pass's last token, in the pass that holds it
        first, past = lm(tokens_BL[:, :4], trace=trace)
        second, _ = lm(tokens_BL[:, 4:5], trace=trace, past=past)
    assert deviation(first[..., :V], truth(lm, tokens_BL[:, :4], [own])) <= 1e-12
    assert deviation(second[:, -1, :V], truth(lm, tokens_BL[:, :5], [own])[:, -1]) > 1e-6  # its past is the clean 3
    with Trace(interventions=[within]) as trace:
        lm(tokens_BL[:, 5:], trace=trace, past=(past := lm(tokens_BL[:, :5])[1]))
    with Trace(interventions=[within]) as trace:
        pieces, past = lm(tokens_BL[:, :5], trace=trace)
        pieces = torch.cat([pieces, lm(tokens_BL[:, 5:], trace=trace, past=past)[0]], dim=1)
    assert deviation(pieces[..., :V], truth(lm, tokens_BL, [within])) <= 1e-12
    for late in (Knockout(1, 8, 3), Knockout(1, "all", 0), Knockout(1, -1, "all")):
        with pytest.raises(UserError, match="earlier pass"):
            lm(tokens_BL[:, 5:], trace=Trace(interventions=[late]), past=past)
        with pytest.raises(UserError, match="earlier pass"):
            lm.generate(tokens_BL[:, :8], 3, trace=Trace(interventions=[late]))


@pytest.mark.parametrize("make, message", [
    (lambda: Knockout(1, -1, 0, conv="bot"), "scan, conv, both"),
    (lambda: Knockout(1, -1, 0, span="conv"), "token, token\\+conv"),
    (lambda: Knockout(1, -1, 0, query_conv=True), "leaves the conv as it is"),
    (lambda: Knockout(-1, -1, 0), "layers=-1"), (lambda: Knockout((), -1, 0), "at least one"),
    (lambda: Knockout(1, (), 0), "no query"), (lambda: Knockout(1, torch.zeros(2, L).bool(), 0), "no query"),
    (lambda: Knockout(1, "last", 0), "give a position"), (lambda: Knockout(1, -1, (0, 0)), "each position once"),
    (lambda: Knockout(1, torch.ones(2, L), 0), "boolean mask"),
    (lambda: run(model("mamba1"), tokens(1, L), Knockout(1, -1, 0, heads=0)), "no heads but 64 channels; give channels="),
    (lambda: run(model("mamba1"), tokens(1, L), Knockout(1, -1, 0, channels=64)), "there are channels 0-63"),
    (lambda: run(model("mamba2"), tokens(1, L), Knockout(1, -1, 0, heads=4)), "there are heads 0-3"),
    (lambda: run(model("mamba2"), tokens(3, L), Knockout(1, *MASKS)), "there are 3 prompts"),
    (lambda: run(model("mamba2"), tokens(2, L + 1), Knockout(1, *MASKS)), f"of {L + 1} positions"),
    (lambda: run(model("mamba2"), tokens(1, L), Knockout(1, -1, 0, "both", query_conv=True), Knockout(1, -1, 1, "conv")),
     "give both the same"),
])
def test_what_does_not_fit_says_so(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("wrong", [3.7, [3.0], "3", "34", ["1"], True, [False], torch.tensor([1.0]), torch.tensor(2.5), "all"], ids=str)
def test_what_is_no_whole_number_is_refused_and_never_rounded(wrong):
    for given, more in (((wrong, -1, 1), {}), ((0, -1, 1), {"heads": wrong})):
        with pytest.raises(UserError, match="give a whole number or several, such as 3 or .3, 4."):
            Knockout(*given, **more)
    if not isinstance(wrong, str):
        for given in ((0, wrong, 1), (0, -1, wrong)):
            with pytest.raises(UserError, match="Knockout: (queries|sources)=.*give a whole number|a tensor must be a boolean mask"):
                Knockout(*given)
        with pytest.raises(UserError, match="positions=.*give a whole number"):
            Edit(Site(0, "out"), wrong, Scale(0.0))


def test_any_whole_numbers_will_do():
    assert Knockout(torch.tensor([2, 1]), -1, np.int64(1)).layers == (2, 1)
    assert Knockout(range(2), (np.int32(3),), {1}).queries == (3,)
    assert Edit(Site(0, "out"), torch.tensor(4), Scale(0.0)).positions == (4,)
