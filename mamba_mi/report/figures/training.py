"""How a model was trained and what it learnt."""
from __future__ import annotations

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mamba_mi.config import UserError
from mamba_mi.report.figures import style
from mamba_mi.report.figures.grid import title_parts
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import interval, number, sample

SMOOTHED_FROM = 60  # fewer points are read as they are
PANELS = {  # title, then inches: left, top, width, height
    "loss": ("loss (nats a token)", 0.65, 0.85, 6.3, 2.0),
    "lr": ("learning rate", 0.65, 3.35, 2.85, 1.0),
    "tokens_per_second": ("tokens a second", 4.1, 3.35, 2.85, 1.0),
}


def training_curve(tables: RunTables):
    """Loss, learning rate and speed over steps, from artifacts/training_curve.json."""
    points = tables.artifact("training_curve.json")
    if not points:
        raise UserError("artifacts/training_curve.json has no points; training writes one a logged step")
    figure = style.sheet(7.2, 4.85)
    name = (tables.config.get("model") or {}).get("name", "")
    length = f"{points[-1]['step']} steps"
    style.heading(figure, 0.15, "Training", f"{name} · {length}" if name else length)
    steps = np.array([point["step"] for point in points])
    for key, (title, *box) in PANELS.items():
        axes = style.place(figure, *box, key)
        values = np.array([point[key] for point in points], dtype=float)
        line(axes, steps, values, smooth=key != "lr")
        axes.set_title(title, loc="left", fontsize=8.5, pad=4)
        axes.set(xlim=(0, steps[-1]), ylim=(0, None), xlabel="step" if key != "loss" else "")
        large = key == "loss"
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5 if large else 3, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8 if large else 4, steps=[1, 2, 5, 10], integer=True))
    smoothed = " Pale: each logged step; dark: the running median." if len(points) >= SMOOTHED_FROM else ""
    return figure, f"Loss, learning rate and speed over {length} of training.{smoothed}"


def line(axes, steps, values, smooth: bool) -> None:
    """A curve; a long one that is to be smoothed pale, with its running median."""
    if not smooth or len(values) < SMOOTHED_FROM:
        axes.plot(steps, values, color=style.SUFFICIENCY_INK)
        return
    reach = [min(len(values) // 40, i, len(values) - 1 - i) for i in range(len(values))]  # never one-sided
    median = [np.median(values[i - r:i + r + 1]) for i, r in enumerate(reach)]
    axes.plot(steps, values, color=style.SUFFICIENCY_INK, alpha=0.3, linewidth=0.7)
    axes.plot(steps, median, color=style.SUFFICIENCY_INK)


def training_recall(tables: RunTables):
    """The share of right answers on each task, with its 95% interval."""
    rows = tables.rows("hit")
    if any("task" not in row["conditions"] for row in rows):
        raise UserError("training_recall needs the condition 'task' in every summary row with metric 'hit'")
    tasks = [row["conditions"]["task"].replace("_", " ") for row in rows]
    left = 0.35 + 0.075 * max(map(len, tasks))
    figure = style.sheet(left + 5.6, 1.25 + 0.3 * len(rows))
    style.heading(figure, 0.15, "What the model has learnt", title_parts(tables, rows))
    axes = style.place(figure, left, 0.7, 3.6, 0.3 * len(rows), "recall")
    heights = np.arange(len(rows))
    means = np.array([row["mean"] for row in rows], dtype=float)
    axes.barh(heights, means, height=0.62, color=style.SUBJECT, alpha=0.35)
    for y, row in zip(heights, rows, strict=True):
        low, high = row["ci_low"], row["ci_high"]
        if low is not None:
            axes.plot([low, high], [y, y], color=style.SUBJECT, linewidth=2.0, clip_on=False)
        axes.text(1.03, y, number(row["mean"]), va="center", fontsize=8, weight="bold")
        axes.text(1.13, y, interval(low, high), va="center", fontsize=7.5, color=style.GREY)
        axes.text(1.36, y, f"n = {row['n']}", va="center", fontsize=7.5, color=style.GREY)
    axes.set_yticks(heights, tasks)
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel="right answers (first choice)")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=style.FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, ("Share of prompts whose right answer is the model's first choice; "
                    f"lines are 95% intervals; {sample(rows)}.")
