"""What a model can do: right answers by category, beside the same answers shuffled."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from mamba_mi.report.evaluate_words import ALL, KINDS, levels
from mamba_mi.report.figures import style
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import number

METRICS = {"first_token": ("first token", style.SUBJECT, "o"), "exact_match": ("whole answer, exactly", style.SUFFICIENCY_INK, "D"),
           "f1": ("words in common (F1)", style.LAST, "s")}
ROW, WIDTH, APART = 0.42, 4.2, 0.24  # inches a category and the axes are wide; how far apart its dots are, of a row
LONGEST, MOST = 44, 40  # characters of a category's name; categories of a panel


def capability_profile(tables: RunTables):
    """A panel for custom prompts and one for the data set's; a row a category, with every metric's dot and interval."""
    found = {metric: levels(tables.rows(metric), metric) for metric in METRICS}
    kinds = {kind: names for kind in KINDS if (names := _shown(found["exact_match"], kind))}
    left = 0.35 + 0.066 * max(len(_short(name)) for names in kinds.values() for name in names)
    figure = style.sheet(left + WIDTH + 1.25, 0.85 + sum(0.75 + ROW * len(names) for names in kinds.values()))
    style.heading(figure, 0.15, "Capability profile", tables.config["model"]["name"])
    top = 1.05
    for kind, names in kinds.items():
        axes = style.place(figure, left, top, WIDTH, ROW * len(names), kind)
        _panel(axes, names, {metric: [rows[kind, name] for name in names] for metric, rows in found.items()})
        axes.set_title(f"{KINDS[kind]}, n = {found['exact_match'][kind, ALL]['n']}", loc="left", fontsize=9, pad=5)
        top += 0.75 + ROW * len(names)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper left", ncols=4, bbox_to_anchor=(0.15 / figure.get_figwidth(), 1 - 0.5 / figure.get_figheight()),
                  handletextpad=0.3, columnspacing=1.2)
    return figure, ("Share of answers that are right, by category. Lines are 95% intervals: Wilson's of first tokens and whole answers, a "
                    "bootstrap over clusters of F1. Grey: the same answers held against other prompts' right answers, the middle 95% of "
                    "random orders (whole answer); a dot beyond it is more than one word said to everything."
                    f"{_rest(found['exact_match'], kinds)}")


def _shown(rows: Mapping[tuple[str, str], Mapping], kind: str) -> list[str]:
    """All categories, or of very many those with the most prompts; in the order of the rows."""
    names = [name for of, name in rows if of == kind]
    largest = sorted(names, key=lambda name: -rows[kind, name]["n"])[:MOST + 1]  # the whole is the first of them
    return [name for name in names if name in largest]


def _rest(rows: Mapping, kinds: Mapping[str, list[str]]) -> str:
    left = len([key for key in rows if key[1] not in kinds[key[0]]])
    return f" {left} categories with fewer prompts are in summary.json alone." if left else ""


def _panel(axes: Axes, names: list[str], found: Mapping[str, list[Mapping]]) -> None:
    height = np.arange(len(names), dtype=float)
    _shuffled(axes, height, found["exact_match"])
    for (metric, (label, colour, marker)), shift in zip(METRICS.items(), (-APART, 0.0, APART), strict=True):
        axes.plot([row["mean"] for row in found[metric]], height + shift, marker, color=colour, markersize=4.5, label=label, clip_on=False,
                  zorder=3)
        for y, row in zip(height + shift, found[metric], strict=True):
            low, high = row.get("wilson_low", row["ci_low"]), row.get("wilson_high", row["ci_high"])
            if low is not None:
                axes.plot([low, high], [y, y], color=colour, linewidth=1.2, clip_on=False)
    for y, row in zip(height, found["exact_match"], strict=True):
        axes.text(1.05, y, number(row["mean"]), va="center", fontsize=8, weight="bold", color=style.SUFFICIENCY_INK)
        axes.text(1.15, y, f"n = {row['n']}", va="center", fontsize=7.5, color=style.GREY)
    axes.set_yticks(height, map(_short, names))
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5))
    axes.axhline(0.5, color=style.FAINT, linewidth=0.8)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=style.FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _shuffled(axes: Axes, height: np.ndarray, rows: list[Mapping]) -> None:
    known = [(y, row) for y, row in zip(height, rows, strict=True) if row.get("control_mean") is not None]
    label = "shuffled answers"
    for y, row in known:
        axes.barh(y, max(row["control_high"] - row["control_low"], 0.004), left=row["control_low"], height=0.8, color=style.FAINT, label=label)
        axes.plot([row["control_mean"]] * 2, [y - 0.4, y + 0.4], color=style.GREY, linewidth=1.0)
        label = None


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[:LONGEST - 1]}…"
