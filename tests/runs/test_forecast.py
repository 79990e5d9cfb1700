"""The estimate of a run's time: how many passes it is worth."""
from types import SimpleNamespace

import pytest

from mamba_mi.runs import forecast
from tests.small import small, tokens


@pytest.mark.parametrize(("long", "rows"), [(0, [2, 2]), (1e9, [2, 16, 16, 16])])
def test_a_pass_that_takes_long_is_not_repeated_for_a_better_estimate(monkeypatch, long, rows):
    lm, seen = small("mamba2"), []
    lm.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    monkeypatch.setattr(forecast, "LONG", long)
    clock = iter(range(100))
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: next(clock))
    batch = type("Batch", (SimpleNamespace,), {"__len__": lambda self: 2})(tokens_BL=tokens(2, 5))
    assert forecast._rate(lm, batch) == rows[-1] * 5 * lm.config.n_layer  # a second a pass, by this clock
    assert seen == rows
