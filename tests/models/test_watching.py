"""What a trace does: nothing by watching, exactly the edit by editing, an error when it met nothing."""
import math

import pytest
import torch
from oracles import CONFIGS, deviation

from mamba_mi import Add, Edit, Replace, Scale, Site, StateEdit, Trace, load
from mamba_mi.trace import NeverReached

BLOCK = ("resid", "normed", "in_proj", "gate", "conv", "dt", "B", "C", "write", "state",
         "scan_out", "gated", "out", "resid_out")
SITES = [Site(-1, "embed"), *(Site(1, name) for name in BLOCK), Site(-1, "final_norm")]


def finite(logits_BLV):
    return logits_BLV[..., :45]


def kept(lm, tokens_BL, sites=None, **how):
    with Trace(keep=lm.sites if sites is None else sites, **how) as trace:
        logits_BLV, _ = lm(tokens_BL, trace=trace)
    return logits_BLV, trace.values


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_watching_changes_no_bit_of_the_logits(published, small, backend, dtype, tokens):
    lm, tokens_BL = load(published(CONFIGS[small])[0], backend=backend, dtype=dtype), tokens(2, 67)
    blind = lm(tokens_BL)[0]
    assert torch.equal(kept(lm, tokens_BL)[0], blind)
    for site in SITES:
        assert torch.equal(kept(lm, tokens_BL, [site])[0], blind), site


@pytest.mark.parametrize("site", SITES, ids=str)
def test_an_edit_that_puts_back_what_is_there_changes_no_bit(published, small, backend, site, tokens):
    lm, tokens_BL = load(published(CONFIGS[small])[0], backend=backend), tokens(2, 67)
    clean, values = kept(lm, tokens_BL, [site])
    everywhere = Edit(site, "all", Replace(values[site]))
    some = Edit(site, (0, 3, 66), Replace(values[site][:, [0, 3, 66]]))
    for edit in (everywhere, some, Edit(site, -1, Scale(1.0))):
        edited = kept(lm, tokens_BL, [site], interventions=[edit])[0]
        if site.name in ("write", "state") and backend != "reference":
            # only the token loop has these in hand, so the edited scan runs there: equal to rounding
            assert deviation(edited, clean) <= 1e-6
        else:
            assert torch.equal(edited, clean)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_an_edit_reaches_later_positions_and_no_earlier_one(lm, site, tokens):
    tokens_BL = tokens(1, 9)
    clean = lm(tokens_BL)[0]
    edited = kept(lm, tokens_BL, [site], interventions=[Edit(site, 4, Scale(0.5))])[0]
    assert deviation(edited[:, :4], clean[:, :4]) <= 1e-12
    assert deviation(finite(edited[:, 4]), finite(clean[:, 4])) > 1e-6


@pytest.mark.parametrize("layer", [0, 1])
def test_the_residual_stream_is_one_stream_wherever_it_is_edited(lm, layer, tokens):
    """An edit at `resid` moves what the block adds to, not only what it reads."""
    tokens_BL, shift = tokens(1, 6), Add(torch.linspace(-1, 1, lm.config.d_model).double())
    below = Site(layer - 1, "resid_out") if layer else Site(-1, "embed")
    here, values = kept(lm, tokens_BL, interventions=[Edit(Site(layer, "resid"), 2, shift)])
    assert torch.equal(here, kept(lm, tokens_BL, interventions=[Edit(below, 2, shift)])[0])
    stream, added, after = (values[Site(layer, name)] for name in ("resid", "out", "resid_out"))
    assert torch.equal(after, stream + added)


def test_dt_of_zero_leaves_the_state_as_it_was_to_the_bit(published, small, backend, tokens):
    for dtype in ("float32", "float64"):
        lm = load(published(CONFIGS[small])[0], backend=backend, dtype=dtype)
        stop = Edit(Site(0, "dt"), 3, Scale(0.0))
        values = kept(lm, tokens(2, 7), [Site(0, "state")], interventions=[stop])[1]
        state_BLHPN = values[Site(0, "state")]
        assert torch.equal(state_BLHPN[:, 3], state_BLHPN[:, 2])
        assert not torch.equal(state_BLHPN[:, 4], state_BLHPN[:, 3])


def test_a_state_edit_adds_what_the_recurrence_says(lm, tokens):
    """dS at p adds C_t exp(A sum dt_{p+1..t}) dS to that layer's scan at every t >= p, and nothing before."""
    tokens_BL, p, layer = tokens(1, 9), 3, lm.config.n_layer - 1
    sites = [Site(layer, name) for name in ("dt", "C", "state", "scan_out")]
    clean = kept(lm, tokens_BL, sites)[1]
    generator = torch.Generator().manual_seed(5)
    moved = torch.randn(clean[sites[2]].shape[2:], generator=generator, dtype=torch.float64)
    edited = kept(lm, tokens_BL, sites, interventions=[StateEdit(layer, p, Add(moved))])[1]
    dt_LH, C_LGN = clean[sites[0]][0], clean[sites[1]][0]
    C_LHN = C_LGN.repeat_interleave(dt_LH.shape[1] // C_LGN.shape[1], dim=1)
    A_HN = -lm.layers[layer].A_log.exp().view(dt_LH.shape[1], -1)
    assert deviation(edited[sites[3]][0, :p], clean[sites[3]][0, :p]) <= 1e-12
    change_LE = (edited[sites[3]] - clean[sites[3]])[0]
    for t in range(p, 9):
        decay_HN = torch.exp(A_HN * dt_LH[p + 1:t + 1].sum(0)[:, None])
        expected_HP = (moved * decay_HN[:, None] * C_LHN[t, :, None]).sum(-1)
        assert deviation(change_LE[t], expected_HP.flatten()) <= 1e-9


def test_removing_a_write_is_removing_the_value_it_wrote(lm, tokens):
    tokens_BL, write, scan_out = tokens(1, 7), Site(0, "write"), Site(0, "scan_out")
    _, clean = kept(lm, tokens_BL, [Site(0, "state"), write])
    _, without = kept(lm, tokens_BL, [Site(0, "state"), scan_out], interventions=[Edit(write, 2, Scale(0.0))])
    moved = clean[Site(0, "state")] - without[Site(0, "state")]
    assert deviation(moved[:, 2], clean[write][:, 2]) <= 1e-12
    assert not moved[:, :2].any()


@pytest.mark.parametrize("site", [Site(2, "dt"), Site(0, "dta"), Site(-1, "dt"), Site(0, "embed")], ids=str)
def test_a_site_that_is_kept_or_edited_and_never_met_raises(lm, site, tokens):
    for asked in ({"keep": [site]}, {"interventions": [Edit(site, 0, Scale(2.0))]}):
        with pytest.raises(NeverReached, match=rf"^never reached: {site};[^\n]*$"), Trace(**asked) as trace:
            lm(tokens(1, 5), trace=trace)


@pytest.mark.parametrize("edit", [
    *(Edit(Site(0, "out"), positions, Scale(2.0)) for positions in (5, -6, (0, 5), (0, -6), (4, -1))),
    StateEdit(0, 5, Scale(2.0)), StateEdit(9, 0, Scale(2.0))], ids=lambda edit: f"{edit.sites[0]}")
def test_an_edit_of_a_position_never_met_raises(lm, edit, tokens):
    """Also one that met another of its positions, and one named twice (4 is -1 of five)."""
    with pytest.raises(NeverReached, match="^never reached[^\n]*$"), Trace(interventions=[edit]) as trace:
        lm(tokens(1, 5), trace=trace)


def test_an_edit_in_a_pass_started_at_a_layer_means_the_same(lm, tokens):
    tokens_BL = tokens(1, 6)
    for position in (2, -1):
        edit = Edit(Site(1, "out"), position, Scale(3.0))
        whole, values = kept(lm, tokens_BL, [Site(1, "resid")], interventions=[edit])
        with Trace(interventions=[edit]) as trace:
            resid_BLD, _ = lm.through(values[Site(1, "resid")], trace=trace, first=1)
        assert torch.equal(lm.unembed(resid_BLD), whole)
    with pytest.raises(NeverReached), Trace(interventions=[Edit(Site(1, "out"), 6, Scale(3.0))]) as trace:
        lm.through(values[Site(1, "resid")], trace=trace, first=1)


def test_a_trace_seen_by_another_prompt_raises(lm, tokens):
    trace = Trace(keep=[Site(0, "dt")])
    lm(tokens(1, 5), trace=trace)
    with pytest.raises(ValueError, match="new Trace"):
        lm(tokens(1, 5), trace=trace)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_the_gradient_at_a_site_is_its_finite_difference(lm, site, tokens):
    """Along a random direction at two positions; the loss is a random mix of the last two's logits."""
    tokens_BL, generator = tokens(1, 6), torch.Generator().manual_seed(7)
    mix = torch.randn(2, 45, generator=generator, dtype=torch.float64)

    def loss(trace):
        return (finite(lm(tokens_BL, trace=trace)[0])[0, -2:] * mix).sum()

    with Trace(keep=[site], grad=True) as trace:
        loss(trace).backward()
    gradient, value = trace.grads[site][0], trace.values[site].detach()
    direction = torch.randn(value.shape[2:], generator=generator, dtype=torch.float64) * value.abs().mean()
    ends = []
    for step in (1e-4, -1e-4):
        with Trace(interventions=[Edit(site, (2, 4), Add(direction, step))]) as trace:
            ends.append(loss(trace).item())
    measured, exact = (ends[0] - ends[1]) / 2e-4, float((gradient[[2, 4]] * direction).sum())
    assert exact == pytest.approx(measured, rel=1e-6, abs=1e-9 * math.sqrt(direction.numel()))
