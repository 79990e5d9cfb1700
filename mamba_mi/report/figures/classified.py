"""Which set gave how many questions to which category. Shape legend: S sets, C categories."""
from __future__ import annotations

import numpy as np

from mamba_mi.report.classify_words import NAMES, SKIPPED, kept
from mamba_mi.report.figures import style
from mamba_mi.report.tables import RunTables

CELL, HEIGHT = 1.02, 0.5  # inches


def classified_questions(tables: RunTables):
    """Sets by categories, from artifacts/classified.json: questions kept, darker for more, of those found; what was skipped apart."""
    account = tables.artifact("classified.json")
    cells = {(each["dataset"], each["category"]): each for each in account["cells"]}
    sets = list(account["sources"])
    categories = list(kept(account))
    figure = style.sheet(1.75 + CELL * (len(categories) + 1), 1.55 + HEIGHT * (len(sets) + 1))
    read = sum(each["records"] for each in account["sources"].values())
    style.heading(figure, 0.15, "Questions in their categories",
                  f"kept of those found · up to {account['target']} a category · {read:,} records read")
    axes = style.place(figure, 1.4, 1.15, CELL * len(categories), HEIGHT * len(sets), "counts")
    _kept(axes, cells, sets, categories, account["target"])
    skipped = style.place(figure, 1.5 + CELL * len(categories), 1.15, CELL * 0.9, HEIGHT * len(sets), SKIPPED)
    for y, name in enumerate(sets):
        skipped.text(0.5, y, f"{cells[name, SKIPPED]['found']:,}", ha="center", va="center", color=style.GREY)
    skipped.set(xlim=(0, 1), ylim=(len(sets) - 0.5, -0.5), yticks=[])
    _headed(skipped, [0.5], [SKIPPED])
    return figure, ("Questions kept in each category, of those a rule put there, by data set; a dot where the set has no such questions. "
                    "The last row is the category's sum. Skipped records have no category; the report lists why.")


def _kept(axes, cells, sets, categories, target: int) -> None:
    kept_SC = np.array([[cells[name, each]["kept"] if (name, each) in cells else np.nan for each in categories] for name in sets])
    axes.imshow(kept_SC, cmap=style.SUFFICIENCY_MAP, vmin=-target, vmax=target, aspect="auto")
    for (y, x), count in np.ndenumerate(kept_SC):
        if np.isnan(count):
            axes.text(x, y, "·", ha="center", va="center", color=style.GREY)
            continue
        ink = style.ink_on(style.SUFFICIENCY_MAP((count + target) / (2 * target)))
        axes.text(x, y - 0.13, f"{int(count):,}", ha="center", va="center", weight="bold", color=ink)
        axes.text(x, y + 0.22, f"of {cells[sets[y], categories[x]]['found']:,}", ha="center", va="center", fontsize=6.5, color=ink)
    for x, total in enumerate(np.nansum(kept_SC, axis=0)):
        axes.text(x, len(sets) - 0.5 + 0.45, f"{int(total):,}", ha="center", va="center", weight="bold", clip_on=False)
    axes.text(-0.62, len(sets) - 0.5 + 0.45, "in all", ha="right", va="center", clip_on=False)
    axes.set_yticks(range(len(sets)), [NAMES[name] for name in sets])
    _headed(axes, range(len(categories)), [each.replace(" ", "\n", 1).replace(" + ", " +\n") for each in categories])


def _headed(axes, at, names) -> None:
    """Column heads above, no frame."""
    axes.set_xticks(at, names)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
