"""The two paths of a model side by side: their probabilities, and the sizes of their differences.

A violin is a histogram, smoothed and mirrored, so that nothing is drawn where no prompt is: probabilities end at 0 and 1.
Shape legend: N prompts, K bins.
"""
from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from mamba_mi.config import UserError
from mamba_mi.report.figures import style
from mamba_mi.report.figures.grid import title_parts
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import fine

METRICS = {"probability": "the answer", "max_probability": "first choice"}
PATH_INK = {"ordinary": style.SUFFICIENCY_INK, "attention": style.LAST}
SIGN_INK = {-1: style.RELATION, 1: style.SUBJECT}
TOP, HIGH, BINS, HALF = 1.0, 2.9, 60, 0.4  # inches from the top, of height; bins; width of half a violin


def paths_violins(tables: RunTables):
    """The figure and its caption: probabilities on the left, differences on the right."""
    rows = [row for row in tables.rows("probability") if row["conditions"].get("path") == "attention"]
    if not rows or tables.effects is None:
        raise UserError("paths_violins needs rows of the path 'attention' and effects.parquet; construct and compare_paths "
                        "write both")
    found = {metric: _both(tables.effects, metric) for metric in METRICS}
    figure = style.sheet(7.6, TOP + HIGH + 0.4)
    style.heading(figure, 0.15, "Two paths of one model", title_parts(tables, rows))
    axes = style.place(figure, 0.65, TOP, 3.0, HIGH, "probabilities")
    _probabilities(axes, found)
    axes = style.place(figure, 4.55, TOP, 2.85, HIGH, "differences")
    tolerance = rows[0].get("tolerance")
    _differences(axes, {metric: other_N - one_N for metric, (one_N, other_N) in found.items()}, tolerance)
    line = f" The solid line is the tolerance, {fine(tolerance)}." if tolerance else ""
    return figure, ("Left: the probability of the answer's first token and of the model's first choice, on the ordinary path "
                    "(left halves) and on the attention path (right halves); dot and bar are median and quartiles. Right: the "
                    "sizes of the differences, attention less ordinary, on a logarithmic axis, those below 0 as left halves and "
                    f"those above as right; the more prompts in a half, the wider it is.{line} n = {rows[0]['n']:,} prompts.")


def _both(effects, metric: str) -> tuple[np.ndarray, np.ndarray]:
    mine = effects.filter((pc.field("metric") == metric) & (pc.field("path") == "attention"))
    return mine["baseline"].to_numpy(), mine["value"].to_numpy()


def _probabilities(axes, found) -> None:
    edges_K = np.linspace(0, 1, BINS + 1)
    for x, pair in enumerate(found.values()):
        for side, (path, values_N) in zip((-1, 1), zip(PATH_INK, pair, strict=True), strict=True):
            _half(axes, x, side, values_N, edges_K, PATH_INK[path], share=1.0)
            low, middle, high = np.quantile(values_N, [0.25, 0.5, 0.75])
            axes.plot([x + 0.04 * side] * 2, [low, high], color=style.INK, linewidth=1.6, solid_capstyle="butt")
            axes.plot(x + 0.04 * side, middle, marker="o", markersize=3.4, color="white", markeredgecolor=style.INK,
                      markeredgewidth=0.8, zorder=4, clip_on=False)
    axes.set(ylim=(0, 1), ylabel="probability")
    axes.set_title("Probabilities", loc="left", fontsize=9, fontweight="bold", pad=20)
    for x, (path, colour) in zip((0.0, 0.3), PATH_INK.items(), strict=True):
        axes.text(x, 1.02, path, transform=axes.transAxes, fontsize=7.5, color=colour, weight="bold", va="bottom")
    _finish(axes)


def _differences(axes, off, tolerance: float | None) -> None:
    sizes = {metric: np.log10(np.abs(x_N[x_N != 0])) for metric, x_N in off.items()}
    drawn = [x for size_N in sizes.values() for x in size_N]
    axes.set_title("Differences, attention less ordinary", loc="left", fontsize=9, fontweight="bold", pad=20)
    low, high = (np.floor(min(drawn) - 0.3), np.ceil(max(drawn) + 0.3)) if drawn else (-9.0, -6.0)
    if tolerance:
        high = max(high, np.ceil(np.log10(tolerance) + 0.3))
        axes.axhline(np.log10(tolerance), color=style.NECESSITY_INK, linewidth=1.2, zorder=1.5)
    low, high = min(low, high - 2), max(high, low + 2)
    edges_K = np.linspace(low, high, BINS + 1)
    widest = max((np.mean(np.sign(x_N) == side) for x_N in off.values() for side in (-1, 1)), default=1.0) or 1.0
    for x, (metric, x_N) in enumerate(off.items()):
        for side in (-1, 1):
            at_N = np.sign(x_N[x_N != 0]) == side
            if at_N.any():
                _half(axes, x, side, sizes[metric][at_N], edges_K, SIGN_INK[side], share=at_N.sum() / len(x_N) / widest)
        same = int((x_N == 0).sum())
        axes.text(x, low - 0.02 * (high - low), f"{same:,} exactly 0", ha="center", fontsize=7, color=style.GREY, va="top")
    step = max(1, int(np.ceil((high - low) / 8)))
    ticks = np.arange(low, high + 1, step)
    axes.set_yticks(ticks, [f"$10^{{{int(t)}}}$" for t in ticks])
    axes.set(ylim=(low - 0.09 * (high - low), high), ylabel="|difference|")
    for x, side, text in ((0.0, -1, "attention lower"), (0.48, 1, "attention higher")):
        axes.text(x, 1.02, text, transform=axes.transAxes, fontsize=7.5, color=SIGN_INK[side], weight="bold", va="bottom")
    _finish(axes)


def _half(axes, x: float, side: int, values_N, edges_K, colour: str, share: float) -> None:
    """Half a violin to the left (-1) or right (1) of x; `share` is the widest's part of the room."""
    count_K = np.histogram(values_N, edges_K)[0].astype(float)
    kernel = np.array([1, 2, 3, 2, 1]) / 9
    smooth_K = np.convolve(np.pad(count_K, 2, mode="reflect"), kernel, mode="valid")
    smooth_K = np.where(smooth_K > 0, smooth_K / smooth_K.max(), 0.0) * HALF * share
    shown = np.flatnonzero(smooth_K)
    first, last = shown[0], shown[-1] + 1
    at = np.concatenate([edges_K[[first]], (edges_K[first:last] + edges_K[first + 1:last + 1]) / 2, edges_K[[last]]])
    width = x + side * np.pad(smooth_K[first:last], 1, mode="edge")
    axes.fill_betweenx(at, x, width, color=colour, alpha=0.45, linewidth=0)
    axes.plot(width, at, color=colour, linewidth=0.9)


def _finish(axes) -> None:
    axes.set_xticks(range(len(METRICS)), METRICS.values())
    axes.set_xlim(-0.5, len(METRICS) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color=style.FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
