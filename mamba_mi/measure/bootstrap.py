"""Confidence intervals by resampling whole clusters of prompts, for all cells of a map at once.

The statistic is always a ratio of sums, sum(num) / sum(den): with den = the number of prompts it is a mean, with
num = value - baseline and den = full - baseline it is the ratio of means. Only each cluster's sums are needed, so a
bootstrap is one matrix product, resample counts times cluster sums.

An interval is never made up. Where none can be had, low and high are NaN and `why` says the reason in words.
Shape legend: N rows, C clusters, K cells, R resamples, S seeds.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import ndtr, ndtri, stdtrit

BLOCK = 256     # cells at a time: R x 256 numbers is the most that is held
ROUNDING = 1e-12


class Interval(NamedTuple):
    """Estimates and intervals, one a cell. `why` is empty, or says why an interval is missing or is a point."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    why: tuple[str, ...]


def cluster_sums(values_N, cluster_N, cell_N, shape: tuple[int, int]) -> np.ndarray:
    """The sum of `values_N` in every (cluster, cell), float64; zero where a cluster has no row in a cell."""
    flat = np.bincount(cluster_N * shape[1] + cell_N, weights=values_N, minlength=shape[0] * shape[1])
    return flat.reshape(shape)


def resample_counts(resamples: int, clusters: int, generator: torch.Generator) -> np.ndarray:
    """How often each cluster is drawn in each resample, R x C: `clusters` draws with replacement a row."""
    drawn_RC = torch.randint(clusters, (resamples, clusters), generator=generator).numpy()
    flat = np.bincount((drawn_RC + clusters * np.arange(resamples)[:, None]).ravel(), minlength=resamples * clusters)
    return flat.reshape(resamples, clusters).astype(np.float64)


def bca(num_CK, den_CK, present_CK, *, resamples: int, generator: torch.Generator, level: float = 0.95) -> Interval:
    """The bias-corrected and accelerated bootstrap of sum(num) / sum(den), resampling clusters.

    A cell is resampled over the clusters present in it alone; cells with the same clusters share their resamples.
    The acceleration is the jackknife's, leaving out one cluster at a time (Efron & Tibshirani 1993, 14.3); the
    interval's `reach` is that of so few clusters.
    No interval: fewer than two clusters; denominators that change sign or vanish in some resample, where the ratio
    has a pole inside its distribution; an estimate outside all its resamples. Clusters that all have the same
    ratio give the point as interval: there is no spread to see, however few they are.
    """
    cells = num_CK.shape[1]
    low, high, why = np.full(cells, np.nan), np.full(cells, np.nan), np.full(cells, "", dtype=object)
    for present_C, columns in _same_clusters(np.asarray(present_CK, dtype=bool)):
        clusters = int(present_C.sum())
        if clusters < 2:
            why[columns] = "one cluster only" if clusters else "no prompts"
            continue
        counts_RC = resample_counts(resamples, clusters, generator)
        for start in range(0, len(columns), BLOCK):
            block = columns[start:start + BLOCK]
            at = np.ix_(present_C, block)
            low[block], high[block], why[block] = _bca_block(num_CK[at], den_CK[at], counts_RC, level)
    return Interval(ratio(num_CK, den_CK), low, high, tuple(why))


def _same_clusters(present_CK) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each distinct set of clusters, with the cells that have exactly these."""
    _, first, of_K = np.unique(np.packbits(present_CK, axis=0), axis=1, return_index=True, return_inverse=True)
    for number, k in enumerate(first):
        yield present_CK[:, k], np.flatnonzero(of_K.reshape(-1) == number)


def ratio(num_CK, den_CK):
    """sum(num) / sum(den), NaN where the denominators sum to zero up to rounding."""
    den_K = den_CK.sum(axis=0)
    vanishes_K = np.abs(den_K) <= ROUNDING * np.abs(den_CK).sum(axis=0)
    return np.where(vanishes_K, np.nan, num_CK.sum(axis=0) / np.where(vanishes_K, 1.0, den_K))


def _bca_block(num_CK, den_CK, counts_RC, level: float):
    """low, high and why of cells whose clusters are all present."""
    estimate_K, den_K = ratio(num_CK, den_CK), den_CK.sum(axis=0)
    # Everything is measured from the estimate: num - estimate * den is exactly what moves it, and ties stay ties.
    excess_CK = num_CK - estimate_K * den_CK
    scale_K = (np.abs(num_CK) + np.abs(estimate_K * den_CK)).max(axis=0)
    spread_K = np.abs(excess_CK).max(axis=0) > ROUNDING * scale_K
    den_RK, left_CK = counts_RC @ den_CK, den_K - den_CK
    pole_K = (den_RK * den_K <= 0).any(axis=0) | (left_CK * den_K <= 0).any(axis=0) | np.isnan(estimate_K)
    sound_K = spread_K & ~pole_K
    shift_RK = counts_RC @ np.where(sound_K, excess_CK, 0.0) / np.where(sound_K, den_RK, 1.0)
    shift_RK[np.abs(shift_RK) <= ROUNDING * np.abs(shift_RK).max(axis=0)] = 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        bounds = _bca_levels(shift_RK, -excess_CK / np.where(sound_K, left_CK, np.nan), level)
    outside_K = sound_K & ~np.isfinite(bounds).all(axis=0)
    sound_K &= ~outside_K
    shift_RK.sort(axis=0)
    low_K, high_K = (estimate_K + _quantile(shift_RK, np.where(sound_K, bound_K, 0.5)) for bound_K in bounds)
    missing_K = pole_K | outside_K
    why_K = np.select([pole_K, outside_K, ~spread_K], ["the denominators change sign or vanish among the resamples",
                                                       "the estimate lies outside all its resamples",
                                                       "no spread: every cluster gives the same value"], "")
    return np.where(missing_K, np.nan, low_K), np.where(missing_K, np.nan, high_K), why_K


def reach(level: float, clusters: int) -> float:
    """How many standard errors an interval reaches: Student's quantile, times sqrt(C / (C - 1)).

    A bootstrap of C clusters takes the spread over C for that over C - 1, and the normal's tails for Student's: read
    at the normal's 1.96 it covers 94% at 40 clusters and 87% at 8 (Hesterberg 2015, Am. Statistician 69, 371).
    """
    return float(np.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, (1 + level) / 2))


def _bca_levels(shift_RK, jackknife_CK, level: float):
    """The two quantile levels of each cell; not finite where the bias correction is, or the formula has its pole."""
    # Ties count half, as in scipy: whole resamples equal the estimate when the values are few and discrete.
    z0_K = ndtri(((shift_RK < 0).mean(axis=0) + (shift_RK <= 0).mean(axis=0)) / 2)
    lean_CK = jackknife_CK.mean(axis=0) - jackknife_CK
    a_K = (lean_CK**3).sum(axis=0) / (6 * (lean_CK**2).sum(axis=0) ** 1.5)
    z_2 = np.array([-1.0, 1.0]) * reach(level, len(jackknife_CK))
    stretch_2K = 1 - a_K * (z0_K + z_2[:, None])
    return np.where(stretch_2K > 0, ndtr(z0_K + (z0_K + z_2[:, None]) / stretch_2K), np.nan)


def _quantile(sorted_RK, level_K):
    """The linearly interpolated quantile of each column at its own level."""
    place_K = level_K * (len(sorted_RK) - 1)
    below_K = np.floor(place_K).astype(int)
    above_K = np.minimum(below_K + 1, len(sorted_RK) - 1)
    low_K, high_K = (np.take_along_axis(sorted_RK, i[None], axis=0)[0] for i in (below_K, above_K))
    return low_K + (place_K - below_K) * (high_K - low_K)


def crossed(num_SCK, den_SCK, *, resamples: int, generator: torch.Generator, level: float = 0.95) -> Interval:
    """The interval of sum(num) / sum(den) over seeds x clusters when the same prompts recur in every seed.

    Seeds and clusters are resampled independently and their counts multiplied (the pigeonhole bootstrap, Owen 2007);
    the interval is the percentile one, there being no single jackknife to accelerate it. A nested bootstrap would
    take the prompts of each seed for new ones. Fewer than five seeds raise: use `t_interval` on their estimates.
    """
    seeds, clusters, _ = num_SCK.shape
    if seeds < 5 or clusters < 2:
        raise ValueError(f"crossed bootstrap asked of {seeds} seeds x {clusters} clusters; it needs 5 x 2, "
                         "under 5 seeds show the points and t_interval")
    drawn = resample_counts(resamples, seeds, generator), resample_counts(resamples, clusters, generator)
    return _percentile(*_crossed_ratio(num_SCK, den_SCK, *drawn), level)


def crossed_difference(one, other, *, resamples: int, generator: torch.Generator, level: float = 0.95) -> Interval:
    """The interval of sum(num) / sum(den) of `one`, a pair (num_SCK, den_SCK), less that of `other`.

    Both are resampled with the same seeds and clusters, so what they share is paired. From five seeds on as
    `crossed`; of a single seed the clusters alone are resampled, and there is no seed to generalise to.
    """
    seeds, clusters, _ = one[0].shape
    if 1 < seeds < 5 or clusters < 2:
        raise ValueError(f"paired bootstrap asked of {seeds} seeds x {clusters} clusters; it needs 1 or at least 5 seeds "
                         "and 2 clusters, under 5 seeds show the points and t_interval")
    seeds_RS = resample_counts(resamples, seeds, generator) if seeds > 1 else np.ones((resamples, 1))
    drawn = seeds_RS, resample_counts(resamples, clusters, generator)
    (first_K, first_RK), (second_K, second_RK) = (_crossed_ratio(*each, *drawn) for each in (one, other))
    return _percentile(first_K - second_K, first_RK - second_RK, level)


def _crossed_ratio(num_SCK, den_SCK, seeds_RS, counts_RC) -> tuple[np.ndarray, np.ndarray]:
    """The ratio of each cell and of each of its resamples; NaN where a denominator changes sign or vanishes."""
    seeds, _, cells = num_SCK.shape
    num_RK, den_RK = (sum(seeds_RS[:, s, None] * (counts_RC @ x_SCK[s]) for s in range(seeds))
                      for x_SCK in (num_SCK, den_SCK))
    estimate_K = ratio(num_SCK.reshape(-1, cells), den_SCK.reshape(-1, cells))
    pole_K = (den_RK * den_SCK.sum(axis=(0, 1)) <= 0).any(axis=0) | np.isnan(estimate_K)
    return estimate_K, num_RK / np.where(pole_K, np.nan, den_RK)


def _percentile(estimate_K, ratio_RK, level: float) -> Interval:
    low_K, high_K = np.quantile(ratio_RK, [(1 - level) / 2, (1 + level) / 2], axis=0)
    why_K = np.where(np.isnan(low_K), "the denominators change sign or vanish among the resamples", "")
    return Interval(estimate_K, low_K, high_K, tuple(why_K.tolist()))


def t_interval(estimates_SK, level: float = 0.95) -> Interval:
    """Student's interval of the mean over a few seeds, from one estimate a seed; one seed has no interval."""
    seeds, cells = estimates_SK.shape
    mean_K = estimates_SK.mean(axis=0)
    if seeds < 2:
        return Interval(mean_K, np.full(cells, np.nan), np.full(cells, np.nan), ("one seed only",) * cells)
    half_K = stdtrit(seeds - 1, (1 + level) / 2) * estimates_SK.std(axis=0, ddof=1) / np.sqrt(seeds)
    return Interval(mean_K, mean_K - half_K, mean_K + half_K, ("",) * cells)
