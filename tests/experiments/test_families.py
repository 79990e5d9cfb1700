"""Every experiment on every family: its own sites, its own layers, its own policies."""
import pytest
import torch

from mamba_mi import Edit, Knockout, Scale, Site, Trace, UserError, evaluate, load, models
from mamba_mi.config import stream
from mamba_mi.data import Batch, batches, facts
from mamba_mi.experiments import Setting, get, knobs_of
from mamba_mi.experiments._knockouts import policies, windows, with_layers
from mamba_mi.models import variants
from mamba_mi.models.checkpoints import published_config
from mamba_mi.report.words import SITES, layers
from mamba_mi.trace import NeverReached

ONE = {name: load(name, device="cpu", cached=False) for name in models.EMBEDDED}
# and of the variants of which none ships, an untrained one
ONE |= {f"small-{variant}": models.fresh(published_config(module.SMALL), generator=stream(0, variant), device="cpu", name=f"small-{variant}",
                                         tokenizer=ONE["tiny"].tokenizer).eval().requires_grad_(False)
        for variant, module in variants.modules().items() if hasattr(module, "SMALL")}


def made(name, model, **knobs):
    kind = get(name)
    return kind(knobs_of(kind, knobs), ONE[model], Setting(0, 1 << 28))


@pytest.mark.parametrize("model", ONE)
@pytest.mark.parametrize("name", ["patching", "info_flow", "heatmap", "construct", "compare_paths"])
def test_an_experiment_accepts_every_family_as_it_is(name, model):
    made(name, model).check()


@pytest.mark.parametrize("model", ONE)
def test_every_site_has_a_name_in_words(model):
    assert set(ONE[model].sites.names) <= set(SITES)


@pytest.mark.parametrize("model, own", [("tiny", "scan_out"), ("tiny-hyena", "long_conv"), ("tiny-moe", "scan_out"),
                                        ("tiny-retnet", "retained")])
def test_patchings_third_site_is_what_the_familys_mixing_gives(model, own):
    experiment, prompts = made("patching", model), facts.load(facts.Knobs(), ONE[model].tokenizer, seed=0).prompts
    assert experiment.knobs.sites == ["resid", "out", own]
    batch = Batch(tuple(p for p in prompts if len(p.token_ids) == len(prompts[0].token_ids) and p.spans == prompts[0].spans)[:2], "0")
    at = {site.layer for site, *_ in experiment.places(batch) if site.name == own}
    assert at == set(ONE[model].mixing)


@pytest.mark.parametrize("name", ["info_flow", "heatmap"])
def test_windows_are_of_layers_that_mix_tokens_and_the_words_say_which(name):
    lm = ONE["tiny-moe"]
    assert lm.mixing == (0, 2, 4)
    size = made(name, "tiny-moe").windows[-1] if name == "info_flow" else made(name, "tiny-moe").size
    rows = with_layers([{"conditions": {"window_start": 2, "window_size": 1}}, {"conditions": {"window_start": 0, "window_size": 2}}], lm)
    assert [layers(row) for row in rows] == ["layer 2", "layers 0, 2"]
    assert all(set(each) <= {0, 2, 4} for each in windows(size, lm.mixing).values())
    assert with_layers(plain := [{"conditions": {}}], ONE["tiny"]) is plain


def test_a_knockout_of_a_layer_of_experts_says_which_layers_mix():
    lm, tokens = ONE["tiny-moe"], facts.load(facts.Knobs(), ONE["tiny-moe"].tokenizer, seed=0).prompts[0].token_ids
    with pytest.raises(UserError, match="knockout at layer 1: it mixes no tokens in tiny-moe; layers 0, 2, 4 do"):
        evaluate(lm, torch.tensor([tokens]), [(Knockout(1, -1, 0),)], lambda x: x)


def test_without_a_conv_there_is_one_policy_and_another_is_refused():
    assert policies(made("info_flow", "tiny-retnet").knobs, ONE["tiny-retnet"]) == [("scan", "token")]
    end = ": tiny-retnet has no conv; leave method.conv and method.span out, or give [scan] and [token]"
    for name in ("info_flow", "heatmap"):
        for given, said in ((dict(conv=["both"]), "method.conv=[both]"), (dict(span=["token+conv"]), "method.span=[token+conv]"),
                            (dict(conv=["both", "conv"], span=["token+conv"]), "method.conv=[both,conv] method.span=[token+conv]")):
            with pytest.raises(UserError) as caught:
                made(name, "tiny-retnet", **given).check()
            assert str(caught.value) == said + end
    with pytest.raises(UserError, match="method.query_conv=true: tiny-retnet has no conv; leave it out"):
        made("info_flow", "tiny-retnet", query_conv=True).check()


def test_no_training_is_longer_than_the_filters():
    made("train", "tiny-hyena", length=128, examined=1).check()
    with pytest.raises(UserError, match="method.length=200: tiny-hyena takes at most 128 tokens"):
        made("train", "tiny-hyena", length=200).check()


def test_without_a_conv_no_tokens_are_beyond_its_reach_and_the_setting_says_so():
    prompts = facts.load(facts.Knobs(), ONE["tiny"].tokenizer, seed=0).prompts[:2]
    for model, there in (("tiny", True), ("tiny-hyena", True), ("tiny-retnet", False)):
        experiment = made("info_flow", model)
        experiment.batches(prompts)
        assert ("beyond_conv" in experiment.sources) is there and "random" in experiment.sources
        assert ("info_flow_smear" in experiment.figures) is there
        assert ("beyond_conv would be random again" in experiment.setting_in_words().get("controls", "")) is not there
    with pytest.raises(UserError, match="method.sources=beyond_conv: tiny-retnet has no conv.*give random$"):
        made("info_flow", "tiny-retnet", sources=["last", "beyond_conv"]).check()


@pytest.mark.parametrize("model", ["tiny", "tiny-retnet"])
def test_where_there_are_heads_they_can_be_exchanged_at_what_mixing_gives(model):
    experiment, prompts = made("patching", model, sites=["mixed"], heads="all"), facts.load(facts.Knobs(), ONE[model].tokenizer, seed=0).prompts
    experiment.check()
    batch = batches(prompts[:2], 2)[0]
    assert {cell.head for cell in experiment.cells(batch)} == set(range(ONE[model].config.mixes_by[1]))


def test_a_site_of_another_family_is_named_as_such_and_no_near_miss_is_guessed():
    for model, asked, said in (
            ("tiny-hyena", "state", "method.sites=state: tiny-hyena is a hyena and has embed, resid,.*; state is a site of .*mamba2, .*falcon_mamba$"),
            ("tiny-hyena", "hook_h", r"method.sites=hook_h \(state\): tiny-hyena .*; state is a site of .*mamba1"),
            ("tiny", "router", "method.sites=router: tiny is a mamba2 .*; router is a site of moe$"),
            ("tiny", "residd", "method.sites=residd: tiny .*; did you mean 'resid'.$")):
        with pytest.raises(UserError, match=f"^{said}") as caught:
            made("patching", model, sites=[asked])
        assert "did you mean" not in str(caught.value) or asked == "residd"


@pytest.mark.parametrize("model, site, why", [("tiny-moe", "margin", "only be read"), ("tiny-hyena", "filter", "whatever the prompt"),
                                              ("tiny-retnet", "decay", "whatever the prompt")])
def test_a_site_where_an_exchange_can_do_nothing_is_refused_before_prompts_are_chosen(model, site, why):
    with pytest.raises(UserError, match=f"^method.sites={site}: no exchange there can change anything in {model}: .*{why}"):
        made("patching", model, sites=[site]).check()


@pytest.mark.parametrize("model, site, why", [
    ("tiny-hyena", Site(3, "dt"), r"tiny-hyena is a hyena and has no dt; its sites \(lm.sites\) are embed, resid,.*, final_norm$"),
    ("tiny-moe", Site(3, "dt"), "tiny-moe has dt in layers 0, 2, 4, not in 3$"), ("tiny", Site(3, "embed"), "tiny has embed in layer -1, not in 3$"),
    ("tiny", Site(9, "dt"), "tiny has dt in layers 0-5, not in 9$")])
def test_a_site_that_a_family_lacks_is_told_of_before_the_pass(model, site, why):
    lm, tokens_BL = ONE[model], torch.tensor([[1, 2, 3]])
    for asked in ({"keep": [site]}, {"interventions": [Edit(site, 0, Scale(1.0))]}):
        trace = Trace(**asked)
        with pytest.raises(NeverReached, match=f"^never reached: {site}; {why}"):
            lm(tokens_BL, trace=trace)
        assert {met.layer for met in trace.counts} == {-1}
    with pytest.raises(NeverReached, match=f"^never reached: {site}; {why}"):
        evaluate(lm, tokens_BL, [(Edit(site, 0, Scale(1.0)),)], lambda x: x)


def test_dense_ways_are_cut_where_they_can_be():
    for name in ("info_flow", "heatmap"):
        for model in ("tiny", "tiny-retnet"):
            with pytest.raises(UserError, match="method.dense=true: .* no ways from earlier layers"):
                made(name, model, dense=True).check()


def test_timescales_need_a_step():
    with pytest.raises(UserError, match="tiny-hyena is a hyena and has no dt"):
        made("info_flow", "tiny-hyena", timescales=["all", "slow"]).check()
