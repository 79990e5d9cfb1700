"""The mean knockout heatmap: position role × window of layers, hatched where nothing stands out.

Up to WIDEST_WITH_TEXT windows the cells carry their numbers; beyond, the intervals' widths have a panel.
Shape legend: R roles, W windows.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from mamba_mi.data.alignment import ALIGNED
from mamba_mi.report.figures import style
from mamba_mi.report.figures.grid import in_order, title_parts
from mamba_mi.report.figures.heatmap import HATCHING, hatch
from mamba_mi.report.heatmap_words import RELATIVE, by_policy, policy, window
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import ALPHA, metric, number, role, sample, stands_out

WIDEST_WITH_TEXT = 12  # with more windows the numbers would be too small to read
LEFT, TOP, RIGHT, GAP, ROW_GAP, FOOT = 1.55, 1.0, 0.6, 0.3, 0.65, 0.65  # inches
CHANGES = style.NECESSITY_MAP.reversed()  # a fall, which is what a knockout is after, in the stronger colour


@dataclass(frozen=True)
class Mean:
    """One policy's map: its rows by role and window start."""

    roles: tuple[str, ...]
    starts: tuple[int, ...]
    cells: dict[tuple[str, int], dict]

    def numbers_RW(self, key: str) -> np.ndarray:
        """One number of every cell, NaN where the summary has none."""
        return np.array([[self.cells.get((name, start), {}).get(key) for start in self.starts] for name in self.roles],
                        dtype=float)


def heatmap_mean(tables: RunTables):
    """The figure and its caption: a map for each conv and span."""
    asked = (tables.config.get("method") or {}).get("metrics") or [RELATIVE]
    rows = tables.rows(RELATIVE if RELATIVE in asked else asked[0])
    name, maps = rows[0]["metric"], _maps(rows)
    first = next(iter(maps.values()))
    windows, text = len(first.starts), len(first.starts) <= WIDEST_WITH_TEXT
    wide = max(2.2, (0.66 if windows <= 8 else 0.54) * windows) if text else max(2.9, 0.1 * windows)
    high, narrow = (0.33 if text else 0.19) * len(first.roles), 0 if text else 1.6
    page = max(5.0, LEFT + wide + (GAP + narrow if narrow else 0) + RIGHT), TOP + len(maps) * (high + ROW_GAP) - 0.15 + FOOT
    figure = style.sheet(*page)
    size = rows[0]["conditions"]["window_size"]
    style.heading(figure, 0.15, "Knockout heatmap, mean over prompts", f"{title_parts(tables, rows)} · {window(size)}")
    limit = 100.0 if name == RELATIVE else max([abs(row["mean"]) for row in rows if row["mean"] is not None], default=1.0) or 1.0
    widths = [np.nan_to_num(each.numbers_RW("ci_high") - each.numbers_RW("ci_low")) / 2 for each in maps.values()]
    widest = max(1e-9, max(half_RW.max() for half_RW in widths))
    for line, (named, found) in enumerate(maps.items()):
        top = TOP + line * (high + ROW_GAP)
        style.write(figure, 0.15, top - 0.22, f"blocked: {policy(*named)}", fontsize=8.5, weight="bold")
        axes = style.place(figure, LEFT, top, wide, high, f"mean {' '.join(named)}")
        _panel(axes, found, limit, text)
        _label(axes, found, names=True)
        if narrow:
            axes = style.place(figure, LEFT + wide + GAP, top, narrow, high, f"width {' '.join(named)}")
            axes.pcolormesh(widths[line], cmap=style.WIDTH_MAP, norm=Normalize(0, widest))
            _label(axes, found, names=False)
        _counts(figure, found, LEFT + wide + (GAP + narrow if narrow else 0) + 0.06, top, high)
    _bar(figure, LEFT, 0.6 * wide, ScalarMappable(Normalize(-limit, limit), CHANGES), _scale(name))
    if narrow:
        _bar(figure, LEFT + wide + GAP, narrow, ScalarMappable(Normalize(0, widest), style.WIDTH_MAP), "± 95%")
    _key(figure, rows)
    return figure, _caption(rows, name, text)


def _maps(rows) -> dict[tuple[str, str], Mean]:
    """A map for each conv and span; all have the roles and windows of all."""
    roles = in_order({row["conditions"]["role"] for row in rows}, ALIGNED)
    starts = tuple(sorted({row["conditions"]["window_start"] for row in rows}))
    return {both: Mean(roles, starts, {(row["conditions"]["role"], row["conditions"]["window_start"]): row for row in mine})
            for both, mine in by_policy(rows).items()}


def _panel(axes: Axes, found: Mean, limit: float, text: bool) -> None:
    mean_RW, norm = found.numbers_RW("mean"), Normalize(-limit, limit, clip=True)
    edges = {"edgecolors": "white", "linewidth": 0.8} if text else {}
    axes.pcolormesh(np.ma.masked_invalid(mean_RW), cmap=CHANGES, norm=norm, **edges)
    axes.set_facecolor(style.FAINT)
    hatch(axes, found.numbers_RW("p_adjusted"))
    for (r, w), mean in np.ndenumerate(mean_RW) if text else ():
        row = found.cells.get((found.roles[r], found.starts[w]))
        if row is None or row["mean"] is None:
            continue
        ink = style.ink_on(CHANGES(norm(mean)))
        ink = style.GREY if not stands_out(row) and not abs(mean) > limit / 3 else ink
        _cell_text(axes, row, w + 0.5, r, ink, decimals=1 if limit >= 10 else 2)


def _cell_text(axes: Axes, row, x: float, top: float, ink: str, decimals: int) -> None:
    common, known = {"ha": "center", "va": "center", "color": ink}, row["ci_low"] is not None
    axes.text(x, top + (0.33 if known else 0.5), number(row["mean"], decimals), fontsize=7.5, **common)
    if known:
        between = f"[{number(row['ci_low'], decimals)}, {number(row['ci_high'], decimals)}]"
        axes.text(x, top + 0.72, between, fontsize=5.6, **common)


def _label(axes: Axes, found: Mean, names: bool) -> None:
    axes.set(xlim=(0, len(found.starts)), ylim=(len(found.roles), 0), xlabel="first layer of the window")
    axes.xaxis.labelpad = 2
    for spine in axes.spines.values():
        spine.set_visible(False)
    every = 1 if len(found.starts) <= 16 and names else 5 if names else 10
    ticks = [w for w, start in enumerate(found.starts) if start % every == 0]
    axes.set_xticks([w + 0.5 for w in ticks], [str(found.starts[w]) for w in ticks])
    axes.set_yticks(np.arange(len(found.roles)) + 0.5, [role(name) for name in found.roles] if names else [])
    axes.tick_params(length=0, pad=3)


def _counts(figure: style.Sheet, found: Mean, left: float, top: float, high: float) -> None:
    """How many prompts have a token of each role, where that differs."""
    n = [found.cells[name, found.starts[0]]["n"] if (name, found.starts[0]) in found.cells else 0 for name in found.roles]
    if len(set(n)) == 1:
        return
    for r, count in enumerate(n):
        style.write(figure, left, top + high * (r + 0.5) / len(n), f"n = {count}", fontsize=6.5, color=style.GREY, va="center")


def _scale(name: str) -> str:
    return "change of the answer's probability, %" if name == RELATIVE else f"change of {metric(name)}"


def _bar(figure: style.Sheet, left: float, width: float, colours: ScalarMappable, title: str) -> None:
    axes = style.place(figure, left, figure.get_size_inches()[1] - 0.4, width, 0.09, f"scale {title}")
    figure.colorbar(colours, cax=axes, orientation="horizontal").outline.set_visible(False)
    axes.tick_params(length=2, pad=1.5, labelsize=7)
    axes.set_title(title, fontsize=7.5, loc="left", pad=3)


def _key(figure: style.Sheet, rows) -> None:
    """What the hatching means, at the foot of the page's left margin."""
    if all(map(stands_out, rows)):
        return
    top = figure.get_size_inches()[1] - 0.45
    axes = style.place(figure, 0.15, top, 0.24, 0.15, "key")
    axes.add_patch(Rectangle((0, 0), 1, 1, fill=False, edgecolor=style.FAINT, hatch=HATCHING, linewidth=0.6))
    axes.set_axis_off()
    style.write(figure, 0.45, top + 0.08, f"p ≥ {ALPHA:.2g}\n(max-T)", fontsize=7, va="center")


def _caption(rows, name: str, text: bool) -> str:
    of = ("Change of the answer's probability, in % of what it is without a knockout," if name == RELATIVE
          else f"Change of {metric(name)}")
    where = "its 95% interval beneath it" if text else "half its 95% interval's width at the right"
    return (f"{of} when the last token may not read the tokens of a role, one at a time, in a window of consecutive layers. "
            f"Each cell is the mean over prompts of a prompt's mean over its tokens of that role, {where}; {sample(rows)}. "
            f"Hatched cells do not stand out at {ALPHA:.0%} after correction over the whole map (max-T).")
