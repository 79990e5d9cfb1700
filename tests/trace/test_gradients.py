"""Gradients at every site, in float64, against a five-point difference of edits there."""
import pytest
import torch
from torch import Tensor

from mamba_mi import Add, Edit, Replace, Scale, Site, StateEdit, Trace, UserError
from mamba_mi.config import stream
from mamba_mi.models.mixer import Mixer
from mamba_mi.trace import NeverReached
from tests.available import SOME
from tests.small import CONFIGS, small, tokens

LAYER, LENGTH = 1, 6
SITES = [Site(-1, "embed"), *(Site(LAYER, name) for name in Mixer.SITES), Site(-1, "final_norm")]
EDITED = {"by-nothing": [],
          "below": [Edit(Site(0, "resid_out"), 1, Scale(0.5))],
          "at-every-site": [Edit(site, 2, Scale(0.7)) for site in SITES],
          "in-the-state": [StateEdit(LAYER, 1, Scale(0.3))]}


def loss(lm, **how) -> tuple[Tensor, Trace]:
    """A random mix of the last two positions' logits, of two prompts."""
    mix = torch.randn(2, 2, 61, generator=stream(0, "mix"), dtype=torch.float64)
    with Trace(**how) as trace:
        logits_BLV, _ = lm(tokens(2, LENGTH), trace=trace)
    return (logits_BLV[:, -2:, :61] * mix).sum(), trace


def gradients(lm, keep, edits=()):
    scalar, trace = loss(lm, keep=keep, interventions=edits, grad=True)
    scalar.backward()
    return trace.grads, trace.values


def measured(lm, site, direction, edits, step=1e-3):
    at = {k: loss(lm, interventions=[*edits, Edit(site, "all", Add(direction, k * step))])[0].item() for k in (-2, -1, 1, 2)}
    return (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * step)


@pytest.mark.parametrize("edits", EDITED.values(), ids=EDITED)
@pytest.mark.parametrize("backend", SOME)
@pytest.mark.parametrize("variant", CONFIGS)
def test_the_gradient_at_every_site_is_its_finite_difference(variant, backend, edits):
    lm = small(variant, backend=backend)
    grads, values = gradients(lm, SITES, edits)
    assert set(grads) == set(SITES)
    for site in SITES:
        g = grads[site]
        other = torch.randn(g.shape, generator=stream(1, site.name), dtype=g.dtype)
        # along the gradient, so that it is not small, and across it, so that nothing beside it hides
        direction = (g / g.norm() + other / other.norm()) * values[site].detach().norm()
        assert float((g * direction).sum()) == pytest.approx(measured(lm, site, direction, edits), rel=1e-7), site


@pytest.mark.parametrize("backend", SOME)
@pytest.mark.parametrize("variant", CONFIGS)
def test_a_site_kept_alone_has_the_gradient_it_has_among_all(variant, backend):
    lm = small(variant, backend=backend)
    everywhere, _ = gradients(lm, lm.sites)
    assert set(everywhere) == set(lm.sites)
    for site in lm.sites:
        alone, _ = gradients(lm, [site])
        torch.testing.assert_close(alone[site], everywhere[site], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("variant", CONFIGS)
def test_positions_after_the_one_read_have_a_gradient_of_zero(variant):
    lm = small(variant)
    with Trace(keep=lm.sites, grad=True) as trace:
        lm(tokens(1, LENGTH), trace=trace)[0][0, 2, 5].backward()
    for site, gradient in trace.grads.items():
        assert gradient.shape == trace.values[site].shape
        assert not gradient[:, 3:].any() and gradient[:, :3].any(), site


@pytest.mark.parametrize("variant", CONFIGS)
def test_a_later_pass_the_loss_does_not_read_has_a_gradient_of_zero(variant):
    lm, tokens_BL = small(variant), tokens(1, LENGTH)
    with Trace(keep=lm.sites, grad=True) as trace:
        logits_BLV, past = lm(tokens_BL[:, :4], trace=trace)
        lm(tokens_BL[:, 4:], trace=trace, past=past)
    logits_BLV[0, -1, 5].backward()
    for site, gradient in trace.grads.items():
        assert gradient.shape[1] == LENGTH and not gradient[:, 4:].any() and gradient[:, :4].any(), site


def test_a_site_the_loss_does_not_depend_on_raises_and_a_replaced_one_has_the_replacements_gradient():
    lm, site = small("mamba2"), Site(1, "out")
    put = Edit(site, "all", Replace(torch.ones(32, dtype=torch.float64)))
    grads, _ = gradients(lm, [site, Site(1, "resid_out")], [put])
    assert torch.equal(grads[site], grads[Site(1, "resid_out")])
    with Trace(keep=[site, Site(0, "dt")], interventions=[put, Edit(Site(1, "resid"), "all", Scale(0.0))], grad=True) as trace:
        lm(tokens(1, 3), trace=trace)[0][0, -1, 5].backward()
    assert not trace.grads[Site(0, "dt")].any()  # cut off by a factor of 0
    with Trace(keep=[Site(2, "dt")], grad=True) as trace:
        lm(tokens(1, 3), trace=trace)
    with pytest.raises(NeverReached, match="no gradient at 2.dt: call backward first"):
        _ = trace.grads


def test_a_gradient_where_none_is_made_is_refused():
    lm = small("mamba2")
    for call in (torch.no_grad()(lm.forward), lambda t, trace: lm.generate(t, 2, trace=trace)):
        with pytest.raises(UserError, match="grad=True.*no_grad"):
            call(tokens(1, 3), trace=Trace(keep=[Site(0, "dt")], grad=True))


@pytest.mark.parametrize("variant", CONFIGS)
def test_gradients_by_other_names_and_in_the_type_of_the_value(variant):
    lm = small(variant, dtype="bfloat16")
    with Trace(keep=["blocks.1.hook_h", "blocks.1.hook_ssm_input"], grad=True) as trace:
        lm(tokens(1, 4), trace=trace)[0][0, -1, 5].backward()
    assert trace.grads["blocks.1.hook_h"].dtype == torch.float32
    assert trace.grads["blocks.1.hook_h.3"].shape[1] == 1
    assert trace.grads["blocks.1.hook_ssm_input"].dtype == torch.bfloat16
