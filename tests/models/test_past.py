"""One forward for a prompt and for going on with it, and starting from any layer."""
import pytest
import torch
from oracles import CONFIGS, MAMBA1, deviation
from oracles.registry import ORACLES

from mamba_mi import Site, Trace, UserError, load
from mamba_mi.models import lm as language_model


def in_pieces(lm, tokens_BL, cuts, trace=None):
    """The logits of passes over tokens_BL[:, :cuts[0]], then … cuts[1], …, each going on from the last."""
    past, out, extra = None, [], {"trace": trace} if trace else {}
    for start, end in zip((0, *cuts), (*cuts, tokens_BL.shape[1]), strict=True):
        logits_BLV, past = lm(tokens_BL[:, start:end], past=past, **extra)
        assert past.length == end
        out.append(logits_BLV)
    return torch.cat(out, dim=1)


def test_a_prompt_split_anywhere_goes_on_as_if_whole(published, variant, backend, tokens):
    lm, tokens_BL = load(published(CONFIGS[variant])[0], backend=backend, dtype="float64"), tokens(2, 9)
    whole = lm(tokens_BL)[0]
    for cut in range(1, 9):
        assert deviation(in_pieces(lm, tokens_BL, (cut,)), whole) <= 1e-10, cut


@pytest.mark.parametrize("cuts", [(1,), (3,), (63,), (64,), (65,), (1, 3, 5, 6, 69), (64, 66)])
def test_a_prompt_longer_than_a_chunk_splits_too(lm, tokens, cuts):
    tokens_BL = tokens(1, 70)
    assert deviation(in_pieces(lm, tokens_BL, cuts), lm(tokens_BL)[0]) <= 1e-10


@pytest.mark.parametrize("kind", ORACLES)
def test_a_long_prompt_that_nobody_watches_goes_through_in_parts(kind, tmp_path, tokens, monkeypatch):
    ORACLES[kind].write(tmp_path, 0)
    lm, tokens_BL, calls = load(tmp_path, dtype="float64"), tokens(2, 150), []
    with Trace(keep=["0.resid"]) as watched:
        logits_BLV, past = lm(tokens_BL, trace=watched)
    lm.layers[-1].register_forward_hook(lambda layer, given, made: calls.append(made[0].shape[1]))
    monkeypatch.setattr(language_model, "PART", 300)
    lm(tokens_BL)
    monkeypatch.setattr(language_model, "PART", 299)
    parts_BLV, parts = lm(tokens_BL)
    assert calls == [150, 150] if kind in ("retnet", "hyena") else [150, 128, 22]
    assert deviation(parts_BLV, logits_BLV) <= 1e-10 and parts.length == 150
    more_BL = tokens(2, 5, seed=1)
    assert deviation(lm(more_BL, past=parts)[0], lm(more_BL, past=past)[0]) <= 1e-10
    del calls[:]
    with Trace(keep=["0.resid"]) as watched:
        lm(tokens_BL, trace=watched)
    with torch.enable_grad():
        lm.requires_grad_(True)(tokens_BL)
    assert calls == [150, 150]
    assert lm.requires_grad_(False).through(lm.embed(tokens_BL), keep=False)[1] is None


def test_token_by_token_and_watched_gives_what_one_pass_gives(lm, tokens):
    tokens_BL = tokens(2, 7)
    with Trace(keep=lm.sites) as whole:
        logits = lm(tokens_BL, trace=whole)[0]
    with Trace(keep=lm.sites) as pieces:
        assert deviation(in_pieces(lm, tokens_BL, tuple(range(1, 7)), pieces), logits) <= 1e-10
    for site in lm.sites:
        assert deviation(pieces.values[site], whole.values[site]) <= 1e-10, site


def test_one_prompts_past_serves_many_continuations_and_is_left_as_it_was(lm, tokens):
    prompt_1L, ends_BL = tokens(1, 6), tokens(3, 4, seed=1)
    past = lm(prompt_1L)[1]
    first, again = lm(ends_BL, past=past)[0], lm(ends_BL, past=past)[0]
    assert torch.equal(first, again)
    whole = lm(torch.cat([prompt_1L.expand(3, -1), ends_BL], dim=1))[0][:, 6:]
    assert deviation(first, whole) <= 1e-10


def test_greedy_generation_is_the_argmax_of_whole_passes(lm, tokens):
    tokens_BL = tokens(2, 5)
    new_BL = lm.generate(tokens_BL, 6)
    for _ in range(6):
        tokens_BL = torch.cat([tokens_BL, lm(tokens_BL)[0][:, -1:].argmax(-1)], dim=1)
    assert torch.equal(new_BL, tokens_BL[:, 5:])


def test_starting_from_a_layer_gives_the_same_logits_to_the_bit(lm, tokens):
    tokens_BL = tokens(2, 9)
    with Trace(keep=lm.sites) as trace:
        whole = lm(tokens_BL, trace=trace)[0]
    for first in range(lm.config.n_layer):
        resid_BLD, _ = lm.through(trace.values[Site(first, "resid")], first=first)
        assert torch.equal(lm.unembed(resid_BLD), whole)
    assert torch.equal(lm.unembed(trace.values[Site(lm.config.n_layer - 1, "resid_out")]), whole)


def test_starting_from_a_layer_goes_on_from_a_prefix(lm, tokens):
    tokens_BL = tokens(2, 9)
    past = lm(tokens_BL[:, :5])[1]
    with Trace(keep=lm.sites) as trace:
        rest = lm(tokens_BL[:, 5:], trace=trace, past=past)[0]
    resid_BLD, after = lm.through(trace.values[Site(1, "resid")], past=past, first=1)
    assert after.length == 9
    assert torch.equal(lm.unembed(resid_BLD), rest)


def test_the_past_of_some_layers_goes_on_in_those_layers(published, backend, tokens):
    """A pass through layers 1 and 2 alone, cut in two: the past is handed back to the layers it came from."""
    lm = load(published({**MAMBA1, "n_layer": 4})[0], backend=backend, dtype="float64")
    with Trace(keep=[Site(1, "resid"), Site(3, "resid")]) as trace:
        lm(tokens(1, 9), trace=trace)
    resid_BLD, truth = trace.values[Site(1, "resid")], trace.values[Site(3, "resid")]
    head, past = lm.through(resid_BLD[:, :5], first=1, last=3)
    tail, _ = lm.through(resid_BLD[:, 5:], past=past, first=1, last=3)
    assert deviation(torch.cat([head, tail], dim=1), truth) <= 1e-10
    with pytest.raises(UserError, match="holds layers 1-2, not 0"):
        lm(tokens(1, 3), past=past)


def test_stopping_before_a_layer_gives_its_residual_stream(lm, tokens):
    tokens_BL = tokens(1, 5)
    with Trace(keep=[Site(1, "resid")]) as trace:
        lm(tokens_BL, trace=trace)
    assert torch.equal(lm.through(lm.embed(tokens_BL), last=1)[0], trace.values[Site(1, "resid")])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_not_keeping_the_past_changes_no_bit(published, config, backend, tokens):
    lm = load(published(config)[0], backend=backend)
    resid_BLD = lm.embed(tokens(2, 67))
    kept, none = lm.through(resid_BLD), lm.through(resid_BLD, keep=False)
    assert none[1] is None
    assert torch.equal(kept[0], none[0])
