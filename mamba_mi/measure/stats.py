"""Tests, corrections for many of them, and effect sizes. The prompt is the sampling unit, its cluster the unit of chance.

Where a number does not exist (no spread, too few prompts) it is NaN, never 0 or 1. Intervals are in bootstrap.py.
Shape legend: N rows or prompts, C clusters, K cells, R resamples.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import ndtri, stdtr

if TYPE_CHECKING:
    import torch

BLOCK = 512         # cells at a time
ROUNDING = 1e-12
TIE = 1e-10         # of studentised sums, at most sqrt(C) large: two that are equal by design differ by less


class FlipTest(NamedTuple):
    """Two-sided p-values, one a cell: alone, and adjusted for all cells of the family (max-T)."""

    p: np.ndarray
    p_adjusted: np.ndarray


def sign_flips(clusters: int, resamples: int, generator: torch.Generator) -> np.ndarray:
    """Signs +-1, flips x C, the first row without a flip: all 2^C when they are no more than resamples + 1,
    else `resamples` random rows after the first."""
    if clusters < 60 and 2**clusters <= resamples + 1:  # 2.0**1024 overflows
        return 1.0 - 2.0 * (np.arange(2**clusters)[:, None] >> np.arange(clusters) & 1)
    import torch  # here, so that figures and reports, which judge controls, need none

    flipped_RC = torch.randint(2, (resamples, clusters), generator=generator, dtype=torch.int8).numpy()
    return np.concatenate([np.ones((1, clusters)), 1.0 - 2.0 * flipped_RC])


def sign_flip(sums_CK, *, resamples: int, generator: torch.Generator) -> FlipTest:
    """The paired sign-flip permutation test, whole clusters flipped together, on their sums of differences.

    The statistic is |sum| / sqrt(sum of squares) over clusters, which flips leave studentised and which orders
    them as t does. p is the share of flips, the unflipped one among them, that reach the observed statistic: exact
    when all flips are enumerated, (1 + #) / (1 + R) else. The adjusted p compares with the largest statistic of any
    cell under the same flips, so it controls the family-wise error whatever the cells' dependence.
    A cluster without prompts in a cell has the sum 0 there; a cell of zeros has p = 1.
    """
    clusters, cells = sums_CK.shape
    norm_K = np.sqrt((sums_CK**2).sum(axis=0))
    unit_CK = sums_CK / np.where(norm_K > 0, norm_K, 1.0)
    flips_RC = sign_flips(clusters, resamples, generator)
    observed_K, p_K, largest_R = np.empty(cells), np.empty(cells), np.zeros(len(flips_RC))
    for start in range(0, cells, BLOCK):
        block = slice(start, start + BLOCK)
        t_RK = np.abs(flips_RC @ unit_CK[:, block])
        observed_K[block] = t_RK[0]
        p_K[block] = (t_RK >= t_RK[0] - TIE).sum(axis=0) / len(flips_RC)
        largest_R = np.maximum(largest_R, t_RK.max(axis=1))
    below_K = np.searchsorted(np.sort(largest_R), observed_K - TIE, side="left")
    return FlipTest(p_K, (len(flips_RC) - below_K) / len(flips_RC))


def benjamini_hochberg(p_K) -> np.ndarray:
    """p-values adjusted for the false discovery rate; NaN stays NaN and counts as no test."""
    return _adjusted(p_K, lambda p, m: np.minimum.accumulate((p * m / np.arange(1, m + 1))[::-1])[::-1])


def holm(p_K) -> np.ndarray:
    """p-values adjusted for the family-wise error of a few hypotheses, step-down; NaN stays NaN, no test."""
    return _adjusted(p_K, lambda p, m: np.maximum.accumulate(p * np.arange(m, 0, -1)))


def _adjusted(p_K, adjust) -> np.ndarray:
    """`adjust(sorted p, how many)` put back in place, at most 1."""
    p_K = np.asarray(p_K, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(p_K))
    order = tested[np.argsort(p_K[tested], kind="stable")]
    out_K = np.full(len(p_K), np.nan)
    out_K[order] = np.minimum(adjust(p_K[order], len(order)), 1.0)
    return out_K


def cohen_d_z(differences_N, cell_N, cells: int) -> np.ndarray:
    """mean / standard deviation (n - 1) of the paired differences in each cell; NaN under two or without spread."""
    n_K = np.bincount(cell_N, minlength=cells)
    mean_K = np.bincount(cell_N, weights=differences_N, minlength=cells) / np.maximum(n_K, 1)
    square_K = np.bincount(cell_N, weights=(differences_N - mean_K[cell_N]) ** 2, minlength=cells)
    sd_K = np.sqrt(square_K / np.maximum(n_K - 1, 1))
    return np.where(sd_K > ROUNDING * np.abs(mean_K), mean_K / np.where(sd_K > 0, sd_K, 1.0), np.nan)


def cliffs_delta(x_N, y_M) -> float:
    """P(x > y) - P(x < y) over all pairs of two independent samples."""
    y_M = np.sort(y_M)
    below = np.searchsorted(y_M, x_N, side="left").sum()
    above = len(x_N) * len(y_M) - np.searchsorted(y_M, x_N, side="right").sum()
    return float(below - above) / (len(x_N) * len(y_M))


def tost(differences_NK, low: float, high: float) -> np.ndarray:
    """Two one-sided t tests: a small p says the mean paired difference lies within (low, high), so "no effect".

    The rows must be independent: where prompts share a cluster give one mean a cluster. NaN without spread.
    """
    n = len(differences_NK)
    sd_K = differences_NK.std(axis=0, ddof=1) if n > 1 else np.zeros(differences_NK.shape[1:])
    mean_K = differences_NK.mean(axis=0)
    error_K = np.where(sd_K > ROUNDING * np.abs(mean_K), sd_K, np.nan) / np.sqrt(n)
    return np.maximum(stdtr(n - 1, (low - mean_K) / error_K), stdtr(n - 1, (mean_K - high) / error_K))


def control_p(observed_K, controls_RK) -> np.ndarray:
    """(1 + #{control >= observed}) / (1 + R), one-sided: hand in absolute effects for a two-sided one.

    NaN where the observed is, or without any control draw; a NaN among the controls raises.
    """
    if np.isnan(controls_RK).any():
        raise ValueError(f"{int(np.isnan(controls_RK).sum())} of {controls_RK.size} control effects are NaN: "
                         "a draw that failed is no control")
    p_K = (1 + (controls_RK >= observed_K).sum(axis=0)) / (1 + len(controls_RK))
    return np.where(np.isnan(observed_K) | (len(controls_RK) == 0), np.nan, p_K)


def wilson(successes, n, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of a proportion, low and high; NaN for n = 0."""
    k, n = np.asarray(successes, dtype=np.float64), np.asarray(n, dtype=np.float64)
    n = np.where(n > 0, n, np.nan)
    z = ndtri((1 + level) / 2)
    centre = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
    return centre - half, centre + half
