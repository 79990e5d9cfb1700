"""Number types: what stays in float32 whatever is asked for, how far the short types are from the truth."""
import pytest
import torch
from oracles import CONFIGS, deviation, inner

from mamba_mi import Site, Trace, load, models
from mamba_mi.config import stream

SHORT = ("bfloat16", "float16")
KEPT = ("A_log", "D", "dt_bias", "dt_proj.bias", "norm.weight", "norm_f.weight")


@pytest.mark.parametrize("dtype", SHORT)
def test_what_is_exponentiated_or_normalised_stays_in_float32(published, variant, dtype):
    folder, _ = published(CONFIGS[variant])
    drawn = models.fresh(CONFIGS[variant], generator=stream(0, "types"), dtype=dtype)
    for lm in (load(folder, dtype=dtype), drawn):
        for name, parameter in lm.named_parameters():
            expected = torch.float32 if name.endswith(KEPT) else getattr(torch, dtype)
            assert parameter.dtype == expected, name


def test_what_stays_in_float32_keeps_every_bit_of_the_checkpoint(published, variant):
    folder, weights = published(CONFIGS[variant])
    lm = load(folder, dtype="bfloat16")
    for i, layer in enumerate(lm.layers):
        for key in ("A_log", "D"):
            assert torch.equal(getattr(layer, key), weights[f"backbone.layers.{i}.mixer.{key}"])


@pytest.mark.parametrize("dtype", SHORT)
def test_dt_the_state_and_the_residual_stream_are_in_float32(published, variant, backend, dtype, tokens):
    lm = load(published(CONFIGS[variant])[0], backend=backend, dtype=dtype)
    with Trace(keep=lm.sites) as trace:
        logits_BLV, past = lm(tokens(1, 5), trace=trace)
    for name in ("resid", "dt", "write", "state", "resid_out"):
        assert trace.values[Site(1, name)].dtype == torch.float32, name
    assert logits_BLV.dtype == past.layers[0].h_BHPN.dtype == torch.float32


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 5e-2), ("float16", 6e-3)])
def test_short_types_stay_within_a_stated_deviation(published, variant, backend, dtype, bound, tokens):
    """A few times their own rounding (4e-3 and 5e-4) of the largest logit, on two calm layers."""
    folder, weights = published(CONFIGS[variant])
    lm, tokens_BL = load(folder, backend=backend, dtype=dtype), tokens(1, 67)
    truth = inner(CONFIGS[variant], weights, tokens_BL[0].tolist()).logits
    assert deviation(lm(tokens_BL)[0][0], truth) <= bound
    cut = [lm(tokens_BL[:, :5])]
    cut.append(lm(tokens_BL[:, 5:], past=cut[0][1]))
    assert deviation(torch.cat([logits for logits, _ in cut], dim=1)[0], truth) <= bound


def test_float64_is_float64_to_the_end(published, variant, backend, tokens):
    lm = load(published(CONFIGS[variant])[0], backend=backend, dtype="float64")
    with Trace(keep=lm.sites) as trace:
        logits_BLV, past = lm(tokens(1, 5), trace=trace)
    assert {x.dtype for x in (*trace.values.values(), logits_BLV, *past.layers[0])} == {torch.float64}
