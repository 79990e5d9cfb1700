"""What the conv carries past a source's own slots: one source under every policy, beside random tokens."""
from __future__ import annotations

from mamba_mi.config import UserError
from mamba_mi.report.figures import info_flow_curves as curves
from mamba_mi.report.figures import style
from mamba_mi.report.figures.grid import title_parts
from mamba_mi.report.knockout_words import CONTROLS, QUERIES, focus, policies, values
from mamba_mi.report.knockout_words import source as source_name
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import sample

LEFT, TOP, WIDE, HIGH, GAP, LEGEND = 0.7, 1.05, 3.3, 2.4, 0.25, 3.1  # inches
LOOKS = {("scan", "token"): curves.Look(style.SUBJECT, "-", 2.0), ("scan", "token+conv"): curves.Look(style.SUFFICIENCY_INK, "--", 1.8),
         ("conv", "token"): curves.Look(style.LAST, ":", 2.2), ("both", "token"): curves.Look(style.NECESSITY_INK, "-", 1.8)}
SAID = {("scan", "token"): "its own slots (scan)", ("scan", "token+conv"): "and the slots after (token+conv)",
        ("conv", "token"): "only past its slots (conv)", ("both", "token"): "the token altogether (both)"}
LATER = curves.Look(style.INK, "-.", 1.5)
BESIDE = {"random": curves.Look(style.GREY, "-", 1.0), "beyond_conv": curves.Look(style.GREY, (0, (3, 2)), 1.0)}


def info_flow_smear(tables: RunTables):
    """The figure and its caption."""
    every = curves.read_curves(tables)
    about = focus(every)
    if about is None:
        raise UserError("info_flow_smear needs the source subject, or a span and the slot after it; there are "
                        f"{', '.join(values(every, 'source'))}")
    shown, drawn = curves.main(every), _drawn(every, about)
    rows = [row for wanted, _ in drawn.values() for row in curves.of(every, **{**shown, **wanted})]
    sizes, limits = values(every, "window_size"), curves.heights(rows)
    figure = style.sheet(LEFT + len(sizes) * (WIDE + GAP) + LEGEND, TOP + HIGH + 0.55)
    style.heading(figure, 0.15, f"What the conv carries past the slots of {source_name(about)}", title_parts(tables, rows))
    for column, size in enumerate(sizes):
        axes = style.place(figure, LEFT + column * (WIDE + GAP), TOP, WIDE, HIGH, f"smear {size}")
        for wanted, look in drawn.values():
            if own := curves.of(every, **{**shown, **wanted, "window_size": size}):
                curves.curve(axes, own, look)
        curves.dress(axes, curves.of(every, **{**shown, "window_size": size}), 0.0)
        axes.set(ylim=limits, xlabel="first layer of the window")
        axes.set_title(f"windows of {size} layer{'s' * (size > 1)}", fontsize=8.5, loc="left", pad=4, fontweight="bold")
        axes.set_ylabel("change of p, %") if not column else axes.set_yticklabels([])
    curves.key(figure, LEFT + len(sizes) * (WIDE + GAP) + 0.15, TOP + 0.1, {said: look for said, (_, look) in drawn.items()}, (), str)
    query = QUERIES[rows[0]["conditions"]["query"]]
    return figure, (f"Mean change of the answer's probability when {query} may no longer read {source_name(about)}, by what is blocked "
                    "of it. Where the curve of its own slots lies above the others, a knockout of slots misses what the conv has "
                    f"carried past them. Grey: as many random tokens, by the policy in brackets. Bands are 95% intervals; {sample(rows)}.")


def _drawn(rows, about: str) -> dict[str, tuple[dict, curves.Look]]:
    """The curves: what is blocked in words, the conditions, the look."""
    found = policies(rows)
    drawn = {SAID[each]: (_conditions(each, about), LOOKS[each]) for each in found}
    if f"{about}+1" in values(rows, "source"):
        drawn["the slot after it alone (scan)"] = _conditions(found[0], f"{about}+1"), LATER
    widest = next(each for each in (("both", "token"), ("scan", "token+conv"), *found) if each in found)
    named = {"random": "random tokens", "beyond_conv": "random, beyond the conv"}
    by = {"both": "both", "conv": "conv"}.get(widest[0], widest[1])
    return drawn | {f"{named[name]} ({by})": (_conditions(widest, name), BESIDE[name]) for name in CONTROLS
                     if name in values(rows, "source")}


def _conditions(policy: tuple[str, str], source: str) -> dict:
    return {"conv": policy[0], "span": policy[1], "source": source}
