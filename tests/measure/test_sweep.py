"""Rows over the seeds of a sweep and between two models, against pandas, brute force and the run's own summary."""
import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from synthetic_runs import CONDITIONS, NORMALISED, columns

from mamba_mi.config import stream
from mamba_mi.measure.bootstrap import crossed_difference, resample_counts
from mamba_mi.measure.effects import effects
from mamba_mi.measure.summary import summarise
from mamba_mi.measure.sweep import Measured, difference, estimate, stack

TAU = 0.5
FAMILY = {"normalised": NORMALISED, "family": ("direction",)}


def measured(seed, **changes) -> Measured:
    data = columns(seed, **changes)
    return Measured(seed, effects(data), {p: f"subject {p}" for p in data["prompt_id"]}, TAU)


def frames(seeds, **changes) -> pd.DataFrame:
    return pd.concat([pd.DataFrame(columns(seed, **changes)).assign(seed=seed) for seed in seeds])


def cell(f: pd.DataFrame, row: dict) -> pd.DataFrame:
    return f[(f[list(CONDITIONS)] == pd.Series(row["conditions"])).all(axis=1)]


def estimates(seeds, **changes):
    runs = [measured(seed, **changes) for seed in seeds]
    return estimate(stack(runs, CONDITIONS, **FAMILY), CONDITIONS, resamples=500)


def ratio(f: pd.DataFrame) -> float:
    return (f.value - f.baseline).sum() / (f.full - f.baseline).sum()


def test_one_seed_gives_the_runs_own_estimate():
    one = measured(3)
    own = summarise(one.effects, one.clusters, CONDITIONS, normalised=NORMALISED, tau=TAU, resamples=500, seed=0)
    rows = estimates([3])
    assert [(r["conditions"], r["metric"], r["n"], r["mean"], r["p"]) for r in rows] == [
        (r["conditions"], r["metric"], r["n"], r["mean"], pytest.approx(r["p"], abs=0.12)) for r in own]   # 500 flips
    assert all(abs(a["ci_low"] - b["ci_low"]) < 0.05 for a, b in zip(rows, own) if a["metric"].startswith("norm"))


def test_a_few_seeds_have_their_points_and_scipys_t_interval():
    f, rows = frames((0, 1, 2)), estimates((0, 1, 2))
    for row in (row for row in rows if row["metric"] == "normalised_logit_difference"):
        points = [ratio(cell(f, row)[lambda c, s=seed: c.seed == s]) for seed in (0, 1, 2)]
        assert [each["mean"] for each in row["seeds"]] == pytest.approx(points, rel=1e-12)
        theirs = scipy_stats.t.interval(0.95, 2, np.mean(points), scipy_stats.sem(points))
        assert [row["mean"], row["ci_low"], row["ci_high"]] == pytest.approx([np.mean(points), *theirs], abs=1e-12)
        assert (row["n"], row["n_seeds"]) == (36, 3) and row["n_clusters"] == cell(f, row).prompt_id.nunique() < 36


def test_from_five_seeds_on_seeds_and_clusters_are_resampled_crossed():
    """Against a loop that draws seeds and subjects and sums over every pair of those drawn, repeats and all."""
    f, random, drawn = frames(range(5)), np.random.default_rng(0), []
    row = next(r for r in estimates(range(5)) if r["metric"].startswith("norm") and r["conditions"]["role"] == "last")
    own = cell(f, row).assign(difference=lambda c: c.value - c.baseline, scale=lambda c: c.full - c.baseline)
    num_SC, den_SC = (own.pivot(index="seed", columns="prompt_id", values=name).fillna(0).to_numpy()
                      for name in ("difference", "scale"))
    for _ in range(4000):
        pairs = np.ix_(random.choice(5, 5), random.choice(num_SC.shape[1], num_SC.shape[1]))
        drawn.append(num_SC[pairs].sum() / den_SC[pairs].sum())
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert row["mean"] == pytest.approx(ratio(own), rel=1e-12)
    assert [row["ci_low"], row["ci_high"]] == pytest.approx([low, high], abs=0.12 * (high - low))   # Monte Carlo


def test_a_seed_more_does_not_narrow_what_clusters_leave_open():
    """Five seeds with the very same prompts are no more subjects than one: the interval stays as wide."""
    one, five = measured(0), [measured(0)._replace(seed=seed) for seed in range(5)]
    narrow, wide = (next(r for r in estimate(stack(runs, CONDITIONS, **FAMILY), CONDITIONS, resamples=2000)
                         if r["metric"].startswith("norm")) for runs in ([one], five))
    assert wide["ci_high"] - wide["ci_low"] == pytest.approx(narrow["ci_high"] - narrow["ci_low"], rel=0.15)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2), (0, 1, 2, 3, 4)])
def test_two_models_differ_by_the_difference_of_their_estimates(seeds):
    one, other = ([measured(seed, late=late) for seed in seeds] for late in (0.3, 0.7))
    a, b = (stack(runs, CONDITIONS, **FAMILY) for runs in (one, other))
    rows = difference(a, b, CONDITIONS, resamples=500)
    first, second = (estimate(x, CONDITIONS, resamples=50) for x in (a, b))
    assert [r["mean"] for r in rows] == pytest.approx([x["mean"] - y["mean"] for x, y in zip(first, second)], abs=1e-12)
    middle = [r for r in rows if r["metric"].startswith("norm") and r["conditions"]["role"] == "last"
              and r["conditions"]["layer"] in (1, 2)]
    assert len(middle) == 4 and all(r["ci_low"] > 0.3 for r in middle)
    assert all(r["p_adjusted"] < 0.05 for r in middle)


def test_equal_models_on_the_same_prompts_do_not_differ_at_all():
    """Pairing: what both share cancels, however much the prompts themselves vary."""
    a = stack([measured(seed) for seed in range(5)], CONDITIONS, **FAMILY)
    for row in difference(a, a, CONDITIONS, resamples=200):
        assert (row["mean"], row["ci_low"], row["ci_high"], row["p"]) == (0, 0, 0, 1)


def test_only_the_seeds_and_cells_of_both_are_compared():
    a = stack([measured(seed) for seed in (0, 1, 2)], CONDITIONS, **FAMILY)
    b = stack([measured(seed, layers=2) for seed in (1, 2, 9)], CONDITIONS, **FAMILY)
    rows = difference(a, b, CONDITIONS, resamples=50)
    assert {row["conditions"]["layer"] for row in rows} == {0, 1}
    assert {tuple(each["seed"] for each in row["seeds"]) for row in rows} == {(1, 2)}


def test_a_cell_that_some_seeds_lack_says_in_how_many_it_is():
    short, long = measured(0, layers=2), [measured(seed) for seed in (1, 2)]
    rows = estimate(stack([short, *long], CONDITIONS, **FAMILY), CONDITIONS, resamples=50)
    by_layer = {row["conditions"]["layer"]: row for row in rows}
    assert (by_layer[3]["n_seeds"], by_layer[3]["note"]) == (2, "in 2 of 3 seeds") and by_layer[0]["note"] is None
    assert by_layer[3]["seeds"][0] == {"seed": 0, "mean": None} and by_layer[3]["ci_low"] is not None


def test_seeds_that_all_give_the_same_are_said_to():
    same = [measured(0)._replace(seed=seed) for seed in range(3)]
    rows = estimate(stack(same, CONDITIONS, **FAMILY), CONDITIONS, resamples=50)
    assert {row["note"] for row in rows} == {"no spread: every seed gives the same value"}
    assert all(row["ci_low"] == pytest.approx(row["mean"]) for row in rows)


def test_two_runs_of_one_seed_in_a_group_are_refused():
    with pytest.raises(ValueError, match="two runs of seed 0"):
        stack([measured(0), measured(0)], CONDITIONS, **FAMILY)


def test_a_difference_is_resampled_in_pairs():
    random = np.random.default_rng(0)
    num_SCK, den_SCK = random.normal(1, 1, (6, 9, 3)), random.uniform(1, 2, (6, 9, 3))
    other = num_SCK - 0.25 * den_SCK, den_SCK      # a constant apart in every seed and cluster
    found = crossed_difference((num_SCK, den_SCK), other, resamples=300, generator=stream(0, "pair"))
    for numbers in found[:3]:
        assert numbers == pytest.approx([0.25] * 3, abs=1e-12)
    generator = stream(1, "pair")
    unlike = random.normal(0, 1, (6, 9, 3)), den_SCK
    found = crossed_difference((num_SCK, den_SCK), unlike, resamples=300, generator=generator)
    generator = stream(1, "pair")
    seeds_RS, counts_RC = resample_counts(300, 6, generator), resample_counts(300, 9, generator)
    weight_RSC = seeds_RS[:, :, None] * counts_RC[:, None]
    by_hand = [[(w[..., None] * n).sum((0, 1)) / (w[..., None] * d).sum((0, 1)) for n, d in ((num_SCK, den_SCK), unlike)]
               for w in weight_RSC]
    apart = np.array([a - b for a, b in by_hand])
    assert np.stack(found[1:3]) == pytest.approx(np.quantile(apart, [0.025, 0.975], axis=0), abs=1e-12)


@pytest.mark.parametrize("shape", [(2, 9, 1), (4, 9, 1), (5, 1, 1)])
def test_too_few_seeds_or_clusters_are_refused(shape):
    one = np.ones(shape), np.ones(shape)
    with pytest.raises(ValueError, match="paired bootstrap asked of"):
        crossed_difference(one, one, resamples=9, generator=stream(0, "x"))
