"""The trace: what it keeps, what it refuses."""
import pytest
import torch

from mamba_mi.interventions import Add, Edit, Scale
from mamba_mi.trace import BLIND, NeverReached, Site, Trace
from tests.small import CONFIGS, small, tokens


@pytest.mark.parametrize("variant", CONFIGS)
def test_watching_changes_nothing(variant):
    lm, tokens_BL = small(variant, dtype="float32"), tokens(3, 70)
    with Trace(keep=lm.sites) as trace:
        watched, _ = lm(tokens_BL, trace=trace)
    assert torch.equal(watched, lm(tokens_BL, trace=BLIND)[0])
    assert set(trace.values) == set(lm.sites)


def test_kept_values_of_a_pass_in_two_parts_are_joined():
    lm, tokens_BL = small("mamba2"), tokens(2, 9)
    keep = [Site(1, "dt"), Site(0, "state")]
    with Trace(keep=keep) as whole:
        lm(tokens_BL, trace=whole)
    with Trace(keep=keep) as parts:
        _, past = lm(tokens_BL[:, :4], trace=parts)
        lm(tokens_BL[:, 4:], trace=parts, past=past)
    for site in keep:
        torch.testing.assert_close(parts.values[site], whole.values[site])


def test_a_trace_serves_one_prompt():
    lm, trace = small("mamba2"), Trace(keep=[Site(0, "dt")])
    lm(tokens(1, 4), trace=trace)
    with pytest.raises(ValueError, match="make a new Trace"):
        lm(tokens(1, 4), trace=trace)


@pytest.mark.parametrize("site", [Site(3, "dt"), Site(0, "q"), Site(-1, "dt"), Site(0, "embed")])
def test_a_site_that_is_not_there_raises(site):
    with pytest.raises(NeverReached, match=str(site)), Trace(keep=[site]) as trace:
        small("mamba1")(tokens(1, 4), trace=trace)


def test_an_error_inside_the_block_is_not_hidden():
    with pytest.raises(ZeroDivisionError), Trace(keep=[Site(0, "nowhere")]):
        raise ZeroDivisionError


@pytest.mark.parametrize("variant", CONFIGS)
@pytest.mark.parametrize("name", ["resid", "dt", "B", "conv", "state", "gated"])
def test_gradients_equal_finite_differences(variant, name):
    lm, tokens_BL, site, step = small(variant), tokens(1, 6), Site(1, name), 1e-4
    with Trace(keep=[site], grad=True) as trace:
        lm(tokens_BL, trace=trace)[0][0, -1, 5].backward()
    gradient, value = trace.grads[site], trace.values[site]
    for at in (0, 3):
        bump = torch.zeros_like(value[:, at])
        bump.view(-1)[1] = step
        shifted = []
        for sign in (1, -1):
            op = Add(sign * bump[:, None])
            shifted.append(lm(tokens_BL, trace=Trace(interventions=[Edit(site, at, op)]))[0][0, -1, 5])
        want = (shifted[0] - shifted[1]) / (2 * step)
        # an edit's effect through later tokens of the same site is in the gradient as well: B at t enters h_t.. only
        torch.testing.assert_close(gradient[:, at].reshape(-1)[1], want, rtol=1e-5, atol=1e-8)


def test_gradients_before_backward_say_what_is_missing():
    with Trace(keep=[Site(0, "dt")], grad=True) as trace:
        small("mamba2")(tokens(1, 3), trace=trace)
    with pytest.raises(NeverReached, match="call backward first"):
        _ = trace.grads


def test_generation_is_traced_token_by_token():
    lm = small("mamba2")
    edit = Edit(Site(2, "resid_out"), "all", Scale(0.0))
    with Trace(keep=[Site(0, "dt")], interventions=[edit]) as trace:
        out = lm.generate(tokens(2, 4), 3, trace=trace)
    assert out.shape == (2, 3) and trace.values[Site(0, "dt")].shape[1] == 6
