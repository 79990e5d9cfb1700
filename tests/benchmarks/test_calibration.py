"""The calibration benchmark runs, its null is a null, and (slow) the statistics meet their targets."""
import json

import calibration
import numpy as np
import pytest
from machine import write

from mamba_mi.measure.stats import wilson


def test_the_benchmark_runs_and_writes_every_table(tmp_path):
    result = calibration.run([12, 20], ["normal", "discrete"], runs=40, resamples=99, seed=0)
    write(tmp_path, "calibration", result, calibration.page(result))
    kept = json.loads((tmp_path / "calibration.json").read_text())
    assert [len(kept[name]) for name in ("cells", "one_call_a_run", "family_wise", "controls")] == [8, 2, 1, 3]
    assert (tmp_path / "calibration.md").read_text().count("| 12 |") == 6


def test_the_same_seed_gives_the_same_rates():
    design = calibration.Design(20, "exponential, skewness 2", True)
    first, again, other = (calibration.calibrate(design, 60, 99, seed) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("drawn", calibration.DRAWN)
@pytest.mark.parametrize("clustered", [False, True], ids=["alone", "clustered"])
def test_prompts_are_drawn_with_mean_zero(drawn, clustered):
    rng, design = np.random.default_rng(0), calibration.Design(40, drawn, clustered)
    cluster_N = calibration.clusters_of(design, rng)
    assert len(cluster_N) == 40 and np.bincount(cluster_N).max() == (4 if clustered else 1)
    means_K = calibration.prompts(design, cluster_N, 4000, rng).mean(axis=0)
    assert abs(means_K.mean()) < 4 * means_K.std() / 4000**0.5


def test_an_effect_that_is_there_is_no_false_positive_rate(monkeypatch):
    monkeypatch.setitem(calibration.DRAWN, "normal", lambda rng, shape: rng.standard_normal(shape) + 1)
    rates = calibration.calibrate(calibration.Design(50, "normal", False), 50, 199, 0)
    assert rates["false_positives"]["percent"] == 100 and rates["mean_covered"]["percent"] == 0


def within(rate, runs, low, high):
    """Whether a rate in percent may be that of a truth in [low, high]: three binomial standard errors of doubt, no draw of luck: it is seeded."""
    at = rate["percent"] / 100 * runs
    least, most = wilson(at, runs, level=0.998)
    return 100 * most >= low and 100 * least <= high


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True], ids=["alone", "clustered"])
@pytest.mark.parametrize("drawn", ["normal", "gamma, skewness 1", "exponential, skewness 2"])
def test_at_100_prompts_tests_and_intervals_keep_what_they_promise(drawn, clustered):
    rates = calibration.calibrate(calibration.Design(100, drawn, clustered), 4000, 999, 0)
    assert within(rates["false_positives"], 4000, 4.0, 6.0)
    assert within(rates["mean_covered"], 4000, 93.5, 96.5)
    assert within(rates["ratio_covered"], 4000, 93.5, 96.5)


@pytest.mark.slow
@pytest.mark.parametrize("drawn", ["discrete", "permuted answers"])
def test_where_signs_are_exchangeable_p_is_never_too_small(drawn):
    for clustered in (False, True):
        rates = calibration.calibrate(calibration.Design(20, drawn, clustered), 4000, 999, 0)
        assert within(rates["false_positives"], 4000, 0.0, 5.0)


@pytest.mark.slow
def test_sharing_resamples_between_runs_leaves_the_rates_as_they_are():
    design = calibration.Design(50, "normal", True)
    shared, alone = calibration.calibrate(design, 1500, 499, 0), calibration.one_call_a_run(design, 400, 499, 0)
    for rate in ("false_positives", "mean_covered"):
        assert within(alone[rate], 400, shared[rate]["low"], shared[rate]["high"])


@pytest.mark.slow
def test_a_null_map_has_five_percent_of_families_with_a_finding():
    result = calibration.family_wise(50, "normal", 1000, 299, 0)
    assert within(result["family_wise"], 1000, 4.0, 6.0) and result["unadjusted"]["percent"] > 40


@pytest.mark.slow
@pytest.mark.parametrize("family", ["isotropic", "covariance"])
def test_control_p_values_are_uniform_when_the_observed_is_a_draw(family):
    assert calibration.controls(family, 1500, 0)["ks_p"] > 1e-4
    assert calibration.controls(family, 200, 0, chosen=True)["ks_p"] < 1e-10


def test_what_misses_its_target_from_100_prompts_on_is_named():
    def row(n, percent):
        rates = {name: {"percent": 95.0, "low": 94.0, "high": 96.0} for name in ("mean_covered", "ratio_covered")}
        false = {"percent": percent, "low": percent - 0.5, "high": percent + 0.5}
        return {"n": n, "drawn": "normal", "clustered": True, "false_positives": false, **rates}

    found = list(calibration.missed([row(50, 9.0), row(100, 5.0), row(100, 6.2), row(200, 9.0)]))
    assert [line.split(",")[0] for line in found] == ["- n = 100", "- n = 200"]
    assert "not beyond chance" in found[0] and "not beyond chance" not in found[1]
