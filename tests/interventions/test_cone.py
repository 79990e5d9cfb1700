"""The light cone against brute force: one full forward a job, through the plain trace."""
import pytest
import torch

from mamba_mi.config import UserError, stream
from mamba_mi.interventions import Ablate, Add, Edit, Ledger, Replace, Scale, StateEdit, contrast, evaluate
from mamba_mi.interventions.knockout import Knockout
from mamba_mi.trace import BLIND, NeverReached, Site, Trace
from tests.small import CONFIGS, small, tokens

L = 12


def brute_force(lm, tokens_BL, sets):
    """The last position's logits of one full forward a set."""
    out = []
    for interventions in sets:
        with Trace(interventions=interventions) as trace:
            out.append(lm(tokens_BL, trace=trace)[0][:, -1, :61])
    return torch.stack(out)


def patches(lm, source_BL):
    """Every site of the model at several position sets, patched from another run."""
    with Trace(keep=lm.sites) as trace:
        lm(source_BL, trace=trace)
    places = [(0,), (3, 4), (2, 5, 7), (L - 1,)]
    return [(Edit(site, at, Replace(trace.values[site][:, list(at)])),)
            for site in lm.sites for at in ([(L - 1,)] if site.name == "final_norm" else places)]


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("variant", CONFIGS)
def test_every_site_and_position_equals_one_full_forward_a_cell(variant, backend):
    lm = small(variant, backend=backend)
    tokens_BL = tokens(3, L)
    sets = [(), *patches(lm, tokens(3, L, seed=1))]
    got = evaluate(lm, tokens_BL, sets, lambda logits_SBV: logits_SBV[..., :61])
    torch.testing.assert_close(got, brute_force(lm, tokens_BL, sets), rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", CONFIGS)
def test_sets_of_several_edits_at_different_layers_and_positions(variant):
    lm = small(variant)
    tokens_BL = tokens(2, L)
    sets = [
        (StateEdit(1, 4, Scale(0.0)), Edit(Site(2, "dt"), -1, Ablate())),
        (Edit(Site(0, "resid"), "all", Scale(0.5)), Edit(Site(-1, "final_norm"), L - 1, Scale(2.0))),
        (Edit(Site(2, "out"), (6, 7), Add(torch.ones(32))), Edit(Site(0, "gate"), 9, Ablate())),
        (Edit(Site(-1, "embed"), 0, Scale(-1.0)),),
    ]
    got = evaluate(lm, tokens_BL, sets, lambda logits_SBV: logits_SBV[..., :61])
    torch.testing.assert_close(got, brute_force(lm, tokens_BL, sets), rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", CONFIGS)
def test_a_small_memory_gives_the_same_numbers_in_more_chunks(variant):
    lm = small(variant)
    tokens_BL, sets = tokens(3, L), patches(lm, tokens(3, L, seed=1))
    large, small_ = Ledger(), Ledger()
    whole = evaluate(lm, tokens_BL, sets, lambda x: x[..., :61], ledger=large)
    parts = evaluate(lm, tokens_BL, sets, lambda x: x[..., :61], memory=200_000, ledger=small_)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    assert small_.token_layers > large.token_layers
    assert small_.edits == large.edits


def test_the_cone_runs_far_fewer_tokens_than_one_forward_a_cell():
    lm = small("mamba2", n_layer=6)
    sets = [(Edit(Site(layer, "resid"), at, Scale(0.0)),) for layer in range(6) for at in range(L)]
    ledger = Ledger()
    evaluate(lm, tokens(1, L), sets, lambda x: x[..., :61], ledger=ledger)
    assert ledger.token_layers < 0.45 * len(sets) * L * 6
    assert ledger.edits == {"resid": len(sets)}


@pytest.mark.parametrize("variant", CONFIGS)
@pytest.mark.parametrize("dtype, rounding", [("float32", 1e-6), ("float64", 1e-14)])
def test_an_edit_that_changes_nothing_equals_its_twin_to_rounding(variant, dtype, rounding):
    # to the bit in nearly all cells; a matrix product's last rows may take another kernel than its first
    lm = small(variant, dtype=dtype)
    tokens_BL = tokens(4, L)
    values, clean = contrast(lm, tokens_BL, patches(lm, tokens_BL), lambda x: x[..., :61])
    assert (values - clean).abs().max() <= rounding * clean.abs().max()


@pytest.mark.parametrize("variant", CONFIGS)
def test_an_edit_that_changes_nothing_in_a_plain_pass_changes_no_bit(variant):
    lm, tokens_BL = small(variant, dtype="float32"), tokens(4, 70)
    sites = [site for site in lm.sites if site.name not in ("write", "state")]  # those run the token loop instead
    with Trace(keep=sites) as trace:
        clean, _ = lm(tokens_BL, trace=trace)
    for site in sites:
        with Trace(interventions=[Edit(site, (2, 5), Replace(trace.values[site][:, [2, 5]]))]) as again:
            assert torch.equal(lm(tokens_BL, trace=again)[0], clean), site


@pytest.mark.parametrize("variant", CONFIGS)
def test_noise_on_the_embedding_and_several_positions_read_equal_one_full_forward_a_cell(variant):
    lm, tokens_BL = small(variant), tokens(3, L)
    noise = Edit(Site(-1, "embed"), (2, 3), Add(torch.randn(3, 2, 32, dtype=torch.float64, generator=stream(0, "noise"))))
    with Trace(interventions=[noise]) as trace:
        embedded_BLD = lm.embed(tokens_BL, trace)
    sets = [(), *patches(lm, tokens(3, L, seed=1))]
    sets = [s for s in sets if not s or s[0].site not in ((-1, "embed"), (-1, "final_norm"))]
    got, clean = contrast(lm, tokens_BL, sets, lambda x: x[..., :61], embedded_BLD=embedded_BLD, tail=4)
    want = []
    for interventions in sets:
        with Trace(interventions=(noise, *interventions)) as trace:
            want.append(lm(tokens_BL, trace=trace)[0][:, -4:, :61])
    torch.testing.assert_close(got, torch.stack(want), rtol=0, atol=1e-10)
    torch.testing.assert_close(clean, want[0].expand_as(clean), rtol=0, atol=1e-10)


@pytest.mark.parametrize("edit", [
    Edit(Site(7, "dt"), 0, Scale(1.0)), Edit(Site(1, "dtt"), 0, Scale(1.0)), Edit(Site(1, "dt"), L, Scale(1.0)),
    Edit(Site(1, "dt"), (0, L + 3), Scale(1.0)), Edit(Site(1, "dt"), -L - 1, Scale(1.0)),
])
def test_what_can_never_be_reached_raises(edit):
    lm = small("mamba2")
    with pytest.raises(NeverReached, match="never reached"):
        evaluate(lm, tokens(2, L), [(edit,)], lambda x: x)
    with pytest.raises(NeverReached, match="never reached"), Trace(interventions=[edit]) as trace:
        lm(tokens(2, L), trace=trace)


def test_nothing_to_evaluate_raises():
    with pytest.raises(UserError, match="no intervention sets"):
        evaluate(small("mamba2"), tokens(1, 3), [], lambda x: x)


def test_a_set_that_changes_nothing_is_the_clean_run_and_runs_nothing_beside_it():
    lm, tokens_BL, edit = small("mamba2"), tokens(2, L), Edit(Site(1, "out"), -1, Scale(0.5))
    alone, beside = Ledger(), Ledger()
    evaluate(lm, tokens_BL, [(edit,)], lambda x: x[..., :61], ledger=alone)
    got, clean = contrast(lm, tokens_BL, [(edit,), (), ()], lambda x: x[..., :61], ledger=beside)
    assert torch.equal(got[1], clean[1]) and beside.token_layers == alone.token_layers


def test_a_layer_that_asks_for_no_knockouts_is_found_out():
    lm = small("mamba2")
    deaf = lm.layers[1]
    forward = deaf.forward
    deaf.forward = lambda resid_BLD, trace, past, keep: forward(resid_BLD, BLIND, past, keep)
    with pytest.raises(NeverReached, match=r"never reached at site 1\.knockout: any position"):
        evaluate(lm, tokens(1, L), [(Knockout((0, 1), -1, 3),)], lambda x: x)
