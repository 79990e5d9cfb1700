"""Every named inner quantity against the step-by-step recurrence, in float64."""
import pytest
from oracles import CONFIGS, deviation, inner

from mamba_mi import Trace, load


@pytest.mark.parametrize("calm", [True, False], ids=["calm", "wild"])
def test_every_inner_quantity_equals_the_recurrence(published, variant, backend, calm, tokens):
    folder, weights = published(CONFIGS[variant], seed=1, calm=calm)
    lm = load(folder, backend=backend, dtype="float64")
    tokens_BL = tokens(1 if variant == "mamba2" else 2, 66)  # past a chunk's end; a published state is large
    with Trace(keep=lm.sites) as trace:
        logits_BLV, _ = lm(tokens_BL, trace=trace)
    for row, token_ids in enumerate(tokens_BL.tolist()):
        truth = inner(CONFIGS[variant], weights, token_ids)
        assert set(truth.values) == set(lm.sites) == set(trace.values)
        assert deviation(logits_BLV[row], truth.logits) <= 1e-10
        for site, value in truth.values.items():
            assert deviation(trace.values[site][row], value) <= 1e-10, site


def test_the_float64_logits_a_run_is_measured_against_equal_the_recurrence(published, variant, tokens):
    folder, weights = published(CONFIGS[variant], seed=1)
    tokens_BL = tokens(2, 30)
    ours = load(folder, dtype="float32").float64_logits(tokens_BL)
    for row, token_ids in enumerate(tokens_BL.tolist()):
        truth = inner(CONFIGS[variant], weights, token_ids).logits[:, :ours.shape[-1]]
        assert deviation(ours[row], truth) <= 1e-10
