"""Effective horizons against their definition, token by token; and which third is the slow one."""
import math

import pytest
import torch

from mamba_mi import Site, Trace, UserError
from mamba_mi.data import Prompt
from mamba_mi.measure.timescale import horizon, horizons, thirds
from tests.small import CONFIGS, small, tokens


def prompts(*lengths):
    rows = [row.tolist() for i, n in enumerate(lengths) for row in tokens(2, n, seed=i)]
    return [Prompt(f"p{i}", "", tuple(row), "", 0) for i, row in enumerate(rows)]


@pytest.mark.parametrize("variant", CONFIGS)
def test_a_horizon_is_one_over_the_rate_at_the_mean_dt_over_every_token(variant):
    lm, given = small(variant), prompts(5, 9, 9)
    found = horizons(lm, given, size=3)
    for layer in range(3):
        dt = []
        for prompt in given:
            with Trace(keep=[Site(layer, "dt")]) as trace:
                lm(torch.tensor([prompt.token_ids]), trace=trace)
            dt += trace.values[Site(layer, "dt")][0]
        mean_H, A_log = sum(dt) / len(dt), lm.layers[layer].A_log
        for h in (0, 1, len(mean_H) - 1):
            rates = [math.exp(a) * mean_H[h].item() for a in A_log[h].flatten().tolist()]
            want = math.prod(1 / rate for rate in rates) ** (1 / len(rates))  # one decay; of Mamba-1 the geometric mean
            assert found[layer][h].item() == pytest.approx(want, rel=1e-12)


def test_after_one_horizon_a_state_is_down_to_one_over_e():
    A_log, dt_H = torch.tensor([0.0, -2.0]), torch.tensor([0.1, 0.3])
    left = torch.exp(-A_log.exp() * dt_H * horizon(A_log, dt_H))
    torch.testing.assert_close(left.double(), torch.full((2,), math.exp(-1), dtype=torch.float64))


def test_slow_are_those_that_remember_longest():
    parts = thirds(torch.tensor([3.0, 90.0, 11.0, 1.0, 2000.0, 40.0, 40.0, 0.5]))
    assert parts == {"slow": (1, 4, 5), "mid": (0, 2, 6), "fast": (3, 7)}
    keep = torch.tensor([0.5, 5.0, 50.0])  # what a token wrote, ten tokens later: most of it is in the slow head
    later = torch.exp(-10 / keep)
    assert thirds(keep)["slow"] == (int(later.argmax()),) and thirds(keep)["fast"] == (int(later.argmin()),)
    with pytest.raises(UserError, match="2 heads"):
        thirds(torch.ones(2))
