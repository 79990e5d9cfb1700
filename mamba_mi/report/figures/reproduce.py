"""Ours beside published numbers: every number against its own, and knockouts as curves over window starts."""
from __future__ import annotations

import numpy as np
from matplotlib.ticker import MaxNLocator

from mamba_mi.report.figures import style
from mamba_mi.report.reproduce_words import KEPT
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import metric

OFF, AGREES = style.LAST, style.SUBJECT
NAMED = 6  # fewer points that are off are named
WIDE, HIGH, COLUMNS = 1.95, 1.25, 3


def reproduce_scatter(tables: RunTables):
    """A line of two panels a metric: ours against the published, and their difference in units of the tolerance."""
    compared = _compared(tables)
    points: dict[str, list] = {}
    for item in compared["items"]:
        rows = item["prompts"] or [{**{key: item[key] for key in ("published", "ours", "difference")}, "within": item["agree"] == item["of"],
                                    "prompt_id": f"mean of {item['n']:,}"}]
        points.setdefault(item["metric"] if item["prompts"] else "mean", []).extend(rows)
    points = {name: rows for name, rows in points.items() if name != "hit"} or points  # of hits there are four points
    figure = style.sheet(7.2, 0.95 + 3.15 * len(points))
    style.heading(figure, 0.15, "Ours against the published", _subtitle(tables))
    for line, (name, rows) in enumerate(points.items()):
        absolute, relative = compared["tolerance"][name]
        for row in rows:
            row["shares"] = row["difference"] / ((absolute + relative * abs(row["published"])) or 1.0)
        log = _decades(rows)
        left, right = (style.place(figure, at, 0.95 + 3.15 * line, 2.5, 2.5, f"{name} {at}") for at in (0.75, 4.4))
        _identity(left, rows, log)
        _shares(right, rows, log)
        left.set_title(metric(name), loc="left", fontsize=8.5, pad=4)
        right.set_title(f"{metric(name)}: difference", loc="left", fontsize=8.5, pad=4)
    counts = ", ".join(f"{metric(name)} {len(rows)}" for name, rows in points.items())
    return figure, (f"One point a published number ({counts}); green within the tolerance, orange not. Left: on the line the two are "
                    "equal. Right: ours less the published, in units of the tolerance; inside the band the two agree. Axes are "
                    "logarithmic where the published numbers cover more than two decades; so are differences outside the band.")


def _decades(rows: list[dict]) -> bool:
    both = [row[side] for row in rows for side in ("published", "ours")]
    return min(both) > 0 and max(both) / min(both) > 100


def _points(axes, rows: list[dict], key: str) -> None:
    for within, colour in ((True, AGREES), (False, OFF)):
        chosen = [row for row in rows if row["within"] == within]
        axes.scatter([row["published"] for row in chosen], [row[key] for row in chosen], s=14, color=colour, alpha=0.6,
                     linewidth=0, zorder=2 + (not within))
    off = sorted((row for row in rows if not row["within"]), key=lambda row: -abs(row["shares"]))[:NAMED]
    if len(off) < NAMED:  # of many none is worth a name
        for prompt_id, row in {row["prompt_id"]: row for row in reversed(off)}.items():
            above = row["ours"] > row["published"]  # on its own side of the line, away from the others
            axes.annotate(prompt_id, (row["published"], row[key]), xytext=(-6, 4) if above else (6, -4), fontsize=7, color=OFF,
                          textcoords="offset points", ha="right" if above else "left", va="center")


def _identity(axes, rows: list[dict], log: bool) -> None:
    both = np.array([row[side] for row in rows for side in ("published", "ours")])
    pad = 0.05 * (both.max() - both.min()) or 0.05
    ends = (both.min() / 2, both.max() * 2) if log else (both.min() - pad, both.max() + pad)
    axes.plot(ends, ends, color=style.GREY, linewidth=0.8, zorder=1)
    if log:
        axes.set(xscale="log", yscale="log")
    _points(axes, rows, "ours")
    axes.set(xlim=ends, ylim=ends, xlabel="published", ylabel="ours")


def _shares(axes, rows: list[dict], log: bool) -> None:
    axes.axhspan(-1, 1, color=style.FAINT, alpha=0.5, linewidth=0, zorder=0)
    axes.axhline(0, color=style.GREY, linewidth=0.8, zorder=1)
    largest = max(abs(row["shares"]) for row in rows)
    if log:
        axes.set_xscale("log")
    if largest > 5:
        axes.set_yscale("symlog", linthresh=1)
    _points(axes, rows, "shares")
    reach = 1.5 if largest <= 1 else 1.3 * largest if largest <= 5 else 3 * largest
    axes.set(ylim=(-reach, reach), xlabel="published", ylabel="difference / tolerance")


def reproduce_curves(tables: RunTables):
    """A panel a knockout: the mean change of the answer's probability at every start of the window."""
    curves: dict[tuple, list] = {}
    for item in tables.artifact("reproduce.json")["items"]:
        if item["window_start"] is not None and "%" in item["unit"]:
            curves.setdefault((item["query"], item["source"], item["timescale"]), []).append(item)
    columns, lines = min(COLUMNS, len(curves)), -(-len(curves) // COLUMNS)
    figure = style.sheet(0.75 + columns * (WIDE + 0.25) + 0.1, 1.05 + lines * (HIGH + 0.55))
    style.heading(figure, 0.15, "Knockouts, ours on the published", _subtitle(tables))
    heights = [item[side] for items in curves.values() for item in items for side in ("published", "ours")]
    reach = 0.06 * (max(0, *heights) - min(0, *heights)) or 1.0
    for place, (names, items) in enumerate(curves.items()):
        line, column = divmod(place, COLUMNS)
        axes = style.place(figure, 0.75 + column * (WIDE + 0.25), 1.05 + line * (HIGH + 0.55), WIDE, HIGH, "/".join(map(str, names)))
        _curve(axes, names, sorted(items, key=lambda item: item["window_start"]))
        axes.set_ylim(min(0, *heights) - reach, max(0, *heights) + reach)
        if column:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("change in %")
        if place + COLUMNS >= len(curves):
            axes.set_xlabel("first layer of the window")
    _key(figure)
    sizes = sorted({item["window_size"] for items in curves.values() for item in items})
    n = sorted({item["n"] for items in curves.values() for item in items})
    return figure, (f"Mean change of the answer's probability, in % of what it is with nothing blocked, under windows of "
                    f"{', '.join(map(str, sizes))} layers; n = {'–'.join(map(str, dict.fromkeys((n[0], n[-1]))))} prompts. "
                    "Line: published; dots: ours, orange where a prompt is off by more than the tolerance.")


def _curve(axes, names: tuple, items: list[dict]) -> None:
    query, source, timescale = names
    starts = [item["window_start"] for item in items]
    axes.axhline(0, color=style.FAINT, linewidth=0.8, zorder=0)
    axes.plot(starts, [item["published"] for item in items], color=style.GREY, linewidth=1.4, zorder=1)
    axes.scatter(starts, [item["ours"] for item in items], s=16, zorder=2,
                 color=[AGREES if item["agree"] == item["of"] else OFF for item in items])
    axes.set_title(f"{source} to {query}", loc="left", fontsize=8.5, pad=4)
    if timescale:
        axes.set_title(KEPT[timescale], loc="right", fontsize=6.5, color=style.GREY, pad=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.margins(x=0.05)


def _key(figure: style.Sheet) -> None:
    for left, name, colour, marker in ((0.75, "published", style.GREY, None), (1.75, "ours", AGREES, "o"), (2.45, "ours, off", OFF, "o")):
        axes = style.place(figure, left, 0.68, 0.22, 0.12, f"key {name}")
        axes.plot([0, 1] if marker is None else [0.5], [0, 0] if marker is None else [0], color=colour, marker=marker, markersize=4)
        axes.set_axis_off()
        style.write(figure, left + 0.28, 0.74, name, fontsize=7.5, va="center")


def _compared(tables: RunTables) -> dict:
    return tables.artifact("reproduce.json")


def _subtitle(tables: RunTables) -> str:
    return f"{tables.config['model']['name']} · {_compared(tables)['reference']}"
