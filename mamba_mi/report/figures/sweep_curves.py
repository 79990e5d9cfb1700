"""The groups of a sweep over layers, one colour a group, each seed a dot; and the difference of two groups.

A panel is one direction (columns) and one of what else tells cells apart, such as the position role (rows).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mamba_mi.report.figures import style
from mamba_mi.report.figures.grid import ROLE_ORDER
from mamba_mi.report.words import NAMES, metric, number

COLOURS = (style.SUFFICIENCY_INK, style.LAST, style.SUBJECT, style.NECESSITY_INK, style.RELATION, style.GREY)
LEFT, TOP, WIDE, HIGH, GAP, ROW_GAP, RIGHT = 0.7, 1.0, 3.6, 1.55, 0.5, 0.42, 2.2  # inches
TOO_MANY = 40  # cells of a list
Rows = Sequence[Mapping]


def has_layers(rows: Rows) -> bool:
    return len({row["conditions"].get("layer") for row in rows}) > 1


def sweep_curves(groups: Mapping[str, Rows], subtitle: str, title: str = "Over layers, all seeds together"):
    """The figure and its caption: headline rows by group, drawn over layers."""
    every = sorted((row for rows in groups.values() for row in rows), key=_rank)
    columns, lines = _values(every, _column), _values(every, _line)
    height = TOP + len(lines) * (HIGH + ROW_GAP) + 0.35
    figure = style.sheet(LEFT + len(columns) * (WIDE + GAP) - GAP + RIGHT, height)
    style.heading(figure, 0.15, title, subtitle)
    scale = _scale_of(groups)
    limits = _limits(every)
    for x, column in enumerate(columns):
        left = LEFT + x * (WIDE + GAP)
        style.write(figure, left, 0.7, column.capitalize(), fontsize=10, weight="bold")
        for y, line in enumerate(lines):
            axes = style.place(figure, left, TOP + 0.1 + y * (HIGH + ROW_GAP), WIDE, HIGH, f"{column} {line}")
            axes.set_title(line, fontsize=8.5, loc="left", pad=3)
            for index, rows in enumerate(groups.values()):
                own = [row for row in rows if (_column(row), _line(row)) == (column, line)]
                _curve(axes, own, COLOURS[index % len(COLOURS)], scale[index])
            _dress(axes, limits, relative=any(scale))
            axes.set_xlabel(("depth (layer ÷ last layer)" if any(scale) else "layer") if y == len(lines) - 1 else "")
    _names(figure, list(groups))
    return figure, _caption(every, list(groups), any(scale))


def sweep_list(groups: Mapping[str, Rows], subtitle: str):
    """The same for cells without layers: one line a cell, the largest effects first."""
    cells = _values([row for rows in groups.values() for row in rows], _whole)[:TOO_MANY]
    left, pitch = 0.4 + 0.075 * max(map(len, cells)), 0.16 + 0.14 * len(groups)
    figure = style.sheet(left + 4.4 + RIGHT, 1.3 + pitch * len(cells))
    style.heading(figure, 0.15, "All runs together", subtitle)
    axes = style.place(figure, left, 0.75, 4.4, pitch * len(cells), "cells")
    axes.axvline(0, color=style.FAINT, linewidth=0.8, zorder=0)
    for index, rows in enumerate(groups.values()):
        colour, shift = COLOURS[index % len(COLOURS)], (index - (len(groups) - 1) / 2) * 0.8 / max(1, len(groups))
        for row in (row for row in rows if row["mean"] is not None and _whole(row) in cells):
            y = cells.index(_whole(row)) + shift
            axes.plot(_ends(row), [y, y], color=colour, linewidth=1.6)
            axes.plot([row["mean"]], [y], "o", color=colour, markersize=4)
            axes.plot(_seeds(row), [y] * len(_seeds(row)), "|", color=colour, markersize=6, alpha=0.6)
    axes.set_yticks(range(len(cells)), cells)
    axes.set(ylim=(len(cells) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    _names(figure, list(groups))
    return figure, _caption([row for rows in groups.values() for row in rows], list(groups), False)


def _rank(row: Mapping) -> int:
    """Roles in the order of the prompt; sorting is stable, so what has none stays where it is."""
    role = row["conditions"].get("role")
    return ROLE_ORDER.index(role) if role in ROLE_ORDER else len(ROLE_ORDER)


def _column(row: Mapping) -> str:
    return NAMES["direction"](row["conditions"].get("direction") or metric(row["metric"]))


def _line(row: Mapping) -> str:
    """What tells cells apart besides direction and layer."""
    return _words(row, ("direction", "layer"))


def _whole(row: Mapping) -> str:
    return _words(row, ())


def _words(row: Mapping, besides: Sequence[str]) -> str:
    kept = {key: value for key, value in row["conditions"].items() if key not in besides and value is not None}
    plain = [str(value) if key == "task" else f"{key} {value}" for key, value in kept.items() if key not in NAMES]
    return ", ".join([*(NAMES[key](value) for key, value in kept.items() if key in NAMES),
                      *(text.replace("_", " ") for text in plain)])


def _values(rows: Rows, name) -> list[str]:
    return list(dict.fromkeys(name(row) for row in rows))


def _scale_of(groups: Mapping[str, Rows]) -> list[float]:
    """What each group's layers are divided by: nothing (0), unless the models differ in depth."""
    last = [max((row["conditions"]["layer"] for row in rows), default=0) for rows in groups.values()]
    return [0.0] * len(last) if len(set(last)) == 1 else [float(max(1, depth)) for depth in last]


def _limits(rows: Rows) -> tuple[float, float]:
    """One y axis for every panel, so that heights compare; with 0 in it, and 1 where effects come near it."""
    found = [x for row in rows for x in (row["mean"], *_ends(row), *_seeds(row)) if x is not None] or [0.0]
    low, high = max(-1.5, min([0.0, *found])), min(2.0, max([0.0, *found]))
    high = 1.0 if 0.6 < high < 1.0 else high
    room = 0.06 * (high - low or 1.0)
    return low - room, high + room


def _ends(row: Mapping) -> list[float]:
    return [] if row["ci_low"] is None else [row["ci_low"], row["ci_high"]]


def _seeds(row: Mapping) -> list[float]:
    found = [each["mean"] for each in row.get("seeds", []) if each["mean"] is not None]
    return found if len(found) > 1 else []


def _curve(axes: Axes, rows: Rows, colour: str, scale: float) -> None:
    rows = sorted((row for row in rows if row["mean"] is not None), key=lambda row: row["conditions"]["layer"])
    if not rows:
        return
    at = [row["conditions"]["layer"] / (scale or 1) for row in rows]
    low, high = ([row[key] if row[key] is not None else np.nan for row in rows] for key in ("ci_low", "ci_high"))
    axes.fill_between(at, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(at, [row["mean"] for row in rows], color=colour, marker="o" if len(rows) <= 12 else None, markersize=3)
    for x, row in zip(at, rows, strict=True):
        axes.plot([x] * len(_seeds(row)), _seeds(row), ".", color=colour, markersize=2.6, alpha=0.55)


def _dress(axes: Axes, limits: tuple[float, float], relative: bool) -> None:
    for level in (0, 1):
        axes.axhline(level, color=style.FAINT, linewidth=0.8, zorder=0)
    axes.set(ylim=limits)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
    if not relative:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 4, 8, 10]))


def _names(figure: style.Sheet, groups: list[str]) -> None:
    """The legend, beside the curves; a sweep over seeds alone needs none."""
    if groups == [""]:
        return
    left = figure.get_size_inches()[0] - RIGHT + 0.3
    for index, name in enumerate(groups):
        y = TOP + 0.15 + 0.22 * index
        axes = style.place(figure, left, y - 0.06, 0.22, 0.12, f"key {index}")
        axes.plot([0, 1], [0, 0], color=COLOURS[index % len(COLOURS)], linewidth=2.2)
        axes.set_axis_off()
        style.write(figure, left + 0.3, y, name, fontsize=7.5, va="center")


def _caption(rows: Rows, groups: list[str], relative: bool) -> str:
    seeds = max((row.get("n_seeds") or 1 for row in rows), default=1)
    n = [row["n"] for row in rows]
    dots = f" Small marks are the {seeds} seeds' own estimates." if seeds > 1 else ""
    deep = " The models differ in depth, so layers are divided by the last one." if relative else ""
    of = f", one colour each for {', '.join(groups)}" if len(groups) > 1 else ""
    spread = f"{min(n)}" if min(n) == max(n) else f"{number(min(n), 0)}–{number(max(n), 0)}"
    return (f"{metric(rows[0]['metric']).capitalize()}{of}: the estimate over all runs with its 95% interval.{dots}{deep} "
            f"n = {spread} prompts a cell, counted once a seed.")
