"""How the effect moves with depth: a curve a position role with its band; sufficiency beside necessity."""
from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.ticker import MaxNLocator

from mamba_mi.config import UserError
from mamba_mi.report.figures import style
from mamba_mi.report.figures.grid import Grid, read_grid, title_parts
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import DIRECTIONS, role, sample, site, span

COLOURS = {
    "last": style.LAST, "subject": style.SUBJECT, "between": style.RELATION, "relation": style.RELATION,
}
EFFECT = {"denoising": "effect restored", "noising": "effect destroyed"}
LEFT, TOP, WIDE, HIGH, GAP, LEGEND = 0.65, 1.0, 3.6, 2.5, 0.65, 2.05  # inches
SMALL_HIGH, SMALL_GAP, SITE_GAP, PITCH = 1.3, 0.15, 0.45, 1.95


def patching_curves(tables: RunTables):
    """The figure and its caption: the first site large, the others as small multiples, two sites a row."""
    grid = read_grid(tables)
    roles = [r for r in grid.roles if r in COLOURS or _is_token(r)]
    if not roles:
        raise UserError(f"patching_curves needs a role of {', '.join(COLOURS)} or subject_1, …; "
                        f"summary.json has {', '.join(grid.roles)}")
    main, *others = grid.sites
    width = LEFT + len(grid.directions) * (WIDE + GAP) - GAP + LEGEND
    height = TOP + HIGH + 0.55 + (0.15 + PITCH * -(-len(others) // 2) if others else 0)
    figure = style.sheet(width, height)
    style.heading(figure, 0.15, "Activation patching over layers", title_parts(tables, grid.rows))
    for column, direction in enumerate(grid.directions):
        left, ink = LEFT + column * (WIDE + GAP), style.DIRECTION_INK[direction]
        style.write(figure, left, 0.68, DIRECTIONS[direction], fontsize=10, weight="bold", color=ink)
        style.write(figure, left + WIDE, 0.71, site(main), fontsize=8, color=style.GREY, ha="right")
        axes = style.place(figure, left, TOP, WIDE, HIGH, f"{direction} {main}")
        _curves(axes, grid, direction, main, roles)
        axes.set(xlabel="layer", ylabel=EFFECT[direction])
    _names(figure, width - LEGEND + 0.2, grid, roles)
    for index, name in enumerate(others):
        _small(figure, grid, name, roles, column=index % 2, top=TOP + HIGH + 0.85 + PITCH * (index // 2))
    return figure, _caption(grid, roles)


def _is_token(name: str) -> bool:
    return name.startswith("subject_") and name[8:].isdigit()


def _colour(name: str, roles: list[str]) -> str:
    """Subject tokens are tints of the subject's green, the later the darker."""
    if name in COLOURS:
        return COLOURS[name]
    tokens = [r for r in roles if _is_token(r)]
    strength = 0.25 + 0.6 * (tokens.index(name) + 1) / len(tokens)
    return to_hex(1 - strength * (1 - np.array(to_rgb(style.SUBJECT))))


def _heights(grid: Grid, roles: list[str]) -> tuple[float, float]:
    """One y axis for every panel, so that heights compare; always with 0 and 1, the effect's two ends."""
    found = [row[key] for row in grid.rows if row["conditions"]["role"] in roles
             for key in ("mean", "ci_low", "ci_high") if row[key] is not None]
    return max(-1.0, min([0.0, *found])) - 0.05, min(2.0, max([1.0, *found])) + 0.05


def _curves(axes: Axes, grid: Grid, direction: str, name: str, roles: list[str]) -> None:
    layers = grid.layers[name]
    for level in (0, 1):
        axes.axhline(level, color=style.FAINT, linewidth=0.8, zorder=0)
    numbers = [grid.numbers_RY(direction, name, key) for key in ("mean", "ci_low", "ci_high")]
    faint = 0.12 if sum(map(_is_token, roles)) <= 3 else 0.06
    for r in roles:
        mean, low, high = (each_RY[grid.roles.index(r)] for each_RY in numbers)
        colour, token = _colour(r, roles), _is_token(r)
        axes.fill_between(layers, low, high, color=colour, alpha=faint if token else 0.2, linewidth=0)
        axes.plot(layers, mean, color=colour, linewidth=1.0 if token else 1.8, zorder=2 if token else 3,
                  marker="o" if len(layers) <= 12 else None, markersize=2.2 if token else 3.2, label=r)
    margin = 0.02 * len(layers)
    axes.set(ylim=_heights(grid, roles), xlim=(layers[0] - margin, layers[-1] + margin))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 4, 8, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))


def _names(figure: style.Sheet, left: float, grid: Grid, roles: list[str]) -> None:
    """The legend, beside the curves; with n for each role where they differ."""
    totals = {r: {row["n"] for row in grid.rows if row["conditions"]["role"] == r} for r in roles}
    differ = len(set.union(*totals.values())) > 1
    for index, r in enumerate(roles):
        y = TOP + 0.1 + 0.2 * index
        axes = style.place(figure, left, y - 0.06, 0.22, 0.12, f"key {r}")
        axes.plot([0, 1], [0, 0], color=_colour(r, roles), linewidth=1.2 if _is_token(r) else 2.2)
        axes.set_axis_off()
        style.write(figure, left + 0.3, y, role(r), fontsize=7.5, va="center")
        if differ:
            n = f"n = {span(totals[r])}"
            style.write(figure, left + 1.75, y, n, fontsize=7, va="center", ha="right", color=style.GREY)


def _small(figure: style.Sheet, grid: Grid, name: str, roles: list[str], column: int, top: float) -> None:
    room = figure.get_size_inches()[0] - LEFT - 0.25 - SITE_GAP - 2 * SMALL_GAP
    for index, direction in enumerate(grid.directions):
        wide = room / 2 / len(grid.directions)
        left = LEFT + column * (room / 2 + SMALL_GAP + SITE_GAP) + index * (wide + SMALL_GAP)
        axes = style.place(figure, left, top, wide, SMALL_HIGH, f"{direction} {name}")
        _curves(axes, grid, direction, name, roles)
        axes.set_xlabel("layer")
        ink = style.DIRECTION_INK[direction]
        if len(grid.directions) > 1:  # alone it stands over the large panel
            axes.set_title(DIRECTIONS[direction].lower(), fontsize=8, loc="right", color=ink, pad=3)
        if index:
            axes.set_yticklabels([])
        else:
            axes.set_title(site(name), fontsize=8.5, loc="left", fontweight="bold", pad=3)


def _caption(grid: Grid, roles: list[str]) -> str:
    main, *others = map(site, grid.sites)
    shown = f"the {main} (large) and the {', the '.join(others)} (small)" if others else f"the {main}"
    return (f"Normalised logit difference by layer for {shown}. One curve a position role "
            f"({', '.join(map(role, roles))}); bands are 95% intervals, lines mark 0 (no effect) and 1 "
            f"(the whole effect); {sample(grid.rows)}.")
