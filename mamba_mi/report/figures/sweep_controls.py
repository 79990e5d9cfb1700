"""Observed effects beside the random draws they must beat: a strip of dots for each family of draws."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mamba_mi.report.figures import style
from mamba_mi.report.words import NAMES, metric, number, p_value

FAMILY_INK = {"isotropic": style.GREY, "covariance": style.RELATION, "rescaled": style.SUBJECT, "orthogonal": style.HATCH}
LEFT, TOP, WIDE, PITCH, GAP, ROW_GAP, LINE = 1.05, 0.85, 3.5, 0.3, 1.15, 0.75, 0.14  # inches
NARROWEST, PANELS = 7.0, 8
GOLDEN = 0.6180339887


def sweep_controls(rows: Sequence[Mapping], null: Sequence[Mapping], subtitle: str):
    """The figure and its caption; `rows` are the observed ones to show, `null` the spread of the draws by cell."""
    cells = list(dict.fromkeys(_cell(row) for row in rows))[:PANELS]
    families = [name for name in FAMILY_INK if any(each["family"] == name for each in null)]
    high = PITCH * max(1, len(families))
    lines = -(-len(cells) // 2)
    columns, observed = min(2, len(cells)), max(sum(_cell(row) == cell for row in rows) for cell in cells)
    pitch = high + ROW_GAP + LINE * observed
    figure = style.sheet(max(NARROWEST, LEFT + columns * (WIDE + GAP) - GAP + 0.25), TOP + lines * pitch)
    style.heading(figure, 0.15, "Observed effects beside random subspaces", subtitle)
    limits = _limits(rows, null, cells)
    for index, cell in enumerate(cells):
        left, top = LEFT + index % 2 * (WIDE + GAP), TOP + 0.1 + LINE * observed + index // 2 * pitch
        axes = style.place(figure, left, top, WIDE, high, f"cell {index}")
        axes.set_title(_said(cell), fontsize=8, loc="left", pad=4 + 72 * LINE * observed)
        _strips(axes, families, [each for each in null if _cell(each) == cell])
        _observed(axes, [row for row in rows if _cell(row) == cell], limits)
        axes.set(xlim=limits, ylim=(len(families) - 0.5, -0.5))
        axes.set_yticks(range(len(families)), families)
        axes.tick_params(axis="y", length=0)
    draws = max((each["draws"] for each in null), default=0)
    return figure, (f"{metric(rows[0]['metric']).capitalize()} of the fitted subspace (line) and of up to {draws} random ones of its "
                    "rank a family (dots), the cells with the largest observed effects. p counts the isotropic draws whose effect is "
                    "at least as large in size. Orthogonal draws lie in the complement of the fitted subspace and are shown only.")


def _cell(row: Mapping) -> tuple:
    """What an observed effect and its draws have in common, in whatever order they list it."""
    return tuple(sorted((key, value) for key, value in row["conditions"].items() if key not in ("subspace", "draw")))


def _said(cell: tuple) -> str:
    known = [NAMES[key](value) for key, value in cell if key in NAMES and value is not None]
    return ", ".join([*known, *(f"{key.replace('_', ' ')} {value}" for key, value in cell
                                if key not in NAMES and value is not None)])


def _limits(rows, null, cells) -> tuple[float, float]:
    found = [0.0, *(row["mean"] for row in rows if _cell(row) in cells),
             *(x for each in null if _cell(each) in cells for x in each["effects"])]
    room = 0.05 * (max(found) - min(found) or 1.0)
    return min(found) - room, max(found) + room


def _strips(axes, families: list[str], null) -> None:
    axes.axvline(0, color=style.FAINT, linewidth=0.8, zorder=0)
    for each in null:
        y, effects = families.index(each["family"]), each["effects"]
        spread = (np.arange(len(effects)) * GOLDEN % 1 - 0.5) * 0.55  # even, and the same every time
        axes.plot(effects, y + spread, ".", color=FAMILY_INK[each["family"]], markersize=3, alpha=0.7)
        axes.plot([each["low"], each["high"]], [y, y], color=style.INK, linewidth=0.8, alpha=0.5)


def _observed(axes, rows, limits) -> None:
    for line, row in enumerate(rows):
        right = row["mean"] > sum(limits) / 2
        axes.axvline(row["mean"], color=style.LAST, linewidth=1.6)
        said = f"{row['conditions'].get('subspace') or 'observed'} {number(row['mean'])}, p {_equals(row)}"
        axes.annotate(said, (row["mean"], 1), xycoords=("data", "axes fraction"), xytext=(0, 2 + 72 * LINE * line), fontsize=7,
                      textcoords="offset points", ha="right" if right else "left", color=style.LAST)


def _equals(row: Mapping) -> str:
    text = p_value(row.get("control_p"))
    return text if text.startswith("<") else f"= {text}"
