"""States kept at named positions alone: the numbers of the token loop, from the fast path, and no other position is held."""
import pytest
import torch
from oracles import deviation

from mamba_mi import Add, Edit, Knockout, Scale, Site, StateEdit, Trace, UserError, load
from mamba_mi.backends import chunked, reference
from mamba_mi.trace import NeverReached
from tests.available import BACKENDS
from tests.live_memory import LiveMemory
from tests.small import CONFIGS, small, tokens

LENGTH = 67
NAMES = [f"blocks.{layer}.hook_h.{position}" for layer in (0, 1) for position in (66, 0, 31)]


def kept(lm, tokens_BL, keep, **how):
    """Logits and values of one pass."""
    with Trace(keep=keep, **how) as trace:
        logits_BLV, _ = lm(tokens_BL, trace=trace)
    return logits_BLV, trace.values


@pytest.fixture
def loops(monkeypatch):
    """How often the token loop was watched."""
    seen = []
    monkeypatch.setattr(reference, "watched_scan", lambda *a, plain=reference.watched_scan, **k: seen.append(k) or plain(*a, **k))
    return seen


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", CONFIGS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_they_are_those_of_the_loop_and_the_logits_those_of_an_unwatched_pass(variant, backend, dtype):
    lm, tokens_BL = small(variant, dtype=dtype).on(backend), tokens(3, LENGTH)
    logits_BLV, few = kept(lm, tokens_BL, NAMES)
    _, every = kept(lm, tokens_BL, [Site(0, "state"), Site(1, "state")])
    assert torch.equal(logits_BLV, lm(tokens_BL)[0])
    assert list(few) == [f"blocks.{layer}.hook_h.{position}" for layer in (0, 1) for position in (0, 31, 66)]
    for name in NAMES:
        assert few[name].shape == every[name].shape and few[name].dtype == every[name].dtype
        assert deviation(few[name], every[name]) <= (1e-12 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("model", ["tiny-densemamba", "tiny-moe"])
@pytest.mark.parametrize("beside", [(), ("2.fused",)], ids=["alone", "beside-fused"])
def test_so_it_is_where_layers_read_earlier_states_or_stand_beside_experts(model, beside):
    lm, names = load(model, dtype="float64", cached=False), ["blocks.2.hook_h.4", "blocks.2.hook_h.8"]
    beside = [site for site in beside if Site.of(site) in lm.sites]
    logits_BLV, few = kept(lm, tokens(2, 9), [*names, *beside])
    _, every = kept(lm, tokens(2, 9), [Site(2, "state"), *beside])
    assert torch.equal(logits_BLV, lm(tokens(2, 9))[0])
    assert set(few) == {*names, *map(Site.of, beside)}
    for name in few:
        assert deviation(few[name], every[name]) <= 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["mamba1", "mamba2"])
def test_autocast_leaves_them_and_what_is_watched_their_own_sums(variant, backend):
    lm, tokens_BL, names = small(variant, dtype="float32").on(backend), tokens(1, 20), ["blocks.0.hook_h.19", "blocks.0.hook_h.7"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_BLV, few = kept(lm, tokens_BL, names)
        same_BLV, every = kept(lm, tokens_BL, [Site(0, "state")])
        assert torch.equal(logits_BLV, lm(tokens_BL)[0]) and torch.equal(same_BLV, logits_BLV)
    for name in names:
        assert deviation(few[name], every[name]) <= 1e-6


def test_the_loop_is_not_run_for_them(loops):
    lm = small("mamba2").on("chunked")
    kept(lm, tokens(1, 9), ["blocks.1.hook_h.3", "blocks.2.hook_h.8"])
    assert not loops
    kept(lm, tokens(1, 9), ["blocks.1.hook_h.3", Site(1, "state")])
    assert len(loops) == 1


def test_no_other_position_is_held():
    lm, tokens_BL = small("mamba2", dtype="float32").on("chunked"), tokens(1, 256)
    one = 4 * torch.tensor(lm.widths["state"]).prod().item()
    with torch.no_grad(), LiveMemory() as blind:
        lm(tokens_BL)
    with torch.no_grad(), LiveMemory() as few, Trace(keep=["blocks.1.hook_h.100"]) as trace:
        lm(tokens_BL, trace=trace)
    assert few.most <= blind.most + 8 * one  # what is asked for, and a scan's own temporaries of that size
    assert trace.values["blocks.1.hook_h.100"].untyped_storage().nbytes() == one
    with LiveMemory() as edited, Trace(keep=["blocks.1.hook_h.100"], interventions=[StateEdit(1, 4, Scale(2.0))]) as trace:
        lm(tokens_BL, trace=trace)
    assert trace.values["blocks.1.hook_h.100"].untyped_storage().nbytes() == one < edited.most


def test_they_are_found_by_name_and_the_site_is_not():
    _, values = kept(small("mamba2"), tokens(2, 6), ["blocks.1.hook_h.4", "blocks.1.hook_h.2", Site(1, "dt")])
    assert list(values) == [Site(1, "dt"), "blocks.1.hook_h.2", "blocks.1.hook_h.4"]
    assert torch.equal(values["blocks.01.hook_h.04"], values["blocks.1.hook_h.4"])
    assert torch.equal(values[Site.of("blocks.1.hook_h.4")], values["blocks.1.hook_h.4"])
    for absent in (Site(1, "state"), "1.state", "blocks.1.hook_h", "blocks.1.hook_h.3", "blocks.0.hook_h.4"):
        with pytest.raises(KeyError, match="was not kept; kept are 1.dt, blocks.1.hook_h.2, blocks.1.hook_h.4"):
            _ = values[absent]


def test_beside_the_whole_site_a_name_gives_its_position():
    _, values = kept(small("mamba2"), tokens(2, 6), ["blocks.1.hook_h.4", Site(1, "state")])
    assert set(values) == {Site(1, "state")}
    assert torch.equal(values["blocks.1.hook_h.4"], values[Site(1, "state")][:, [4]])


@pytest.mark.parametrize("whole", [(), (Site(1, "state"),)], ids=["alone", "beside-the-site"])
@pytest.mark.parametrize("position", [6, 99])
def test_a_position_beyond_the_prompt_is_named_on_leaving(whole, position):
    with pytest.raises(NeverReached, match=rf"^never reached: blocks\.1\.hook_h\.{position}; the pass went over positions 0-5$"):
        kept(small("mamba2"), tokens(1, 6), [f"blocks.1.hook_h.{position}", "blocks.1.hook_h.2", *whole])


def test_one_before_the_pass_a_negative_one_and_one_of_a_layer_that_is_not_there_are_refused():
    lm, tokens_BL = small("mamba1"), tokens(1, 6)
    _, past = lm(tokens_BL[:, :4])
    with pytest.raises(NeverReached, match=r"hook_h\.3; the pass went over positions 4-5"), Trace(keep="blocks.0.hook_h.3") as trace:
        lm(tokens_BL[:, 4:], trace=trace, past=past)
    with pytest.raises(UserError, match=r"blocks\.0\.hook_h\.-1: a position in a name is counted from the prompt's first token, 0"):
        Trace(keep="blocks.0.hook_h.-1")
    with pytest.raises(NeverReached, match=r"9\.state \(blocks\.9\.hook_h\.1\)"):
        kept(lm, tokens_BL, ["blocks.9.hook_h.1"])
    with pytest.raises(NeverReached, match=r"0\.state \(blocks\.0\.hook_h\.1\)"), Trace(keep="blocks.0.hook_h.1"):
        pass


def test_a_generation_meets_them_in_whatever_pass_they_fall(loops):
    lm, tokens_BL = small("mamba2").on("chunked"), tokens(2, 4)
    names = [f"blocks.1.hook_h.{position}" for position in (2, 5, 6)]
    with Trace(keep=names) as few:
        said = lm.generate(tokens_BL, 4, trace=few)
    assert not loops
    with Trace(keep=Site(1, "state")) as every:
        assert torch.equal(lm.generate(tokens_BL, 4, trace=every), said)
    for name in names:
        torch.testing.assert_close(few.values[name], every.values[name])
    with pytest.raises(NeverReached, match=r"hook_h\.7; the pass went over positions 0-6"), Trace(keep="blocks.1.hook_h.7") as trace:
        lm.generate(tokens_BL, 4, trace=trace)


@pytest.mark.parametrize("variant", ["mamba1", "mamba2"])
@pytest.mark.parametrize("more", [
    Knockout((1,), (5,), (2,)), Knockout((0, 1), (4, 5), (1,), conv="both"), Edit(Site(0, "out"), 2, Scale(0.0)),
    StateEdit(1, 3, Add(torch.ones(1, dtype=torch.float64))), Edit(Site(1, "write"), 3, Scale(0.0)), Edit("blocks.1.hook_h.4", 4, Scale(2.0))],
    ids=["knockout", "knockout-conv", "edit", "state-edit", "write-edit", "edit-by-name"])
def test_under_interventions_they_are_what_the_whole_site_would_hold(variant, more):
    lm, tokens_BL = small(variant).on("chunked"), tokens(2, 6)
    logits_BLV, few = kept(lm, tokens_BL, ["blocks.1.hook_h.4", "blocks.1.hook_h.5"], interventions=[more])
    same_BLV, every = kept(lm, tokens_BL, [Site(1, "state")], interventions=[more])
    assert torch.equal(logits_BLV, same_BLV)
    for name in few:
        torch.testing.assert_close(few[name], every[name])


def test_beside_all_writes_and_with_gradients_the_loop_gives_them(loops):
    lm, tokens_BL = small("mamba2").on("chunked"), tokens(1, 6)
    _, values = kept(lm, tokens_BL, ["blocks.1.hook_h.4", Site(1, "write")])
    assert len(loops) == 1 and set(values) == {Site(1, "write"), "blocks.1.hook_h.4"}
    with Trace(keep="blocks.1.hook_h.4", grad=True) as trace:
        lm(tokens_BL, trace=trace)[0][0, -1, 3].backward()
    with Trace(keep=Site(1, "state"), grad=True) as whole:
        lm(tokens_BL, trace=whole)[0][0, -1, 3].backward()
    assert torch.equal(trace.grads["blocks.1.hook_h.4"], whole.grads[Site(1, "state")][:, [4]])
    assert torch.equal(trace.values["blocks.1.hook_h.4"], whole.values[Site(1, "state")][:, [4]])


def test_where_gradients_are_on_and_not_asked_for_they_are_made_without(monkeypatch):
    lm, graphs = small("mamba2").on("chunked").requires_grad_(True), []
    monkeypatch.setattr(chunked, "states_at", lambda *a, plain=chunked.states_at, **how:
                        graphs.append(torch.is_grad_enabled()) or plain(*a, **how))
    logits_BLV, values = kept(lm, tokens(1, 6), ["blocks.1.hook_h.4"])
    assert logits_BLV.requires_grad and not values["blocks.1.hook_h.4"].requires_grad and graphs == [False]


@pytest.mark.parametrize("passes", [1, 2])
def test_of_a_value_that_comes_with_several_positions_one_is_taken(passes):
    """As a layer hands it on that has all its states at once."""
    x_BLX = torch.arange(24.0).view(2, 6, 2)
    with Trace(keep=["blocks.1.hook_h.4", "blocks.1.hook_h.1"]) as trace:
        for part, offset in ((x_BLX[:, :3], 0), (x_BLX[:, 3:], 3)) if passes == 2 else ((x_BLX, 0),):
            trace.begin(offset, part.shape[1])
            trace(Site(1, "state"), part)
    for position in (1, 4):
        one = trace.values[f"blocks.1.hook_h.{position}"]
        assert torch.equal(one, x_BLX[:, [position]]) and one.untyped_storage().nbytes() == 2 * 2 * 4
