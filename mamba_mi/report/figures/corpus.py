"""A training on running text: its loss beside a unigram model's, and the perplexity of each source."""
from __future__ import annotations

import numpy as np
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

from mamba_mi.report.corpus_words import ALL
from mamba_mi.report.figures import style
from mamba_mi.report.figures.training import line
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import number, span

PANELS = {"lr": ("learning rate", 0.65), "tokens_per_second": ("tokens a second", 2.9), "utilisation": ("share of a matrix product's rate", 5.15)}


def corpus_curve(tables: RunTables):
    """Loss, validation and the unigram's level; rate, speed and utilisation, from training_curve.json and training_info.json."""
    points, info = tables.artifact("training_curve.json"), tables.artifact("training_info.json")
    figure = style.sheet(7.2, 4.95)
    style.heading(figure, 0.15, "Training", f"{tables.config['model']['name']} · {points[-1]['step']} steps · {info['tokens']:,} tokens")
    steps = np.array([point["step"] for point in points])
    axes = style.place(figure, 0.65, 0.85, 4.9, 2.1, "loss")
    line(axes, steps, np.array([point["loss"] for point in points]), smooth=True)
    seen = [(point["step"], point["validation"]) for point in points if "validation" in point]
    axes.plot(*zip(*seen), "o", color=style.LAST, markersize=3.5, clip_on=False, zorder=3)
    level = info["unigram"]["nats_per_token"]
    axes.axhline(level, color=style.RELATION, linewidth=1.0, linestyle=(0, (4, 2)))
    axes.set_title("loss (nats a token)", loc="left", fontsize=8.5, pad=4)
    axes.set(xlim=(0, steps[-1]), ylim=(0, None), xlabel="step")
    top = 1.0
    for colour, text in ((style.SUFFICIENCY_INK, f"training, last {number(points[-1]['loss'])}"),
                         (style.LAST, f"validation, last {number(seen[-1][1])}"), (style.RELATION, f"unigram on validation, {number(level)}")):
        style.write(figure, 5.7, top, text, color=colour, fontsize=7.5)
        top += 0.2
    for key, (title, left) in PANELS.items():
        axes = style.place(figure, left, 3.65, 1.8, 0.8, key)
        line(axes, steps, np.array([point[key] for point in points]), smooth=key != "lr")
        axes.set_title(title, loc="left", fontsize=8, pad=4)
        axes.set(xlim=(0, steps[-1]), ylim=(0, None), xlabel="step")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10], integer=True))
    return figure, (f"The training loss of each step (pale: each; dark: the running median), the loss on {info['validation']['documents']} validation "
                    f"documents, and what a unigram model of the same training text reaches on these. The rate of a matrix product was "
                    f"measured on the spot: {info['speed']['measured_peak'] / 1e9:,.0f} GFLOP/s.")


def corpus_perplexity(tables: RunTables):
    """The model's and the unigram's perplexity by source, with intervals over documents, on a logarithmic axis."""
    model, unigram = ({row["conditions"]["source"]: row for row in tables.rows(metric)} for metric in ("perplexity", "unigram_perplexity"))
    order = sorted(model, key=lambda source: (source != ALL, model[source]["mean"]))
    left = 0.35 + 0.075 * max(map(len, order))
    figure = style.sheet(left + 6.2, 1.45 + 0.3 * len(order))
    style.heading(figure, 0.15, "Perplexity on documents never read", f"{tables.config['model']['name']} · n = "
                  f"{span([row['n'] for row in model.values()])} documents")
    axes = style.place(figure, left, 0.85, 3.4, 0.3 * len(order), "perplexity")
    for y, source in enumerate(order):
        for row, colour, marker in ((unigram[source], style.RELATION, "|"), (model[source], style.SUBJECT, "o")):
            if row["ci_low"] is not None:
                axes.plot([row["ci_low"], row["ci_high"]], [y, y], color=colour, linewidth=2.0, alpha=0.5)
            axes.plot(row["mean"], y, marker, color=colour, markersize=5 if marker == "o" else 9)
        said = model[source]
        axes.text(1.03, y, number(said["mean"]), transform=axes.get_yaxis_transform(), va="center", fontsize=8, weight="bold")
        ends = "" if said["ci_low"] is None else f"[{number(said['ci_low'])}, {number(said['ci_high'])}]"
        axes.text(1.2, y, f"{ends}  n = {said['n']}, {said['tokens']:,} tokens", transform=axes.get_yaxis_transform(), va="center",
                  fontsize=7.5, color=style.GREY)
    axes.set_yticks(range(len(order)), order, parse_math=False)  # a source may be called $, too
    axes.set(xscale="log", ylim=(len(order) - 0.5, -0.5), xlabel="perplexity (a green dot: the model; a violet stroke: unigram)")
    axes.xaxis.set_major_locator(_ticks(model, unigram))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=style.FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, ("Perplexity by source: the exponential of nats a token, all tokens of a source together; lines are 95% intervals over documents. "
                    "The unigram model knows how often each token was in the training text, and no more.")


def _ticks(*levels):
    from matplotlib.ticker import FixedLocator

    found = [row[key] or row["mean"] for rows in levels for row in rows.values() for key in ("ci_low", "mean", "ci_high")]
    low, high = min(found), max(found)
    nice = [m * 10**e for e in range(7) for m in (1, 2, 5)]
    return FixedLocator([x for x in nice if low * 0.6 <= x <= high * 1.7])
