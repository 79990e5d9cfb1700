"""What the levels of generated prompts hold."""
from __future__ import annotations

import numpy as np
from matplotlib.ticker import MaxNLocator

from mamba_mi.report.figures import style
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import NOTHING

PANELS = {"facts": ("facts", style.SUBJECT), "words": ("words", style.SUFFICIENCY_INK)}
ROW = 0.52  # inches


def prompts_levels(tables: RunTables):
    """Facts and words of each prompt, a point a prompt, and how often each answer is right."""
    generation = tables.artifact("generation.json")
    levels, found = generation["levels"], tables.effects.to_pandas()
    figure = style.sheet(9.4, 1.35 + ROW * len(levels))
    style.heading(figure, 0.15, "What the prompts of each level hold", f"lexicon {generation['lexicon']} · seed {generation['seed']} · "
                  f"{sum(each['n'] for each in levels)} prompts")
    for number, (metric, (title, colour)) in enumerate(PANELS.items()):
        axes = style.place(figure, 1.95 + 2.6 * number, 0.85, 2.3, ROW * len(levels), metric)
        for y, each in enumerate(levels):
            _strip(axes, y, found[(found.task == each["level"]) & (found.metric == metric)].value.to_numpy(), colour)
        _finish(axes, levels, title, named=not number)
    axes = style.place(figure, 7.15, 0.85, 1.5, ROW * len(levels), "answers")
    for y, each in enumerate(levels):
        _answers(axes, y, each)
    _finish(axes, levels, "commonest answer, % of prompts", named=False)
    axes.set_xlim(0, None)
    return figure, ("A point is a prompt; equal ones stand on each other. Facts are those that are told. "
                    "Right: how often the commonest answer is the right one, and of how many different ones.")


def _strip(axes, y: int, values, colour: str) -> None:
    """Points in a row, spread upwards by their number within a value, so that equal ones show."""
    values = np.sort(values)
    first = np.searchsorted(values, values)
    rank = np.arange(len(values)) - first
    most = max(rank.max(), 1)
    axes.plot(values, y + 0.34 - 0.68 * rank / most, linestyle="", marker="o", markersize=1.8, color=colour, alpha=0.55, markeredgewidth=0)


def _answers(axes, y: int, each: dict) -> None:
    share = 100 * max(each["answers"].values()) / each["n"]
    axes.barh(y, share, height=0.5, color=style.LAST, alpha=0.5)
    axes.text(1.04, y, f"of {len(each['answers'])}" if each["answers"] else NOTHING, transform=axes.get_yaxis_transform(), va="center",
              fontsize=7.5, color=style.GREY)


def _finish(axes, levels, title: str, named: bool) -> None:
    axes.set_ylim(len(levels) - 0.5, -0.5)
    axes.set_yticks(range(len(levels)), [each["category"].replace(" Reasoning + ", "\nReasoning + ") for each in levels] if named else [])
    axes.set_title(title, loc="left", fontsize=8.5, pad=4)
    axes.set_xlim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=style.FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
