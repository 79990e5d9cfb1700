"""Tests and effect sizes: against scipy and against every flip written out."""
from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats

from mamba_mi.config import stream
from mamba_mi.measure.stats import (
    BLOCK,
    benjamini_hochberg,
    cliffs_delta,
    cohen_d_z,
    control_p,
    holm,
    sign_flip,
    sign_flips,
    tost,
    wilson,
)


def every_flip(sums_CK):
    """|studentised sum| of each cell under all 2^C flips, one cluster at a time; the first flips nothing."""
    norm_K = np.sqrt((sums_CK**2).sum(axis=0))
    return np.array([abs(sum(sign * row for sign, row in zip(signs, sums_CK, strict=True))) / norm_K
                     for signs in product([1, -1], repeat=len(sums_CK))])


def test_all_flips_are_enumerated_when_they_are_few():
    signs_RC = sign_flips(3, 7, stream(0, "f"))
    assert signs_RC[0].tolist() == [1, 1, 1]
    assert sorted(map(tuple, signs_RC)) == sorted(product([-1, 1], repeat=3))


def test_random_flips_are_fair_and_stand_behind_the_unflipped_row():
    signs_RC = sign_flips(3, 6, stream(0, "f"))     # 2^3 > 6 + 1
    assert signs_RC.shape == (7, 3) and signs_RC[0].tolist() == [1, 1, 1]
    many_RC = sign_flips(20, 4000, stream(0, "f"))[1:]
    assert set(np.unique(many_RC)) == {-1, 1}
    np.testing.assert_allclose(many_RC.T @ many_RC / 4000, np.eye(20), atol=0.08)
    assert np.abs(many_RC.mean(axis=0)).max() < 0.08


def test_thousands_of_clusters_are_no_overflow():
    assert sign_flips(1100, 9, stream(0, "f")).shape == (10, 1100)


@pytest.mark.parametrize("clusters", [2, 5, 9])
def test_sign_flip_is_scipys_exact_permutation_test(clusters):
    sums_CK = np.random.default_rng(clusters).normal(0.6, 1, size=(clusters, 4))
    found = sign_flip(sums_CK, resamples=999, generator=stream(0, "f"))
    for k in range(4):
        expected = scipy_stats.permutation_test((sums_CK[:, k],), np.sum, permutation_type="samples").pvalue
        assert found.p[k] == pytest.approx(expected, abs=1e-15)


def test_max_t_is_the_share_of_flips_whose_largest_cell_reaches_it():
    sums_CK = np.random.default_rng(2).normal(0.8, 1, size=(8, 5)) * [1, 10, 0.1, 1, 1]
    found = sign_flip(sums_CK, resamples=999, generator=stream(0, "f"))
    t_RK = every_flip(sums_CK)
    expected_K = (t_RK.max(axis=1)[:, None] >= t_RK[0] - 1e-9).mean(axis=0)
    np.testing.assert_allclose(found.p_adjusted, expected_K, atol=1e-15)
    assert 0 < (found.p_adjusted > found.p).sum() and (found.p_adjusted >= found.p).all()


def test_random_flips_give_one_plus_the_number_that_reach_it():
    sums_CK = np.random.default_rng(0).normal(0.3, 1, size=(30, 3))
    found = sign_flip(sums_CK, resamples=199, generator=stream(0, "f"))
    t_RK = np.abs(sign_flips(30, 199, stream(0, "f"))[1:] @ sums_CK)
    observed_K = np.abs(sums_CK.sum(axis=0))
    np.testing.assert_allclose(found.p, (1 + (t_RK >= observed_K).sum(axis=0)) / 200, atol=1e-15)
    exact_K = [scipy_stats.permutation_test((x_C,), np.sum, permutation_type="samples", n_resamples=9999,
                                            rng=np.random.default_rng(0)).pvalue for x_C in sums_CK.T]
    np.testing.assert_allclose(found.p, exact_K, atol=0.1)


def test_ties_by_design_reach_the_observed_statistic():
    found = sign_flip(np.array([[0.1], [0.2], [0.3]]), resamples=99, generator=stream(0, "f"))
    assert found.p[0] == 2 / 8
    tied = sign_flip(np.array([[0.1], [0.2], [-0.3]]), resamples=99, generator=stream(0, "f"))     # the sum is 0
    assert tied.p[0] == 1


def test_a_cell_of_zeros_proves_nothing_and_disturbs_nothing():
    sums_CK = np.random.default_rng(0).normal(1, 1, size=(6, 2))
    alone = sign_flip(sums_CK, resamples=99, generator=stream(0, "f"))
    beside = sign_flip(np.hstack([sums_CK, np.zeros((6, 1))]), resamples=99, generator=stream(0, "f"))
    assert beside.p.tolist() == [*alone.p, 1] and beside.p_adjusted.tolist() == [*alone.p_adjusted, 1]


def test_cells_beyond_a_block_are_in_the_family_too():
    sums_CK = np.random.default_rng(0).normal(size=(9, BLOCK + 2))
    found = sign_flip(sums_CK, resamples=999, generator=stream(0, "f"))
    t_RK = every_flip(sums_CK)
    expected_K = (t_RK.max(axis=1)[:, None] >= t_RK[0] - 1e-9).mean(axis=0)
    np.testing.assert_allclose(found.p_adjusted, expected_K, atol=1e-15)
    np.testing.assert_allclose(found.p, (t_RK >= t_RK[0] - 1e-9).mean(axis=0), atol=1e-15)


def test_max_t_keeps_the_family_wise_error_where_single_tests_do_not():
    rng, generator, alone, adjusted = np.random.default_rng(0), stream(0, "f"), [], []
    for _ in range(200):
        found = sign_flip(rng.normal(size=(25, 20)), resamples=199, generator=generator)
        alone.append(found.p.min() <= 0.05)
        adjusted.append(found.p_adjusted.min() <= 0.05)
    assert np.mean(alone) > 0.4 and np.mean(adjusted) < 0.09


def test_benjamini_hochberg_is_scipys():
    p_K = np.array([0.04, 0.001, 0.9, 0.012, 0.04, 0.03, 0.6])
    np.testing.assert_allclose(benjamini_hochberg(p_K), scipy_stats.false_discovery_control(p_K), rtol=1e-14)


def test_holm_is_its_definition():
    p_K = np.array([0.03, 0.001, 0.04, 0.02])      # sorted: .001 x 4, .02 x 3, .03 x 2 (kept at .06), .04 x 1 (.06)
    np.testing.assert_allclose(holm(p_K), [0.06, 0.004, 0.06, 0.06], rtol=1e-14)
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])


@pytest.mark.parametrize("adjust", [benjamini_hochberg, holm])
def test_a_test_that_was_not_made_is_not_counted(adjust):
    found = adjust([0.01, np.nan, 0.02])
    np.testing.assert_array_equal(np.isnan(found), [False, True, False])
    np.testing.assert_allclose(found[[0, 2]], adjust([0.01, 0.02]))
    assert len(adjust([])) == 0 and np.isnan(adjust([np.nan])).all()


def test_cohen_d_z_is_mean_over_sd_in_each_cell():
    d_N, cell_N = np.random.default_rng(0).normal(5, 1, size=20), np.arange(20) % 3
    found = cohen_d_z(d_N, cell_N, 3)
    for k in range(3):
        t = scipy_stats.ttest_1samp(d_N[cell_N == k], 0).statistic
        assert found[k] == pytest.approx(t / np.sqrt((cell_N == k).sum()), rel=1e-12)


def test_cohen_d_z_needs_two_prompts_and_a_spread():
    found = cohen_d_z(np.array([3.0, 0.1, 0.1, 0.1, -1, 1]), np.array([0, 1, 1, 1, 3, 3]), 4)
    np.testing.assert_array_equal(found, [np.nan, np.nan, np.nan, 0])


def test_cliffs_delta_is_mann_whitneys_u():
    rng = np.random.default_rng(0)
    x_N, y_M = rng.integers(0, 6, 13), rng.integers(1, 8, 9)        # many ties
    u = scipy_stats.mannwhitneyu(x_N, y_M).statistic
    assert cliffs_delta(x_N, y_M) == pytest.approx(2 * u / (13 * 9) - 1, abs=1e-15)
    assert cliffs_delta([2, 3], [1, 1]) == 1 and cliffs_delta([1], [2]) == -1


@pytest.mark.parametrize("low, high", [(-0.5, 0.5), (-0.1, 0.7), (-2, 0.05)])
def test_tost_is_the_larger_of_two_one_sided_t_tests(low, high):
    d_NK = np.random.default_rng(0).normal(0.1, 1, size=(25, 3))
    above = scipy_stats.ttest_1samp(d_NK, low, alternative="greater").pvalue
    below = scipy_stats.ttest_1samp(d_NK, high, alternative="less").pvalue
    np.testing.assert_allclose(tost(d_NK, low, high), np.maximum(above, below), rtol=1e-12)


def test_tost_claims_nothing_without_a_spread():
    assert np.isnan(tost(np.full((5, 2), 0.1), -1, 1)).all() and np.isnan(tost(np.ones((1, 2)), -1, 1)).all()


def test_control_p_counts_the_controls_that_reach_it():
    controls_RK = np.array([[1.0, 1], [2, 1], [3, 1]])
    np.testing.assert_allclose(control_p(np.array([2.0, 5.0]), controls_RK), [3 / 4, 1 / 4])
    assert np.isnan(control_p(np.array([np.nan, 1]), controls_RK)).tolist() == [True, False]
    assert np.isnan(control_p(np.array([2.0]), np.empty((0, 1)))).all()
    with pytest.raises(ValueError, match="1 of 3 control effects are NaN"):
        control_p(np.array([2.0]), np.array([[1.0], [np.nan], [2]]))


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_wilson_is_scipys(level):
    k, n = np.array([0, 3, 10, 10]), np.array([10, 10, 10, 400])
    low, high = wilson(k, n, level)
    for i in range(4):
        expected = scipy_stats.binomtest(int(k[i]), int(n[i])).proportion_ci(level, method="wilson")
        assert (low[i], high[i]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert np.isnan(wilson(0, 0)).all()
