"""Whether a chosen subspace does more than random ones of its rank: control rows beside the observed rows of a summary.

A control row is a row whose `draw` is set; its `subspace` names the family it was drawn from. It belongs to the observed
row with the same metric and the same other conditions. In one run or over the jobs of a sweep, the rows are the same.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mamba_mi.config import FITTED, UNCONSTRAINED
from mamba_mi.measure.stats import control_p

NORM = "intervention_norm"  # of what an exchange puts in; a metric of effects, to say how well a control matches
FEWEST = 20  # draws under which no p can be below .05


def parted(effects: pa.Table) -> tuple[pa.Table, pa.Table | None]:
    """The effects of what was asked, and the table that `control_rows` reads; None where nothing was drawn."""
    if "draw" not in effects.column_names:
        return effects, None
    asked = pc.and_(pc.is_null(effects["draw"]), pc.not_equal(effects["metric"], NORM))
    return effects.filter(asked), effects if effects["draw"].null_count < len(effects) else None


def control_rows(effects: pa.Table, conditions: Sequence[str], normalised: Mapping[str, str], tau: float) -> list[dict]:
    """A row a control draw and metric: its mean effect, n, and how its size compares with the exchange it controls.

    The mean is that of value - baseline, of a metric in `normalised` the ratio of means as well, as in
    measure.summary. `match` is the control's root mean square norm over the fitted exchange's: 1 is a perfect match.
    """
    match = _matches(effects.filter(pc.equal(effects["metric"], NORM)), conditions)
    drawn = effects.filter(pc.and_(pc.is_valid(effects["draw"]), pc.not_equal(effects["metric"], NORM)))
    asked = {tuple(row[key] for key in ("metric", *conditions)): row["value_count"]
             for row in drawn.group_by(["metric", *conditions]).aggregate([("value", "count")]).to_pylist()}
    wanted = [(metric, metric, pa.array(np.ones(len(drawn)))) for metric in pc.unique(drawn["metric"]).to_pylist()]
    wanted += [(metric, name, pc.subtract(drawn["full"], drawn["baseline"])) for metric, name in normalised.items()]
    rows = []
    for metric, name, scale in wanted:
        sums = _sums(drawn, conditions, metric, scale, tau if name != metric else 0.0)
        rows += [_row(dict(zip(conditions, cell)), name, *sums.get(cell, (0.0, 0.0, 0)), count, match[cell])
                 for (of, *rest), count in asked.items() if of == metric for cell in [tuple(rest)]]
    return rows


def _sums(drawn: pa.Table, conditions, metric: str, scale, tau: float) -> dict[tuple, tuple[float, float, int]]:
    """Of each cell: the sums of value - baseline and of the scale, and n, over prompts with |scale| > tau."""
    table = drawn.append_column("num", pc.subtract(drawn["value"], drawn["baseline"])).append_column("den", scale)
    table = table.filter(pc.and_(pc.equal(table["metric"], metric), pc.greater(pc.abs(table["den"]), tau)))
    grouped = table.group_by(list(conditions)).aggregate([("num", "sum"), ("den", "sum"), ("num", "count")])
    return {tuple(row[key] for key in conditions): (row["num_sum"], row["den_sum"], row["num_count"])
            for row in grouped.to_pylist()}


def _row(conditions: dict, metric: str, num: float, den: float, n: int, asked: int, match: float | None) -> dict:
    untested = dict.fromkeys(("ci_low", "ci_high", "effect_size", "p", "p_adjusted", "control_p"))
    return {"conditions": conditions, "metric": metric, "n": n, "mean": num / den if den else None, **untested,
            "excluded": asked - n, "match": match}


def _matches(norms: pa.Table, conditions: Sequence[str]) -> dict[tuple, float | None]:
    """The size of each control over that of the fitted exchange of its cell."""
    squares = norms.append_column("square", pc.power(norms["value"], 2)).group_by(list(conditions)).aggregate(
        [("square", "mean")]).to_pylist()
    cell = [key for key in conditions if key not in ("subspace", "draw")]
    fitted = {tuple(row[key] for key in cell): row["square_mean"] for row in squares
              if row["draw"] is None and row["subspace"] in FITTED}
    own = {tuple(row[key] for key in conditions): fitted[tuple(row[key] for key in cell)]
           for row in squares if row["draw"] is not None}
    sizes = {tuple(row[key] for key in conditions): row["square_mean"] for row in squares}
    # where the two runs do not differ nothing is exchanged, and no control can match that
    return {key: (sizes[key] / square) ** 0.5 if square else None for key, square in own.items()}


def judge(rows: Sequence[Mapping]) -> list[dict]:
    """The rows without a draw; those of fitted subspaces with what their controls did.

    `control_p` is the isotropic family's (1 + #{|control| >= |observed|}) / (1 + draws), None under FEWEST draws;
    `control_p_<family>` are the others'. `draws`, `control_mean`, `control_low` and `control_high` (the middle 95%)
    and `control_match` (how large the exchange was, of the fitted one's) are of the isotropic family.
    """
    controls, matches = _found(rows, "mean"), _found(rows, "match")
    out = []
    for row in rows:
        if row["conditions"].get("draw") is not None:
            continue
        drawn = controls.get(_cell(row), {}) if row["conditions"].get("subspace") in FITTED else {}
        out.append({**row, **_judgement(row, drawn, matches.get(_cell(row), {}))} if drawn else dict(row))
    return out


def _judgement(row: Mapping, drawn: Mapping, matches: Mapping) -> dict:
    first, *others = UNCONSTRAINED
    told = {"control_p": _share(row, drawn.get(first, {})),
            **{f"control_p_{family}": _share(row, drawn[family]) for family in others if family in drawn}}
    if len(drawn.get(first, {})) < FEWEST:
        return told
    low, mean, high = _middle(_in_order(drawn[first]))
    return {**told, "draws": len(drawn[first]), "control_mean": mean, "control_low": low, "control_high": high,
            "control_match": float(np.mean(_in_order(matches[first]))) if matches.get(first) else None}


def _middle(effects: Sequence[float]) -> tuple[float, float, float]:
    low, high = np.quantile(effects, [0.025, 0.975])
    return float(low), float(np.mean(effects)), float(high)


def spread(rows: Sequence[Mapping]) -> list[dict]:
    """One entry a cell and family: how many draws, their mean, middle 95% and every single effect in order of draw."""
    out = []
    for cell, families in _found(rows, "mean").items():
        for family, by_draw in families.items():
            means = _in_order(by_draw)
            low, mean, high = _middle(means)
            out.append({"metric": cell[0], "conditions": dict(cell[1]), "family": family, "draws": len(means),
                        "mean": mean, "low": low, "high": high, "effects": means})
    return out


def _in_order(by_draw: Mapping[int, float]) -> list[float]:
    """By draw, so that sums come out the same to the bit whatever order the jobs ended in."""
    return [by_draw[draw] for draw in sorted(by_draw)]


def _found(rows: Iterable[Mapping], key: str) -> dict[tuple, dict[str, dict[int, float]]]:
    """A number of the control rows by cell, family and draw; a draw met twice that says two things is no draw."""
    found: dict[tuple, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        draw, family = (row["conditions"].get(name) for name in ("draw", "subspace"))
        if draw is None or row.get(key) is None:
            continue
        known = found[_cell(row)][family].setdefault(draw, row[key])
        if not np.isclose(known, row[key], rtol=1e-3, atol=1e-6):
            raise ValueError(f"draw {draw} of {family} has two effects, {known} and {row[key]}: two different runs")
    return found


def _cell(row: Mapping) -> tuple:
    kept = ((key, value) for key, value in row["conditions"].items() if key not in ("subspace", "draw"))
    return row["metric"], tuple(sorted(kept, key=lambda item: item[0]))


def _share(row: Mapping, by_draw: Mapping[int, float]) -> float | None:
    if row["mean"] is None or len(by_draw) < FEWEST:
        return None
    controls_R1 = np.abs(np.array(list(by_draw.values()), dtype=np.float64))[:, None]
    return float(control_p(np.abs([row["mean"]]), controls_R1)[0])
