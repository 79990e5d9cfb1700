"""The effect of one head at a time: layer × head, a panel a site and position role."""
from __future__ import annotations

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from mamba_mi.config import UserError
from mamba_mi.report.figures import style
from mamba_mi.report.figures.grid import HEADLINE, ROLE_ORDER, in_order, title_parts
from mamba_mi.report.figures.heatmap import ALPHA, hatch
from mamba_mi.report.figures.patching_map import SCALE
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import DIRECTIONS, SITES, role, sample, site

LEFT, TOP, GAP, BELOW = 0.6, 1.15, 0.35, 0.6  # inches
ASKED = ("subject", "between", "last")  # roles side by side


def patching_heads(tables: RunTables):
    """The figure and its caption: a row a direction and site, a column a position role."""
    rows = [row for row in tables.rows(HEADLINE) if row["conditions"].get("head") is not None]
    if not rows:
        raise UserError("patching_heads needs rows with the condition 'head'; run with method.heads=all")
    found = {key: sorted({row["conditions"][key] for row in rows}) for key in ("direction", "site", "role", "layer", "head")}
    roles = _shown(rows, in_order(set(found["role"]), ROLE_ORDER))
    lines = [(way, name) for way in in_order(set(found["direction"]), DIRECTIONS)
             for name in in_order(set(found["site"]), SITES)]
    wide, high = max(1.6, 0.16 * len(found["head"])), max(1.1, 0.16 * len(found["layer"]))
    figure = style.sheet(max(LEFT + len(roles) * (wide + GAP) + 0.1, LEFT + 4.5), TOP + len(lines) * (high + BELOW) + 0.55)
    style.heading(figure, 0.15, "Activation patching by head", title_parts(tables, rows))
    limit = float(np.clip(max((abs(row["mean"]) for row in rows if row["mean"] is not None), default=1), 0.05, 1.5))
    for line, (way, name) in enumerate(lines):
        top = TOP + line * (high + BELOW)
        style.write(figure, LEFT, top - 0.38, f"{DIRECTIONS[way]}, {site(name)}", fontsize=8.5, weight="bold",
                    color=style.DIRECTION_INK[way])
        for column, at in enumerate(roles):
            axes = style.place(figure, LEFT + column * (wide + GAP), top, wide, high, f"{way} {name} {at}")
            mine = {"direction": way, "site": name, "role": at}
            of = {(row["conditions"]["layer"], row["conditions"]["head"]): row for row in rows
                  if mine.items() <= row["conditions"].items()}
            _panel(axes, of, found["layer"], found["head"], style.MAPS[way], limit)
            axes.set_title(role(at), loc="left", fontsize=8, pad=3)
            axes.set(ylabel="layer" if not column else "", xlabel="head" if line == len(lines) - 1 else "")
    for number, way in enumerate(dict.fromkeys(way for way, _ in lines)):
        _scale(figure, way, limit, LEFT + 2.2 * number)
    return figure, (f"Normalised logit difference after exchanging one head at one layer; {sample(rows)}. Hatched cells do not "
                    f"stand out at {ALPHA:.0%} after correction over the whole map (max-T); summary.json has every role.")


def _shown(rows, roles) -> list[str]:
    """The roles most asked about; where a run has none of them, those with the largest effects."""
    peak = {at: max((abs(r["mean"]) for r in rows if r["conditions"]["role"] == at and r["mean"] is not None), default=0)
            for at in roles}
    kept = [at for at in ASKED if at in roles] or sorted(roles, key=lambda at: -peak[at])[:len(ASKED)]
    return [at for at in roles if at in kept]


def _panel(axes, of, layers, heads, colours, limit: float) -> None:
    def numbers(key):
        return np.array([[of[layer, head].get(key) if (layer, head) in of else None for head in heads]
                         for layer in layers], dtype=float)
    axes.pcolormesh(np.ma.masked_invalid(numbers("mean")), cmap=colours, norm=Normalize(-limit, limit, clip=True))
    axes.set_facecolor(style.FAINT)
    hatch(axes, numbers("p_adjusted"))
    axes.set(xlim=(0, len(heads)), ylim=(len(layers), 0))
    for values, set_ticks in ((heads, axes.set_xticks), (layers, axes.set_yticks)):
        every = max(1, -(-len(values) // 8))
        set_ticks([i + 0.5 for i in range(0, len(values), every)], [str(values[i]) for i in range(0, len(values), every)])
    axes.tick_params(length=0, pad=2)


def _scale(figure: style.Sheet, way: str, limit: float, left: float) -> None:
    axes = style.place(figure, left, figure.get_size_inches()[1] - 0.38, 1.6, 0.09, f"scale {way}")
    axes.set_title(SCALE[way], fontsize=7.5, loc="left", pad=3)
    figure.colorbar(ScalarMappable(Normalize(-limit, limit), style.MAPS[way]), cax=axes,
                    orientation="horizontal").outline.set_visible(False)
    axes.tick_params(length=2, pad=1.5, labelsize=7)
