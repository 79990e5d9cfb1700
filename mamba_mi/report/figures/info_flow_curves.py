"""The curves of an information flow: how each source is drawn, and one panel of curves over windows."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from mamba_mi.config import UserError
from mamba_mi.report.figures import style
from mamba_mi.report.knockout_words import ALL, POLICIES, values
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import RELATIVE, span

FEW = 8  # window starts that all have a tick
AXES = ("query", "source", "conv", "span", "timescale", "window_start", "window_size", "split")


class Look(NamedTuple):
    """How a curve is drawn."""

    colour: str
    dashes: str | tuple
    width: float


LOOKS = {  # the field's: last orange dotted, subject green solid, relation purple dashed
    "last": Look(style.LAST, ":", 2.2), "second_to_last": Look("#b98b00", (0, (1, 1.2)), 1.2),
    "first": Look(style.SUFFICIENCY_INK, "-.", 1.2), "subject": Look(style.SUBJECT, "-", 2.0),
    "relation": Look(style.RELATION, "--", 2.0), "relation_without_last": Look("#b79ad6", (0, (4, 1.5)), 1.2),
    "context": Look("#2a9aa8", (0, (6, 1.5, 1, 1.5)), 1.2), "bos": Look(style.INK, (0, (1, 2)), 1.0),
    "random": Look(style.GREY, "-", 1.0), "beyond_conv": Look(style.GREY, (0, (3, 2)), 1.0),
}
SPANS = ("#98235f", "#1b7f4b", "#1c5a99", "#7a5c2e", "#2a9aa8")  # of a data set's own spans, in their order


def read_curves(tables: RunTables, metric: str = RELATIVE) -> list[dict]:
    """The rows of a metric; one without the conditions of an information flow raises."""
    rows = tables.rows(metric)
    for row in rows:
        if missing := [key for key in AXES if key not in row["conditions"]]:
            raise UserError(f"an information flow's figure needs rows with {', '.join(AXES)}; one has no {', '.join(missing)}: "
                            f"{row['conditions']}")
    return rows


def sources(rows: Sequence[Mapping]) -> list[str]:
    """Those that are drawn: the field's order, then a data set's spans; `none` is the line at no change."""
    found = values(rows, "source")
    return [name for name in LOOKS if name in found] + [n for n in found if n not in LOOKS and n != "none"]


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each; a span has a colour, and the slot after it the same one dashed."""
    stems = list(dict.fromkeys(name.partition("+")[0] for name in names if name not in LOOKS))
    own = {name: Look(SPANS[stems.index(name.partition("+")[0]) % len(SPANS)], "--" if "+" in name else "-", 1.8)
           for name in names if name not in LOOKS}
    return {name: LOOKS.get(name) or own[name] for name in names}


def of(rows: Sequence[Mapping], **wanted) -> list[Mapping]:
    """The rows under these conditions, by window start."""
    return sorted((row for row in rows if wanted.items() <= row["conditions"].items()),
                  key=lambda row: row["conditions"]["window_start"])


def main(rows: Sequence[Mapping]) -> dict:
    """The published policy, or the first there is, of all prompts and whole layers."""
    found = {(row["conditions"]["conv"], row["conditions"]["span"]) for row in rows}
    conv, wide = next(each for each in POLICIES if each in found)
    timescales = values(rows, "timescale")
    return {"conv": conv, "span": wide, "split": ALL, "timescale": ALL if ALL in timescales else timescales[0]}


def curve(axes: Axes, rows: Sequence[Mapping], look: Look, *, scale: float = 1.0, shift: float = 0.0, band: bool = True) -> None:
    """One source over window starts; with its interval as a band."""
    starts = [row["conditions"]["window_start"] for row in rows]
    mean, low, high = (np.array([row[key] if row[key] is not None else np.nan for row in rows]) * scale + shift
                       for key in ("mean", "ci_low", "ci_high"))
    if band:
        axes.fill_between(starts, low, high, color=look.colour, alpha=0.13, linewidth=0)
    axes.plot(starts, mean, color=look.colour, linestyle=look.dashes, linewidth=look.width, zorder=2 + look.width / 10,
              marker="o" if len(starts) <= 8 else None, markersize=2.6)


def dress(axes: Axes, rows: Sequence[Mapping], level: float) -> None:
    """The line at no change, the x axis over all window starts."""
    starts = values(rows, "window_start")
    axes.axhline(level, color=style.FAINT, linewidth=0.9, zorder=0)
    margin = max(0.15, 0.02 * len(starts))
    axes.set_xlim(min(starts) - margin, max(starts) + margin)
    every = MaxNLocator(integer=True, nbins=8, steps=[1, 2, 4, 5, 8, 10])
    axes.xaxis.set_major_locator(FixedLocator(starts) if len(starts) <= FEW else every)  # where some layers mix no tokens: at those that do
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))


def heights(rows: Sequence[Mapping], *, floor: float = -100.0) -> tuple[float, float]:
    """One y axis for every panel of changes in %: from −100 or less, with what a band reaches above 0 up to 100."""
    ends = [row[key] for row in rows for key in ("mean", "ci_low", "ci_high") if row[key] is not None]
    top = min(100.0, max([0.0, *ends]))
    return floor - 4, top + max(4.0, 0.05 * (top - floor))


def key(figure: style.Sheet, left: float, top: float, named: Mapping[str, Look], rows: Sequence[Mapping], say) -> None:
    """The legend, beside the curves; with n where it differs between sources."""
    totals = {name: [row["n"] for row in rows if row["conditions"]["source"] == name] for name in named}
    differ = len({n for found in totals.values() for n in found}) > 1
    for index, (name, look) in enumerate(named.items()):
        y = top + 0.2 * index
        axes = style.place(figure, left, y - 0.06, 0.3, 0.12, f"key {name}")
        axes.plot([0, 1], [0, 0], color=look.colour, linestyle=look.dashes, linewidth=look.width)
        axes.set_axis_off()
        n = f"  (n = {span(totals[name])})" if differ and totals[name] else ""
        style.write(figure, left + 0.38, y, f"{say(name)}{n}", fontsize=7.5, va="center")
