"""The field's figure of an information flow: hit rate and change of p over windows, a curve a source.

Two panels a size of window, as in the literature: last orange dotted, subject green, relation purple dashed; the lines
at 100 and at 0 are the run that blocks nothing.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow.compute as pc

from mamba_mi.report.figures import info_flow_curves as curves
from mamba_mi.report.figures import style
from mamba_mi.report.figures.grid import title_parts
from mamba_mi.report.knockout_words import QUERIES, values
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import metric, sample

LEFT, TOP, WIDE, HIGH, GAP, ROW_GAP, LEGEND = 0.7, 1.0, 3.5, 2.2, 0.75, 0.65, 2.75  # inches


def info_flow(tables: RunTables):
    """The figure and its caption: all prompts, the published policy."""
    every = curves.read_curves(tables)
    shown = curves.main(every)
    rows, hits = curves.of(every, **shown), curves.of([row for row in tables.summary if row["metric"] == "hit"], **shown)
    names, sizes = curves.looks(curves.sources(rows)), values(every, "window_size")
    columns = 2 if hits else 1
    figure = style.sheet(LEFT + columns * (WIDE + GAP) - GAP + LEGEND, TOP + len(sizes) * (HIGH + ROW_GAP))
    style.heading(figure, 0.15, "Information flow", title_parts(tables, rows))
    for line, size in enumerate(sizes):
        top = TOP + line * (HIGH + ROW_GAP)
        style.write(figure, LEFT, top - 0.25, f"windows of {size} layer{'s' * (size > 1)}", fontsize=8.5, weight="bold")
        for column, (title, found) in enumerate([("hit rate, %", hits), ("change of p, %", rows)][-columns:]):
            axes = style.place(figure, LEFT + column * (WIDE + GAP), top, WIDE, HIGH, f"{title} {size}")
            here = curves.of(found, window_size=size)
            _panel(axes, tables, here, names, hit=found is hits)
            axes.set_ylabel(title)
            if line == len(sizes) - 1:
                axes.set_xlabel("first layer of the window")
    curves.key(figure, LEFT + columns * (WIDE + GAP) - GAP + 0.3, TOP + 0.1, names, curves.of(every, **shown), metric)
    return figure, _caption(rows, shown, bool(hits))


def _panel(axes, tables: RunTables, rows: Sequence[Mapping], names, hit: bool) -> None:
    for name, look in names.items():
        own = curves.of(rows, source=name)
        clean = 100 * _clean_hits(tables, name) if hit else 0.0
        if own:
            curves.curve(axes, own, look, scale=100.0 if hit else 1.0, shift=clean, band=False)
    curves.dress(axes, rows, 100.0 if hit else 0.0)
    axes.set_ylim(-4, 106) if hit else axes.set_ylim(*curves.heights([{**row, "ci_low": None, "ci_high": None} for row in rows]))


def _clean_hits(tables: RunTables, source: str) -> float:
    """The share of right answers where nothing is blocked, among the prompts that have this source."""
    if tables.effects is None:
        return 1.0
    here = pc.and_(pc.equal(tables.effects["metric"], "hit"), pc.equal(tables.effects["source"], source))
    return pc.mean(tables.effects["baseline"].filter(here)).as_py() or 0.0


def _caption(rows: Sequence[Mapping], shown: Mapping, hits: bool) -> str:
    query = QUERIES[rows[0]["conditions"]["query"]]
    panels = "Left, how often the right answer still comes first; right, the" if hits else "The"
    return (f"What the answer loses when {query} may no longer read a source, in a window of consecutive layers that starts at the "
            f"layer given; conv={shown['conv']}, span={shown['span']}. {panels} mean change of its probability, (p − p₀)/p₀. "
            f"The grey lines, 100 and 0, are the run that blocks nothing. {sample(rows)}. Intervals are in the next figure.")
