"""Where a patch matters: heatmaps of layer x position role, sufficiency beside necessity, a row a site.

Up to DEEPEST_WITH_TEXT layers the cells carry their numbers; beyond, the intervals' widths have panels.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from mamba_mi.report.figures import style
from mamba_mi.report.figures.grid import Grid, read_grid, title_parts
from mamba_mi.report.figures.heatmap import ALPHA, HATCHING, heatmap, label, stands_out
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import DIRECTIONS, NOTHING, sample, site

DEEPEST_WITH_TEXT = 12  # with more layers the numbers would be too small to read
MEANING = {
    "denoising": "clean activation put into the corrupt run",
    "noising": "corrupt activation put into the clean run",
}
SAID = {"denoising": "Sufficiency (denoising) puts the clean activation into the corrupt run.",
        "noising": "Necessity (noising) puts the corrupt activation into the clean run."}
SCALE = {"denoising": "share of the effect restored", "noising": "share of the effect destroyed"}
LEFT, TOP, RIGHT, COLUMN_GAP, ROW_GAP, SCALES = 1.2, 1.25, 0.25, 0.22, 0.55, 0.75  # inches


@dataclass(frozen=True)
class Layout:
    """Where the panels are, in inches; how large the intervals are set in them, in points."""

    high: float
    wide: float
    narrow: float  # the panels of widths; 0 where the cells carry their intervals as text
    interval_points: float
    columns: int
    rows: int

    def left(self, column: int) -> float:
        """The left edge of a column of maps; after the last of them come the columns of widths."""
        maps = min(column, self.columns)
        return LEFT + maps * (self.wide + COLUMN_GAP) + (column - maps) * (self.narrow + COLUMN_GAP)

    def top(self, row: int) -> float:
        return TOP + row * (self.high + ROW_GAP)

    @property
    def page(self) -> tuple[float, float]:
        right = self.left(2 * self.columns if self.narrow else self.columns) - COLUMN_GAP + RIGHT
        return max(right, 5.0), self.top(self.rows) - 0.15 + SCALES


def layout(grid: Grid) -> Layout:
    """Sizes that keep the smallest type at 5.6 points."""
    depth, shape = max(map(len, grid.layers.values())), (len(grid.directions), len(grid.sites))
    if depth > DEEPEST_WITH_TEXT:
        return Layout(0.155 * len(grid.roles), 2.9, 1.25, 0, *shape)
    cell, points = (0.62, 6.2) if depth <= 8 else (0.52, 5.6)
    return Layout(0.33 * len(grid.roles), max(3.0, cell * depth), 0, points, *shape)


def patching_map(tables: RunTables):
    """The figure and its caption."""
    grid = read_grid(tables)
    at, limit = layout(grid), _limit(grid)
    figure = style.sheet(*at.page)
    style.heading(figure, 0.15, "Activation patching", title_parts(tables, grid.rows))
    for row, name in enumerate(grid.sites):
        title = site(name)[0].upper() + site(name)[1:]
        style.write(figure, 0.15, at.top(row) - 0.2, title, fontsize=8.5, weight="bold")
    for column, direction in enumerate(grid.directions):
        _head(figure, at.left(column), direction, DIRECTIONS[direction], MEANING[direction])
        for row, name in enumerate(grid.sites):
            axes = style.place(figure, at.left(column), at.top(row), at.wide, at.high, f"{direction} {name}")
            heatmap(axes, grid, direction, name, limit, at.interval_points)
            label(axes, grid, name, roles=column == 0, layer=row == at.rows - 1)
        _scale(figure, grid, at, column, limit)
    if at.narrow:
        _widths(figure, grid, at)
    _key(figure, grid, at)
    return figure, _caption(grid, at)


def _limit(grid: Grid) -> float:
    """The colour scale's end: 1, the whole effect, or up to 1.5 where patches overshoot it."""
    return float(np.clip(max(np.abs(grid.means), default=1), 1, 1.5))


def _head(figure: style.Sheet, left: float, direction: str, title: str, meaning: str) -> None:
    ink = style.DIRECTION_INK[direction]
    style.write(figure, left, 0.68, title, fontsize=10, weight="bold", color=ink)
    style.write(figure, left, 0.86, meaning, fontsize=7.5, color=style.GREY)


def _bar(figure: style.Sheet, left: float, width: float, colours: ScalarMappable, title: str):
    """A colour bar at the foot of the page."""
    top = figure.get_size_inches()[1] - 0.47
    axes = style.place(figure, left, top, width, 0.09, f"scale {title}")
    figure.colorbar(colours, cax=axes, orientation="horizontal").outline.set_visible(False)
    axes.tick_params(length=2, pad=1.5, labelsize=7)
    axes.set_title(title, fontsize=7.5, loc="left", pad=3)
    return axes


def _scale(figure: style.Sheet, grid: Grid, at: Layout, column: int, limit: float) -> None:
    direction = grid.directions[column]
    colours = ScalarMappable(Normalize(-limit, limit), style.MAPS[direction])
    axes = _bar(figure, at.left(column), 0.6 * at.wide, colours, SCALE[direction])
    lowest = max(-limit, min([-0.25, *grid.means]))
    axes.set_xticks([tick for tick in (-1.5, -1, -0.5, 0, 0.5, 1, 1.5) if lowest <= tick <= limit])
    axes.set_xlim(lowest, limit)


def _widths(figure: style.Sheet, grid: Grid, at: Layout) -> None:
    """How far each mean can be trusted, where there is no room for its interval in numbers."""
    half = {(direction, name): (grid.numbers_RY(direction, name, "ci_high")
                                - grid.numbers_RY(direction, name, "ci_low")) / 2
            for direction in grid.directions for name in grid.sites}
    widest = max(0.1, *(np.nan_to_num(half_RY).max() for half_RY in half.values()))
    colours = ScalarMappable(Normalize(0, widest), style.WIDTH_MAP)
    for column, direction in enumerate(grid.directions, start=at.columns):
        _head(figure, at.left(column), direction, "± 95%", DIRECTIONS[direction].lower())
        for row, name in enumerate(grid.sites):
            place = at.left(column), at.top(row), at.narrow, at.high
            axes = style.place(figure, *place, f"width {direction} {name}")
            axes.pcolormesh(half[direction, name], cmap=colours.cmap, norm=colours.norm)
            label(axes, grid, name, roles=False, layer=row == at.rows - 1)
    _bar(figure, at.left(at.columns), at.narrow, colours, "half the interval's width")


def _key(figure: style.Sheet, grid: Grid, at: Layout) -> None:
    """What the hatching means, at the foot of the page's left margin."""
    if all(map(stands_out, grid.rows)):
        return
    top = at.page[1] - 0.5
    axes = style.place(figure, 0.15, top, 0.24, 0.15, "key")
    axes.add_patch(Rectangle((0, 0), 1, 1, fill=False, edgecolor=style.FAINT, hatch=HATCHING, linewidth=0.6))
    axes.set_axis_off()
    style.write(figure, 0.45, top + 0.08, f"p ≥ {ALPHA:.2g}\n(max-T)", fontsize=7, va="center")


def _caption(grid: Grid, at: Layout) -> str:
    excluded = max((row.get("excluded") or 0) for row in grid.rows)
    intervals = "half its 95% interval's width at the right" if at.narrow else "its 95% interval beneath it"
    untested = sum(row.get("p_adjusted") is None for row in grid.rows)
    return " ".join(filter(None, [
        "Normalised logit difference after patching one site at one layer and position role:",
        "0 leaves the run as it was, 1 carries the whole effect of the other run.",
        *(SAID[direction] for direction in grid.directions),
        f"Each cell is the ratio of means over prompts, {intervals}; {sample(grid.rows)}.",
        f"Hatched cells do not stand out at {ALPHA:.0%} after correction over the whole map (max-T).",
        f"{untested} cells were not tested." if untested else "",
        f"Up to {excluded} prompts a cell were excluded." if excluded else "",
        f"Grey cells ({NOTHING}) have no estimate." if len(grid.means) < len(grid.rows) else "",
    ]))
