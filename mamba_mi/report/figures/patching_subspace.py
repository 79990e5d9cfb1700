"""What a fitted subspace does over layers, beside the whole value, its two parts, and random subspaces of its rank."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mamba_mi.config import FITTED, UserError
from mamba_mi.measure.controls import spread
from mamba_mi.report.figures import style
from mamba_mi.report.figures.grid import HEADLINE, ROLE_ORDER, in_order, title_parts
from mamba_mi.report.figures.patching_curves import EFFECT
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import DIRECTIONS, SITES, role, sample, site

LEFT, TOP, WIDE, HIGH, GAP, BELOW, LEGEND = 0.7, 1.0, 3.0, 1.9, 0.6, 0.55, 2.0  # inches
LINES = {  # of the summary's rows: colour, width, dashes
    "full": (style.GREY, 1.2, "-"), "row_space": (style.INK, 1.0, (0, (3, 2))),
    "null_space": (style.LAST, 1.1, (0, (1, 1))), **dict.fromkeys(FITTED, (style.SUBJECT, 2.0, "-"))}
BANDS = {"isotropic": style.GREY, "covariance": style.SUFFICIENCY_INK, "rescaled": style.NECESSITY_INK,
         "orthogonal": style.RELATION}


def patching_subspace(tables: RunTables):
    """The figure and its caption: a column a direction and site, a row a position role."""
    rows = [row for row in tables.rows(HEADLINE) if row["conditions"].get("subspace")]
    if not rows:
        raise UserError("patching_subspace needs rows with the condition 'subspace'; run with method.subspace=")
    drawn = [entry for entry in spread(tables.controls) if entry["metric"] == HEADLINE]
    found = [sorted({row["conditions"][key] for row in rows}) for key in ("direction", "site", "role")]
    columns = [(way, name) for way in in_order(set(found[0]), DIRECTIONS) for name in in_order(set(found[1]), SITES)]
    roles = in_order(set(found[2]), ROLE_ORDER)
    figure = style.sheet(LEFT + len(columns) * (WIDE + GAP) - GAP + LEGEND, TOP + len(roles) * (HIGH + BELOW) + 0.05)
    style.heading(figure, 0.15, "Patching in a subspace", title_parts(tables, _fitted(rows)))
    for column, (way, name) in enumerate(columns):
        left = LEFT + column * (WIDE + GAP)
        style.write(figure, left, 0.68, DIRECTIONS[way], fontsize=10, weight="bold", color=style.DIRECTION_INK[way])
        style.write(figure, left + WIDE, 0.71, site(name), fontsize=8, color=style.GREY, ha="right")
        for line, at in enumerate(roles):
            axes = style.place(figure, left, TOP + line * (HIGH + BELOW), WIDE, HIGH, f"{way} {name} {at}")
            mine = {"direction": way, "site": name, "role": at}
            _panel(axes, _of(rows, mine), _of(drawn, mine))
            axes.set_title(role(at), loc="left", fontsize=8.5, fontweight="bold", pad=3)
            first = way not in [other for other, _ in columns[:column]]
            axes.set(ylabel=EFFECT[way] if first else "", xlabel="layer" if line == len(roles) - 1 else "")
    _names(figure, LEFT + len(columns) * (WIDE + GAP) - GAP + 0.25, rows, drawn)
    return figure, _caption(rows, drawn)


def _of(rows: Sequence[Mapping], wanted: Mapping) -> list[Mapping]:
    return [row for row in rows if wanted.items() <= row["conditions"].items()]


def _fitted(rows):
    return [row for row in rows if row["conditions"]["subspace"] in FITTED]


def _panel(axes: Axes, rows, drawn) -> None:
    for level in (0, 1):
        axes.axhline(level, color=style.FAINT, linewidth=0.8, zorder=0)
    for family, colour in BANDS.items():
        mine = sorted((e for e in drawn if e["family"] == family), key=lambda e: e["conditions"]["layer"])
        if mine:
            layers = [entry["conditions"]["layer"] for entry in mine]
            axes.fill_between(layers, *([e[key] for e in mine] for key in ("low", "high")), color=colour, alpha=0.13, linewidth=0)
            axes.plot(layers, [entry["mean"] for entry in mine], color=colour, linewidth=0.9)
    for name, (colour, width, dashes) in LINES.items():
        mine = sorted((r for r in rows if r["conditions"]["subspace"] == name and r["mean"] is not None),
                      key=lambda r: r["conditions"]["layer"])
        layers = [row["conditions"]["layer"] for row in mine]
        if name in FITTED:
            sure = [row for row in mine if row["ci_low"] is not None]
            axes.fill_between([row["conditions"]["layer"] for row in sure], *([row[k] for row in sure] for k in ("ci_low", "ci_high")),
                              color=colour, alpha=0.2, linewidth=0)
        axes.plot(layers, [row["mean"] for row in mine], color=colour, linewidth=width, linestyle=dashes,
                  marker="o" if name in FITTED and len(layers) <= 12 else None, markersize=3.2, zorder=2 + (name not in FITTED))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 4, 8, 10]))
    axes.set_ylim(min(-0.1, axes.get_ylim()[0]), max(1.05, axes.get_ylim()[1]))


def _names(figure: style.Sheet, left: float, rows, drawn) -> None:
    """The legend, beside the panels."""
    ranks = {row["conditions"]["subspace"]: row["conditions"]["rank"] for row in rows}
    entries = [(_said(name, ranks.get(name)), style_of) for name, style_of in LINES.items() if name in ranks]
    entries += [(f"{family} controls", (BANDS[family], 5.0, "-")) for family in BANDS
                if any(entry["family"] == family for entry in drawn)]
    for index, (text, (colour, width, dashes)) in enumerate(entries):
        top = TOP + 0.1 + 0.2 * index
        axes = style.place(figure, left, top - 0.06, 0.28, 0.12, f"key {text}")
        axes.plot([0, 1], [0, 0], color=colour, linewidth=width, linestyle=dashes, alpha=0.3 if width > 4 else 1)
        if width > 4:
            axes.plot([0, 1], [0, 0], color=colour, linewidth=0.9)
        axes.set_axis_off()
        style.write(figure, left + 0.36, top, text, fontsize=7.5, va="center")


def _said(name: str, rank: int | None) -> str:
    if name == "full":
        return "the whole value"
    return f"{name.replace('_', ' ')}" + (f", rank {rank}" if name in FITTED else "")


def _caption(rows, drawn) -> str:
    draws = max((entry["draws"] for entry in drawn), default=0)
    controls = (f" Shaded: the middle 95% of {draws} random subspaces of the same rank, by family; the line in each is its "
                "mean.") if drawn else ""
    return ("Normalised logit difference after exchanging one subspace of a site's value and leaving the rest; the bold curve is "
            f"the fitted subspace with its 95% interval, {sample(_fitted(rows))}. Row space and null space are its parts that "
            f"the next linear map reads and does not read.{controls}")
