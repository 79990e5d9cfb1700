"""Effects of several runs together: over the seeds of like runs, and between two kinds of runs.

The seeds of a sweep choose partly different prompts, and clusters (subjects) recur among them: chance is in the seeds
and in the clusters, crossed. A cluster that a seed does not have counts zero there.
Shape legend: S seeds, C clusters, K cells.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mamba_mi.config import stream
from mamba_mi.measure.bootstrap import ROUNDING, Interval, bca, crossed, crossed_difference, ratio, t_interval
from mamba_mi.measure.stats import FlipTest, sign_flip
from mamba_mi.measure.summary import Sums, families, in_order, numbers, plain, sums

FEW = 5  # seeds from which on they are resampled; of fewer the points are shown, with Student's interval
DRAWN = "sweep"


class Measured(NamedTuple):
    """One run's effects, the cluster of each of its prompts, and the tau its ratios leave prompts out by."""

    seed: int
    effects: pa.Table
    clusters: Mapping[str, str]
    tau: float


class Stack(NamedTuple):
    """One map over the seeds of like runs: every seed's sums in the same clusters and cells."""

    seeds: tuple[int, ...]
    cells: tuple[tuple, ...]
    clusters: tuple[str, ...]
    difference_SCK: np.ndarray
    scale_SCK: np.ndarray
    count_SCK: np.ndarray

    @property
    def estimates_SK(self) -> np.ndarray:
        """Each seed's own estimate, NaN where it has no prompt in a cell."""
        return np.stack([ratio(num_CK, den_CK) for num_CK, den_CK in zip(self.difference_SCK, self.scale_SCK)])


Stacks = Mapping[tuple, Stack]  # by (metric, the family's names)


def stack(runs: Sequence[Measured], conditions: Sequence[str], *, normalised: Mapping[str, str],
          family: Sequence[str]) -> dict[tuple, Stack]:
    """The maps of like runs, which differ in their seed alone."""
    found: dict[tuple, dict[int, tuple[list, Sums]]] = {}
    for run in runs:
        for each in families(run.effects, run.clusters, conditions, normalised=normalised, family=family):
            cells = [tuple(cell.values()) for cell in each.cells]
            by_seed = found.setdefault((each.metric, each.names), {})
            if run.seed in by_seed:
                raise ValueError(f"two runs of seed {run.seed} in one group: what else tells them apart?")
            by_seed[run.seed] = cells, sums(each, run.tau)
    return {name: _aligned(by_seed) for name, by_seed in found.items()}


def _aligned(by_seed: Mapping[int, tuple[list, Sums]]) -> Stack:
    """The seeds' sums in the union of their clusters and cells."""
    clusters = tuple(sorted({str(c) for _, each in by_seed.values() for c in each.clusters}))
    cells = tuple(sorted({cell for own, _ in by_seed.values() for cell in own}, key=_order))
    sums_3SCK = np.zeros((3, len(by_seed), len(clusters), len(cells)))
    at_cluster, at_cell = ({name: i for i, name in enumerate(names)} for names in (clusters, cells))
    for s, (own, each) in enumerate(by_seed.values()):
        at = np.ix_([at_cluster[str(c)] for c in each.clusters], [at_cell[cell] for cell in own])
        for x_SCK, own_CK in zip(sums_3SCK, (each.difference_CK, each.scale_CK, each.count_CK)):
            x_SCK[s][at] = own_CK
    return Stack(tuple(by_seed), cells, clusters, *sums_3SCK)


def _order(cell: tuple) -> tuple:
    return tuple((value is None, value) for value in cell)


def estimate(stacks: Stacks, conditions: Sequence[str], *, resamples: int,
             progress: Callable[[int, int], None] | None = None) -> list[dict]:
    """A row a cell and metric over all seeds. From five seeds on the interval is the crossed bootstrap's.

    Of two to four seeds `mean` is that of the seeds' estimates, its interval Student's; of one seed the interval is
    the BCa over clusters. `seeds` lists each seed's own estimate. p is the sign-flip test by cluster, over all seeds.
    """
    rows = []
    for done, ((metric, names), each) in enumerate(stacks.items(), start=1):
        key = (0, DRAWN, metric, *names)
        interval = _interval(each, resamples, key)
        test = sign_flip(each.difference_SCK.sum(axis=0), resamples=resamples, generator=stream(*key, "flips"))
        n_K, n_clusters_K = each.count_SCK.sum(axis=(0, 1)), (each.count_SCK.sum(axis=0) > 0).sum(axis=0)
        rows += _rows(each, metric, conditions, interval, test, n_K, n_clusters_K, each.estimates_SK)
        if progress:
            progress(done, len(stacks))
    return in_order(rows)


def _interval(each: Stack, resamples: int, key: tuple) -> Interval:
    seeds, clusters, _ = each.count_SCK.shape
    if seeds == 1:
        return bca(each.difference_SCK[0], each.scale_SCK[0], each.count_SCK[0] > 0, resamples=resamples,
                   generator=stream(*key, "bootstrap"))
    if seeds < FEW:
        return _of_points(each.estimates_SK)
    if clusters < 2:
        return _none(each.estimates_SK.mean(axis=0), "one cluster only")
    return crossed(each.difference_SCK, each.scale_SCK, resamples=resamples, generator=stream(*key, "bootstrap"))


def _none(estimate_K, why: str) -> Interval:
    nothing_K = np.full(len(estimate_K), np.nan)
    return Interval(estimate_K, nothing_K, nothing_K, (why,) * len(estimate_K))


def _of_points(estimates_SK) -> Interval:
    """Student's interval of each cell over the seeds that have it."""
    seeds, cells = estimates_SK.shape
    columns = []
    for k in range(cells):
        there_S = ~np.isnan(estimates_SK[:, k])
        if not there_S.any():
            columns.append((np.nan, np.nan, np.nan, "no prompts"))
            continue
        own = t_interval(estimates_SK[there_S, k:k + 1])
        why = own.why[0]
        if there_S.sum() > 1 and own.high[0] - own.low[0] <= ROUNDING * abs(own.estimate[0]):
            why = "no spread: every seed gives the same value"
        if not there_S.all():
            why = "; ".join(filter(None, [why, f"in {there_S.sum()} of {seeds} seeds"]))
        columns.append((own.estimate[0], own.low[0], own.high[0], why))
    *numeric, why = zip(*columns)
    return Interval(*map(np.array, numeric), why)


def _rows(each: Stack, metric: str, conditions, interval: Interval, test: FlipTest, n_K, n_clusters_K,
          estimates_SK) -> Iterator[dict]:
    test = FlipTest(*(np.where(n_K > 0, p_K, np.nan) for p_K in test))
    columns = {"n": n_K.astype(int), "n_clusters": n_clusters_K,
               "n_seeds": (~np.isnan(estimates_SK)).sum(axis=0), **numbers(interval, test)}
    for k, cell in enumerate(each.cells):
        yield {"conditions": dict(zip(conditions, cell)), "metric": metric,
               **{name: plain(column[k]) for name, column in columns.items()}, "control_p": None,
               "note": interval.why[k] or None,
               "seeds": [{"seed": seed, "mean": plain(x_K[k])} for seed, x_K in zip(each.seeds, estimates_SK)]}


def difference(one: Stacks, other: Stacks, conditions: Sequence[str], *, resamples: int) -> list[dict]:
    """A row a cell that both have: the effect in `one` less that in `other`, over the seeds both have.

    Seeds are paired, and clusters where they are common. `n` is the smaller of the two; p is a sign-flip test of the
    clusters that both have, each cluster's share in the one effect less its share in the other.
    """
    rows = []
    for name in (name for name in one if name in other):
        a, b = _common(one[name], other[name])
        if not a.seeds or not a.cells:
            continue
        key = (0, DRAWN, "difference", name[0], *name[1])
        estimates_SK = a.estimates_SK - b.estimates_SK
        both_CK = (a.count_SCK.sum(axis=0) > 0) & (b.count_SCK.sum(axis=0) > 0)
        shares_CK = _shares(a, both_CK) - _shares(b, both_CK)
        test = sign_flip(shares_CK, resamples=resamples, generator=stream(*key, "flips"))
        test = FlipTest(*(np.where(both_CK.any(axis=0), p_K, np.nan) for p_K in test))
        n_K = np.minimum(a.count_SCK.sum(axis=(0, 1)), b.count_SCK.sum(axis=(0, 1)))
        interval = _interval_of_difference(a, b, estimates_SK, resamples, key)
        rows += _rows(a, name[0], conditions, interval, test, n_K, both_CK.sum(axis=0), estimates_SK)
    return in_order(rows)


def _common(one: Stack, other: Stack) -> tuple[Stack, Stack]:
    """The seeds and cells of both, over the clusters of either."""
    seeds = tuple(s for s in one.seeds if s in other.seeds)
    cells = tuple(c for c in one.cells if c in set(other.cells))
    clusters = tuple(sorted({*one.clusters, *other.clusters}))

    def fitted(each: Stack) -> Stack:
        s, k = [each.seeds.index(x) for x in seeds], [each.cells.index(x) for x in cells]
        rows = [clusters.index(c) for c in each.clusters]
        out_3SCK = np.zeros((3, len(seeds), len(clusters), len(cells)))
        for x_SCK, own_SCK in zip(out_3SCK, (each.difference_SCK, each.scale_SCK, each.count_SCK)):
            x_SCK[:, rows] = own_SCK[s][:, :, k]
        return Stack(seeds, cells, clusters, *out_3SCK)
    return fitted(one), fitted(other)


def _shares(each: Stack, both_CK) -> np.ndarray:
    """What each cluster adds to the ratio over the clusters that both have."""
    num_CK, den_CK = (np.where(both_CK, x_SCK.sum(axis=0), 0.0) for x_SCK in (each.difference_SCK, each.scale_SCK))
    den_K = den_CK.sum(axis=0)
    return num_CK / np.where(den_K == 0, 1.0, den_K)


def _interval_of_difference(a: Stack, b: Stack, estimates_SK, resamples: int, key: tuple) -> Interval:
    seeds, clusters, _ = a.count_SCK.shape
    if 1 < seeds < FEW:
        return _of_points(estimates_SK)
    if clusters < 2:
        return _none(estimates_SK.mean(axis=0), "one cluster only")
    pair = ((x.difference_SCK, x.scale_SCK) for x in (a, b))
    return crossed_difference(*pair, resamples=resamples, generator=stream(*key, "bootstrap"))
