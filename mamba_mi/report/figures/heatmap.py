"""One panel of a patching map: colours, the numbers in the cells, hatching where nothing stands out.

Shape legend: R roles, Y layers.
"""
from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from mamba_mi.report.figures import style
from mamba_mi.report.figures.grid import Grid
from mamba_mi.report.words import ALPHA, interval, number, role, stands_out

HATCHING = "////"
CORNERS = ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))
SQUARE = (Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY)


def heatmap(axes: Axes, grid: Grid, direction: str, site: str, limit: float, interval_points: float) -> None:
    """The means as colours; as text too, with their intervals in type of that size, unless it is 0."""
    mean_RY = grid.numbers_RY(direction, site, "mean")
    colours, norm = style.MAPS[direction], Normalize(-limit, limit, clip=True)
    edges = {"edgecolors": "white", "linewidth": 0.8} if interval_points else {}
    axes.pcolormesh(np.ma.masked_invalid(mean_RY), cmap=colours, norm=norm, **edges)
    axes.set_facecolor(style.FAINT)
    hatch(axes, grid.numbers_RY(direction, site, "p_adjusted"))
    if not interval_points:
        return
    for (r, y), mean in np.ndenumerate(mean_RY):
        row = grid.row(direction, site, grid.roles[r], grid.layers[site][y])
        if row is None:
            continue
        ink = style.ink_on(colours(norm(mean))) if np.isfinite(mean) else style.INK
        if not stands_out(row) and not abs(mean) > limit / 3:  # on a darker cell grey would not be read
            ink = style.GREY
        _cell_text(axes, row, y + 0.5, r + 0.5, ink, interval_points)


def hatch(axes: Axes, p_RY: np.ndarray) -> None:
    """Hatching over the cells that do not stand out."""
    cells = np.argwhere(p_RY >= ALPHA)
    if not len(cells):
        return
    # one path for all cells, and add_artist: a patch a cell, or add_patch, takes seconds on a deep model
    path = Path([(y + dy, r + dr) for r, y in cells for dy, dr in CORNERS], SQUARE * len(cells))
    axes.add_artist(PathPatch(path, facecolor="none", linewidth=0, hatch=HATCHING))


def _cell_text(axes: Axes, row: dict, x: float, y: float, ink: str, interval_points: float) -> None:
    between = interval(row["ci_low"], row["ci_high"]).replace(" ", "")
    common = {"ha": "center", "va": "center", "color": ink}
    axes.text(x, y - (0.17 if between else 0), number(row["mean"]), fontsize=7.5, **common)
    if between:
        axes.text(x, y + 0.22, between, fontsize=interval_points, **common)


def label(axes: Axes, grid: Grid, site: str, roles: bool, layer: bool) -> None:
    """Layers along the bottom; the roles' names, and the word `layer`, only where asked for."""
    layers = grid.layers[site]
    axes.set(xlim=(0, len(layers)), ylim=(len(grid.roles), 0))
    for spine in axes.spines.values():
        spine.set_visible(False)
    every = 1 if len(layers) <= 16 else 8
    ticks = [y for y, number_of_layer in enumerate(layers) if number_of_layer % every == 0]
    axes.set_xticks([y + 0.5 for y in ticks], [str(layers[y]) for y in ticks])
    axes.set_yticks(np.arange(len(grid.roles)) + 0.5, [role(r) for r in grid.roles] if roles else [])
    axes.tick_params(length=0, pad=3)
    if layer:
        axes.set_xlabel("layer", labelpad=2)
