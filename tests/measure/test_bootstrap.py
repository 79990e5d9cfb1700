"""Intervals: against scipy's BCa given the very same resamples, against brute force over prompts, and their coverage."""
import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.stats import bootstrap as scipy_bootstrap

from mamba_mi.config import stream
from mamba_mi.measure.bootstrap import (
    BLOCK,
    _bca_levels,
    bca,
    cluster_sums,
    crossed,
    reach,
    resample_counts,
    t_interval,
)


def ratio(num, den, axis=-1):
    return num.sum(axis=axis) / den.sum(axis=axis)


def scipy_bca(num_C, den_C, distribution_R, level):
    """scipy's interval over clusters, with our resamples' estimates as its bootstrap distribution, read as far out."""
    level = 2 * scipy_stats.norm.cdf(reach(level, len(num_C))) - 1
    result = scipy_bootstrap((num_C, den_C), ratio, paired=True, n_resamples=2, method="percentile")
    result.bootstrap_distribution = distribution_R
    return scipy_bootstrap((num_C, den_C), ratio, paired=True, n_resamples=0, confidence_level=level, method="BCa",
                           bootstrap_result=result).confidence_interval


def estimates(num_C, den_C, generator, resamples):
    """Each resample's ratio the slow way: the drawn clusters written out, in the order of the counts."""
    counts_RC = resample_counts(resamples, len(num_C), generator).astype(int)
    drawn = (np.repeat(np.arange(len(num_C)), counts_C) for counts_C in counts_RC)
    return np.array([num_C[i].sum() / den_C[i].sum() for i in drawn])


def skewed(clusters, cells, seed=0):
    rng = np.random.default_rng(seed)
    return rng.lognormal(size=(clusters, cells)), rng.uniform(1, 3, size=(clusters, cells))


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_bca_is_scipys_on_the_same_resamples(level):
    num_CK, den_CK = skewed(12, 3)
    ours = bca(num_CK, den_CK, den_CK > 0, resamples=499, generator=stream(0, "b"), level=level)
    for k in range(3):
        distribution_R = estimates(num_CK[:, k], den_CK[:, k], stream(0, "b"), 499)
        theirs = scipy_bca(num_CK[:, k], den_CK[:, k], distribution_R, level)
        assert ours.estimate[k] == pytest.approx(ratio(num_CK[:, k], den_CK[:, k]), rel=1e-14)
        assert (ours.low[k], ours.high[k]) == pytest.approx(tuple(theirs), rel=1e-11)
    assert ours.why == ("",) * 3


@pytest.mark.parametrize("clusters", [2, 3, 8, 200])
def test_an_interval_of_a_normal_sample_reaches_as_far_as_students(clusters):
    """The plain bootstrap's standard error divides by n: times `reach` it is the t interval's half width."""
    x_C = np.random.default_rng(clusters).normal(size=clusters)
    half = reach(0.95, clusters) * x_C.std() / np.sqrt(clusters)
    low, high = scipy_stats.t.interval(0.95, clusters - 1, x_C.mean(), scipy_stats.sem(x_C))
    assert half == pytest.approx((high - low) / 2)


def test_bca_counts_ties_half_as_scipy_does():
    hits_C = np.array([1.0, 0, 1, 1, 0, 1, 0, 1])
    ours = bca(hits_C[:, None], np.ones((8, 1)), np.ones((8, 1)), resamples=999, generator=stream(0, "ties"))
    distribution_R = estimates(hits_C, np.ones(8), stream(0, "ties"), 999)
    assert (distribution_R == hits_C.mean()).mean() > 0.1
    assert (ours.low[0], ours.high[0]) == pytest.approx(tuple(scipy_bca(hits_C, np.ones(8), distribution_R, 0.95)))


def test_bca_agrees_with_scipys_own_resampling_of_single_prompts():
    x_N = np.random.default_rng(3).exponential(size=30)
    ours = bca(x_N[:, None], np.ones((30, 1)), np.ones((30, 1)), resamples=20000, generator=stream(0, "b"))
    theirs = scipy_bootstrap((x_N,), np.mean, n_resamples=20000, rng=np.random.default_rng(0),
                             confidence_level=2 * scipy_stats.norm.cdf(reach(0.95, 30)) - 1).confidence_interval
    assert (ours.low[0], ours.high[0]) == pytest.approx(tuple(theirs), abs=0.02)       # Monte Carlo error of both


def test_resampling_clusters_is_wider_than_resampling_prompts_that_share_them():
    rng = np.random.default_rng(0)
    cluster_N = np.repeat(np.arange(15), 6)
    x_N, zero_N = rng.normal(size=15)[cluster_N] + 0.1 * rng.normal(size=90), np.zeros(90, dtype=int)
    by_cluster = cluster_sums(x_N, cluster_N, zero_N, (15, 1)), cluster_sums(np.ones(90), cluster_N, zero_N, (15, 1))
    naive = bca(x_N[:, None], np.ones((90, 1)), np.ones((90, 1)), resamples=999, generator=stream(0, "n"))
    clustered = bca(*by_cluster, by_cluster[1], resamples=999, generator=stream(0, "c"))
    assert (clustered.estimate[0], naive.estimate[0]) == pytest.approx((x_N.mean(),) * 2)
    assert (clustered.high - clustered.low)[0] > 1.8 * (naive.high - naive.low)[0]
    distribution_R = estimates(*(x_CK[:, 0] for x_CK in by_cluster), stream(0, "c"), 999)
    theirs = scipy_bca(*(x_CK[:, 0] for x_CK in by_cluster), distribution_R, 0.95)
    assert (clustered.low[0], clustered.high[0]) == pytest.approx(tuple(theirs), rel=1e-11)


def test_a_cell_is_resampled_over_its_own_clusters_alone():
    num_CK, den_CK = skewed(10, 2)
    num_CK[6:, 1] = den_CK[6:, 1] = 0
    both = bca(num_CK, den_CK, den_CK > 0, resamples=299, generator=stream(0, "b"))
    generator = stream(0, "b")
    for k, here in ((1, slice(0, 6)), (0, slice(0, 10))):       # six clusters sort before ten, as bit patterns
        distribution_R = estimates(num_CK[here, k], den_CK[here, k], generator, 299)
        theirs = scipy_bca(num_CK[here, k], den_CK[here, k], distribution_R, 0.95)
        assert (both.low[k], both.high[k]) == pytest.approx(tuple(theirs), rel=1e-11)


def test_more_cells_than_a_block_give_what_each_gives_alone():
    num_CK, den_CK = skewed(5, BLOCK + 3)
    together = bca(num_CK, den_CK, den_CK > 0, resamples=50, generator=stream(0, "b"))
    for k in (0, BLOCK - 1, BLOCK, BLOCK + 2):
        cell = slice(k, k + 1)
        alone = bca(num_CK[:, cell], den_CK[:, cell], den_CK[:, cell] > 0, resamples=50, generator=stream(0, "b"))
        assert (together.low[k], together.high[k]) == pytest.approx((alone.low[0], alone.high[0]), rel=1e-12)


def test_no_interval_is_made_up():
    num_CK = np.array([[1.0, 0, 1, 2, .1], [2, 0, 1, 4, .2], [3, 0, 2, 6, .3]])
    den_CK = np.array([[1.0, 0, 1, 2, 1], [0, 0, -1, 4, 2], [0, 0, 1, 6, 3]])
    present_CK = np.array([[1, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]])
    num_CK *= present_CK
    found = bca(num_CK, den_CK, present_CK, resamples=99, generator=stream(0, "b"))
    assert found.why == ("one cluster only", "no prompts", "the denominators change sign or vanish among the resamples",
                         *("no spread: every cluster gives the same value",) * 2)
    np.testing.assert_allclose(found.estimate, [1, np.nan, 4, 1, 0.1], rtol=1e-15)
    np.testing.assert_allclose(found.low, [np.nan, np.nan, np.nan, 1, 0.1], rtol=1e-15)
    np.testing.assert_array_equal(found.low, found.high)


def test_denominators_that_sum_to_zero_have_no_ratio():
    found = bca(np.array([[1.0], [2], [3]]), np.array([[.1], [.2], [-.3]]), np.ones((3, 1)), resamples=9,
                generator=stream(0, "b"))
    assert np.isnan([found.estimate, found.low, found.high]).all()


def the_first_seed_whose_only_resample(wanted, clusters):
    return next(seed for seed in range(1000) if wanted(resample_counts(1, clusters, stream(seed, "b"))))


def test_denominators_that_change_sign_only_among_resamples_have_no_interval():
    den_CK = np.array([[3.0], [3], [3], [-2], [-2]])        # positive without any one cluster
    found = bca(np.ones((5, 1)), den_CK, np.ones((5, 1)), resamples=99, generator=stream(0, "b"))
    assert found.estimate[0] == pytest.approx(1) and np.isnan([found.low, found.high]).all()


def test_denominators_that_change_sign_only_without_one_cluster_have_no_interval():
    den_CK = np.array([[9.0], [-1], [-1]])
    seed = the_first_seed_whose_only_resample(lambda counts_RC: (counts_RC @ den_CK > 0).all(), clusters=3)
    found = bca(np.array([[1.0], [2], [3]]), den_CK, np.ones((3, 1)), resamples=1, generator=stream(seed, "b"))
    assert found.estimate[0] == pytest.approx(6 / 7) and np.isnan(found.low[0]) and np.isnan(found.high[0])
    assert found.why == ("the denominators change sign or vanish among the resamples",)


def test_an_estimate_outside_its_resamples_has_no_interval():
    num_CK = np.array([[0.0], [0], [0], [1]])
    seed = the_first_seed_whose_only_resample(lambda counts_RC: (counts_RC @ num_CK > 1).all(), clusters=4)
    found = bca(num_CK, np.ones((4, 1)), np.ones((4, 1)), resamples=1, generator=stream(seed, "b"))
    assert found.why == ("the estimate lies outside all its resamples",) and np.isnan([found.low, found.high]).all()


def test_the_formula_beyond_its_pole_gives_no_level():
    shift_RK, jackknife_CK = np.full((999, 1), -1.0), np.zeros((1000, 1))
    shift_RK[0], jackknife_CK[0] = 1, -1
    assert np.isnan(_bca_levels(shift_RK, jackknife_CK, level=0.99999)).tolist() == [[False], [True]]


def test_resample_counts_are_uniform_draws_with_replacement():
    counts_RC = resample_counts(4000, 5, stream(0, "counts"))
    assert (counts_RC.sum(axis=1) == 5).all()
    np.testing.assert_allclose(counts_RC.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(counts_RC.var(axis=0), 1 - 1 / 5, atol=0.06)      # the multinomial's


def test_the_interval_covers_as_often_as_it_says():
    covered, generator = [], stream(0, "coverage")
    for experiment in range(4):       # 4 x 250 maps of one cell each, told apart by column
        x_CK = np.random.default_rng(experiment).exponential(size=(60, 250))
        found = bca(x_CK, np.ones_like(x_CK), np.ones_like(x_CK), resamples=599, generator=generator)
        covered.append(((found.low < 1) & (1 < found.high)).mean())
    assert 0.90 < np.mean(covered) < 0.97


def test_crossed_is_the_percentiles_of_seeds_and_clusters_drawn_apart():
    rng = np.random.default_rng(1)
    num_SCK, den_SCK = rng.normal(1, 1, (6, 7, 2)), rng.uniform(1, 2, (6, 7, 2))
    found = crossed(num_SCK, den_SCK, resamples=200, generator=stream(0, "x"), level=0.9)
    generator = stream(0, "x")
    seeds_RS, clusters_RC = (resample_counts(200, n, generator).astype(int) for n in (6, 7))
    slow_RK = []
    for seeds_S, clusters_C in zip(seeds_RS, clusters_RC, strict=True):
        at = np.ix_(np.repeat(np.arange(6), seeds_S), np.repeat(np.arange(7), clusters_C))
        slow_RK.append(num_SCK[at].sum(axis=(0, 1)) / den_SCK[at].sum(axis=(0, 1)))
    low_K, high_K = np.percentile(slow_RK, [5, 95], axis=0)
    np.testing.assert_allclose(found.estimate, num_SCK.sum(axis=(0, 1)) / den_SCK.sum(axis=(0, 1)), rtol=1e-14)
    np.testing.assert_allclose((found.low, found.high), (low_K, high_K), rtol=1e-12)


def test_crossed_sees_that_the_prompts_recur_in_every_seed():
    """With no seed effect the interval stays as wide as the prompts make it, however many seeds there are."""
    x_C = np.random.default_rng(0).normal(size=20)
    x_SCK = np.broadcast_to(x_C[:, None], (50, 20, 1))
    found = crossed(x_SCK, np.ones_like(x_SCK), resamples=999, generator=stream(0, "x"))
    assert (found.high - found.low)[0] == pytest.approx(2 * 1.96 * x_C.std() / np.sqrt(20), rel=0.15)


def test_crossed_refuses_under_five_seeds_and_makes_up_no_ratio():
    x_SCK = np.ones((4, 9, 1))
    with pytest.raises(ValueError, match="4 seeds x 9 clusters.*t_interval"):
        crossed(x_SCK, x_SCK, resamples=9, generator=stream(0, "x"))
    with pytest.raises(ValueError, match="5 seeds x 1 clusters"):
        crossed(np.ones((5, 1, 1)), np.ones((5, 1, 1)), resamples=9, generator=stream(0, "x"))
    den_SCK = np.ones((5, 9, 1))
    den_SCK[:, :4] = -1
    found = crossed(np.ones((5, 9, 1)), den_SCK, resamples=99, generator=stream(0, "x"))
    assert found.estimate[0] == pytest.approx(9) and np.isnan([found.low, found.high]).all()
    assert found.why == ("the denominators change sign or vanish among the resamples",)


def test_t_interval_is_scipys_and_one_seed_has_none():
    x_SK = np.random.default_rng(0).normal(size=(3, 4))
    found = t_interval(x_SK, level=0.9)
    expected = scipy_stats.t.interval(0.9, 2, loc=x_SK.mean(axis=0), scale=scipy_stats.sem(x_SK, axis=0))
    np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-12)
    np.testing.assert_allclose(found.estimate, x_SK.mean(axis=0), rtol=1e-15)
    one = t_interval(x_SK[:1])
    assert np.isnan([one.low, one.high]).all() and one.why == ("one seed only",) * 4
