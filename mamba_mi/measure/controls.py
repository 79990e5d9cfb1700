"""Whether a chosen subspace does more than random ones of its rank: control rows beside the observed rows of a summary.

A control row is a row whose `draw` is set; its `subspace` names the family it was drawn from. It belongs to the observed
row with the same metric and the same other conditions. In one run or over the jobs of a sweep, the rows are the same.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mamba_mi.measure.stats import control_p

FITTED = ("mean_difference", "pca", "das")  # subspaces that were chosen, so that chance must be ruled out
FAMILIES = ("isotropic", "covariance", "rescaled")  # unconstrained draws of the same rank: the p-values' families
ORTHOGONAL = "orthogonal"  # drawn inside the complement of the fitted subspace: shown, never a p-value's family
FEWEST = 20  # draws under which no p can be below .05


def judge(rows: Sequence[Mapping]) -> list[dict]:
    """The rows without a draw, those of fitted subspaces with `control_p` and a `control_p_<family>` for each family.

    `control_p` is the isotropic family's: (1 + #{|control| >= |observed|}) / (1 + draws). None under FEWEST draws.
    """
    controls = _controls(rows)
    out = []
    for row in rows:
        if row["conditions"].get("draw") is not None:
            continue
        drawn = controls.get(_cell(row), {}) if row["conditions"].get("subspace") in FITTED else {}
        shares = {f"control_p_{family}": _share(row, drawn[family]) for family in FAMILIES if drawn.get(family)}
        first = shares.pop(f"control_p_{FAMILIES[0]}", None)
        out.append({**row, "control_p": first, **shares} if drawn else dict(row))
    return out


def spread(rows: Sequence[Mapping]) -> list[dict]:
    """One entry a cell and family: how many draws, their mean, middle 95% and every single effect in order of draw."""
    out = []
    for cell, families in _controls(rows).items():
        for family, by_draw in families.items():
            means = np.array([by_draw[draw] for draw in sorted(by_draw)], dtype=np.float64)
            low, high = np.quantile(means, [0.025, 0.975])
            out.append({"metric": cell[0], "conditions": dict(cell[1]), "family": family, "draws": len(means),
                        "mean": float(means.mean()), "low": float(low), "high": float(high), "effects": means.tolist()})
    return out


def _controls(rows: Iterable[Mapping]) -> dict[tuple, dict[str, dict[int, float]]]:
    """Effects by cell, family and draw; the same draw met twice must say the same to rounding, else it is no draw."""
    found: dict[tuple, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        draw, family = (row["conditions"].get(key) for key in ("draw", "subspace"))
        if draw is None or row["mean"] is None:
            continue
        known = found[_cell(row)][family].setdefault(draw, row["mean"])
        if not np.isclose(known, row["mean"], rtol=1e-3, atol=1e-6):
            raise ValueError(f"draw {draw} of {family} has two effects, {known} and {row['mean']}: two different runs")
    return found


def _cell(row: Mapping) -> tuple:
    kept = ((key, value) for key, value in row["conditions"].items() if key not in ("subspace", "draw"))
    return row["metric"], tuple(sorted(kept, key=lambda item: item[0]))


def _share(row: Mapping, by_draw: Mapping[int, float]) -> float | None:
    if row["mean"] is None or len(by_draw) < FEWEST:
        return None
    controls_R1 = np.abs(np.array(list(by_draw.values()), dtype=np.float64))[:, None]
    return float(control_p(np.abs([row["mean"]]), controls_R1)[0])
