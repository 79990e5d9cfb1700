"""From effects to the rows of summary.json: one row a cell and metric, with interval, tests and effect size.

A cell is one combination of conditions. A family is all cells of one metric under the same `family` conditions
(the direction, unless said otherwise): one map, over whose cells p_adjusted and p_bh are taken. The prompt is the
sampling unit; its cluster (the subject) is what is resampled and flipped.
Shape legend: N effects, C clusters, K cells of a family.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mamba_mi.config import stream
from mamba_mi.measure.bootstrap import Interval, bca, cluster_sums
from mamba_mi.measure.effects import PREDICTION
from mamba_mi.measure.stats import FlipTest, benjamini_hochberg, cohen_d_z, sign_flip


class Column(NamedTuple):
    """A column as codes into its distinct values, null one of them."""

    values: list
    code_N: np.ndarray


class Family(NamedTuple):
    """One map's effects in long form; `scale_N` is full - baseline for a normalised metric, else None."""

    metric: str
    names: tuple
    cells: list[dict]
    cell_N: np.ndarray
    clusters: np.ndarray
    cluster_N: np.ndarray
    difference_N: np.ndarray
    scale_N: np.ndarray | None


class Sums(NamedTuple):
    """What a family's statistics rest on: each cluster's sums in each cell, over the prompts that are not excluded."""

    clusters: np.ndarray
    difference_CK: np.ndarray
    scale_CK: np.ndarray
    count_CK: np.ndarray
    kept_N: np.ndarray

    @property
    def n_K(self) -> np.ndarray:
        return self.count_CK.sum(axis=0).astype(int)

    @property
    def n_clusters_K(self) -> np.ndarray:
        return (self.count_CK > 0).sum(axis=0)


def summarise(effects: pa.Table, clusters: Mapping[str, str], conditions: Sequence[str], *,
              normalised: Mapping[str, str], tau: float, resamples: int, seed: int,
              family: Sequence[str] = ("direction",),
              progress: Callable[[int, int], None] | None = None) -> list[dict]:
    """The rows of summary.json, plain Python, sorted by metric and then by `conditions`; None where a number is not.

    `mean` is that of value - baseline. For a metric named in `normalised` (logit_difference: its normalised name)
    a second family holds the ratio of means, sum(value - baseline) / sum(full - baseline), over the prompts with
    |full - baseline| > tau; `excluded` counts the others. Its p and effect_size are those of the differences.
    The interval is a 95% BCa bootstrap over clusters; `note` says why it is missing or a point, else None.
    p is a two-sided sign-flip test by cluster, p_adjusted its max-T over the family, p_bh Benjamini-Hochberg.
    A name in `family` that is not among `conditions` splits nothing. Random numbers depend on the seed and the
    family alone, so adding a metric changes no other row.
    """
    found = families(effects, clusters, conditions, normalised=normalised, family=family)
    rows = []
    for done, each in enumerate(found, start=1):
        rows += _rows(each, tau, resamples, seed)
        if progress:
            progress(done, len(found))
    return in_order(rows)


def families(effects: pa.Table, clusters: Mapping[str, str], conditions: Sequence[str], *,
             normalised: Mapping[str, str], family: Sequence[str]) -> list[Family]:
    """The maps of a table of effects, as `summarise` takes them apart."""
    _check(effects, clusters, conditions, normalised)
    effects = effects.filter(pc.not_equal(effects["metric"], PREDICTION))
    return list(_families(effects, clusters, conditions, normalised, tuple(n for n in family if n in conditions)))


def sums(family: Family, tau: float) -> Sums:
    """The sums by cluster and cell of a map; a normalised metric leaves out prompts with |full - baseline| <= tau."""
    kept_N = np.ones(len(family.cell_N), bool) if family.scale_N is None else np.abs(family.scale_N) > tau
    cell_N, difference_N, cells = family.cell_N[kept_N], family.difference_N[kept_N], len(family.cells)
    present, cluster_N = np.unique(family.cluster_N[kept_N], return_inverse=True)
    shape = len(present), cells
    difference_CK, count_CK = (cluster_sums(x_N, cluster_N, cell_N, shape) for x_N in (difference_N, np.ones(len(cell_N))))
    scale_CK = count_CK if family.scale_N is None else cluster_sums(family.scale_N[kept_N], cluster_N, cell_N, shape)
    return Sums(family.clusters[present], difference_CK, scale_CK, count_CK, kept_N)


def in_order(rows: list[dict]) -> list[dict]:
    """Rows sorted by metric and then by their conditions, a missing one last."""
    return sorted(rows, key=lambda row: (row["metric"], *((v is None, v) for v in row["conditions"].values())))


def _check(effects, clusters, conditions, normalised) -> None:
    needed = ["prompt_id", "metric", "value", "baseline", *conditions, *(["full"] if normalised else [])]
    if missing := [name for name in needed if name not in effects.column_names]:
        raise ValueError(f"effects have no column {', '.join(missing)}; they have {', '.join(effects.column_names)}")
    if not conditions:
        raise ValueError("no conditions to tell the cells apart: name at least one column")
    metrics = pc.unique(effects["metric"]).to_pylist()
    if missing := sorted(set(normalised) - set(metrics)):
        raise ValueError(f"no metric {', '.join(missing)} to normalise; the effects have {', '.join(sorted(metrics))}")
    if taken := sorted(set(normalised.values()) & set(metrics)):
        raise ValueError(f"{', '.join(taken)}: a metric of the effects and the name of a normalised one")
    if missing := sorted(set(pc.unique(effects["prompt_id"]).to_pylist()) - set(clusters)):
        raise ValueError(f"{len(missing)} prompts have no cluster, {missing[0]!r} among them")


def _families(effects, clusters, conditions, normalised, shared) -> Iterator[Family]:
    metric, prompt = _column(effects["metric"]), _column(effects["prompt_id"])
    columns = {name: _column(effects[name]) for name in conditions}
    named, cluster_of = np.unique([clusters[p] for p in prompt.values], return_inverse=True)
    value_N, baseline_N = effects["value"].to_numpy(), effects["baseline"].to_numpy()
    split = [metric, *(columns[name] for name in shared)]
    family_N = _combined(split)
    for number, names in _decoded(family_N, split):
        at = np.flatnonzero(family_N == number)
        here = {name: Column(column.values, column.code_N[at]) for name, column in columns.items()}
        cell_of_N = _combined(here.values())
        found = list(_decoded(cell_of_N, list(here.values())))
        cell_N = np.searchsorted([code for code, _ in found], cell_of_N)
        _refuse_repeats(cell_N * len(prompt.values) + prompt.code_N[at], names)
        cells = [dict(zip(conditions, values, strict=True)) for _, values in found]
        rows = (cells, cell_N, named, cluster_of[prompt.code_N[at]], value_N[at] - baseline_N[at])
        yield Family(names[0], names[1:], *rows, None)
        if names[0] in normalised:
            scale_N = effects["full"].to_numpy()[at] - baseline_N[at]
            yield Family(normalised[names[0]], names[1:], *rows, scale_N)


def _column(values: pa.ChunkedArray) -> Column:
    coded = values.combine_chunks().dictionary_encode(null_encoding="encode")
    return Column(coded.dictionary.to_pylist(), coded.indices.to_numpy().astype(np.int64))


def _combined(columns) -> np.ndarray:
    """One number a row for the columns' joint value, in their order."""
    code_N = 0
    for column in columns:
        code_N = code_N * len(column.values) + column.code_N
    return code_N


def _decoded(code_N, columns: list[Column]) -> Iterator[tuple[int, tuple]]:
    """Each distinct number of `_combined`, ascending, with the values it stands for."""
    codes = np.sort(pc.unique(pa.array(code_N)).to_numpy())     # arrow's is 10 times numpy's on millions of rows
    parts = np.unravel_index(codes, [len(column.values) for column in columns])
    for code, *picked in zip(codes, *parts, strict=True):
        yield code, tuple(column.values[i] for column, i in zip(columns, picked, strict=True))


def _refuse_repeats(key_N, names) -> None:
    repeated = int((np.bincount(key_N) > 1).sum())
    if repeated:
        raise ValueError(f"{'/'.join(map(str, names))}: {repeated} times a prompt has several effects in one cell; a "
                         "column that tells them apart is not among the conditions asked for")


def _rows(family: Family, tau: float, resamples: int, seed: int) -> Iterator[dict]:
    cells, found = len(family.cells), sums(family, tau)
    n_K = found.n_K
    key = (seed, "summary", family.metric, *family.names)
    interval = bca(found.difference_CK, found.scale_CK, found.count_CK > 0, resamples=resamples,
                   generator=stream(*key, "bootstrap"))
    test = sign_flip(found.difference_CK, resamples=resamples, generator=stream(*key, "flips"))
    test = FlipTest(*(np.where(n_K > 0, p_K, np.nan) for p_K in test))
    excluded_K = np.bincount(family.cell_N, minlength=cells) - n_K
    columns = {"n": n_K, "n_clusters": found.n_clusters_K, **numbers(interval, test),
               "effect_size": cohen_d_z(family.difference_N[found.kept_N], family.cell_N[found.kept_N], cells), "excluded": excluded_K}
    for k, conditions in enumerate(family.cells):
        yield {"conditions": conditions, "metric": family.metric,
               **{name: plain(column[k]) for name, column in columns.items()},
               "control_p": None, "note": interval.why[k] or None}


def numbers(interval: Interval, test: FlipTest) -> dict[str, np.ndarray]:
    """The columns of a row that come from its interval and its test."""
    return {"mean": interval.estimate, "ci_low": interval.low, "ci_high": interval.high,
            "p": test.p, "p_adjusted": test.p_adjusted, "p_bh": benjamini_hochberg(test.p)}


def plain(x) -> int | float | None:
    """A Python number, None for what is not finite: NaN is not JSON."""
    return x.item() if np.isfinite(x) else None
