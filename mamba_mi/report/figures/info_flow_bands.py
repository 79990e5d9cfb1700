"""Small multiples of an information flow, with intervals: by conv policy, by where the subject stands, by timescale."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from mamba_mi.report.figures import info_flow_curves as curves
from mamba_mi.report.figures import style
from mamba_mi.report.figures.grid import title_parts
from mamba_mi.report.knockout_words import ALL, POLICIES, QUERIES, values
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import metric, sample

LEFT, TOP, WIDE, HIGH, GAP, ROW_GAP, LEGEND = 0.85, 1.0, 2.15, 1.75, 0.18, 0.55, 2.75  # inches
SPLITS = {ALL: "all prompts", "subject_first": "subject first", "subject_later": "subject later"}
TITLES = {("scan", "token"): "scan", ("scan", "token+conv"): "scan, token+conv", ("conv", "token"): "conv", ("both", "token"): "both"}

BLOCKS = {("scan", "token"): "scan blocks a token's own slots", ("scan", "token+conv"): "scan, token+conv the slots after it as well",
          ("conv", "token"): "conv only what the conv carries past its slots", ("both", "token"): "both the token altogether"}


def info_flow_bands(tables: RunTables):
    """By conv policy: what is blocked of a token."""
    rows = curves.read_curves(tables)
    found = {(row["conditions"]["conv"], row["conditions"]["span"]) for row in rows}
    panels = {TITLES[each]: dict(zip(("conv", "span"), each, strict=True)) for each in POLICIES if each in found}
    return _multiples(tables, rows, panels, "by conv policy", "; ".join(BLOCKS[each] for each in POLICIES if each in found) + ".")


def info_flow_splits(tables: RunTables):
    """By whether the subject begins the prompt."""
    rows = curves.read_curves(tables)
    panels = {said: {"split": name} for name, said in SPLITS.items() if name in values(rows, "split")}
    return _multiples(tables, rows, panels, "by where the subject stands", "subject first: the subject begins the prompt, BOS apart.")


def info_flow_timescales(tables: RunTables):
    """By the part of a layer that loses the sources."""
    rows = curves.read_curves(tables)
    found = values(rows, "timescale")
    panels = {"whole layers" if name == ALL else f"{name} third": {"timescale": name}
              for name in (ALL, "slow", "mid", "fast") if name in found}
    return _multiples(tables, rows, panels, "by timescale",
                      "Thirds of each layer's heads (Mamba-1: channels) by effective horizon; slow has the longest.")


def _multiples(tables: RunTables, every: Sequence[Mapping], panels: Mapping[str, dict], how: str, meaning: str):
    """A column a panel, a line a size of window; all on one scale."""
    shown = curves.main(every)
    rows = [row for panel in panels.values() for row in curves.of(every, **{**shown, **panel})]
    names, sizes, limits = curves.looks(curves.sources(rows)), values(every, "window_size"), curves.heights(rows)
    figure = style.sheet(LEFT + len(panels) * (WIDE + GAP) + LEGEND, TOP + len(sizes) * (HIGH + ROW_GAP))
    style.heading(figure, 0.15, f"Information flow {how}", title_parts(tables, rows))
    for line, size in enumerate(sizes):
        top = TOP + line * (HIGH + ROW_GAP)
        for column, (title, panel) in enumerate(panels.items()):
            axes = style.place(figure, LEFT + column * (WIDE + GAP), top, WIDE, HIGH, f"{title} {size}")
            here = curves.of(every, **{**shown, **panel, "window_size": size})
            for name, look in names.items():
                if own := curves.of(here, source=name):
                    curves.curve(axes, own, look)
            curves.dress(axes, here, 0.0)
            axes.set(ylim=limits, title="")
            axes.set_title(title if not line else "", fontsize=8.5, loc="left", pad=4, fontweight="bold")
            if column:
                axes.set_yticklabels([])
            else:
                axes.set_ylabel(f"change of p, %\nwindows of {size}")
            if line == len(sizes) - 1:
                axes.set_xlabel("first layer of the window")
    curves.key(figure, LEFT + len(panels) * (WIDE + GAP) + 0.15, TOP + 0.1, names, curves.of(every, **shown), metric)
    query = QUERIES[rows[0]["conditions"]["query"]]
    return figure, (f"Mean change of the answer's probability when {query} may no longer read a source, {how}. {meaning} Bands are "
                    f"95% intervals over clusters; 0 is the run that blocks nothing; {sample(rows)}.")
