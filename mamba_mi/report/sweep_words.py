"""What a sweep found, in words and as rows of a table: where groups differ, where the fitted beats chance."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mamba_mi.config import FITTED
from mamba_mi.report.words import ALPHA, NAMES, NOTHING, equals, number, share

SHOWN = 4  # draws are told of the largest so many observed effects
SIDE_BY_SIDE = 3  # groups of which all is told: of more, each run's first sentence
JUDGED = ("conditions", "metric", "n", "mean", "ci_low", "ci_high")  # and the control's p-values
# backends may be 1e-5 of the largest logit apart in float32, and an effect may be ten times smaller than that; beyond what is printed
ROUNDING = 1e-4  # of a metric's largest effect
STATUSES = {"done": "done", "skipped": "done before", "failed": "failed", "interrupted": "interrupted",
            "running": "running", "planned": "not started"}


@dataclass(frozen=True)
class Part:
    """One group of a sweep: its label, its experiment (which says what counts), and its rows without the group's keys."""

    label: str
    experiment: object
    rows: list[dict]

    @property
    def headline(self) -> list[dict]:
        return self.experiment.headline(self.rows)


def part(group, experiment, rows: Sequence[dict]) -> Part:
    """The part of `rows`, those of all groups, that is this group's."""
    own = [row for row in rows if group.names.items() <= row["conditions"].items()]
    return Part(group.label, experiment, [_without(row, group.names) for row in own])


def _without(row: Mapping, keys: Iterable[str]) -> dict:
    return {**row, "conditions": {key: value for key, value in row["conditions"].items() if key not in keys}}


def key_of(row: Mapping) -> tuple:
    """A cell, so that rows of one can be found in the other group."""
    return (row["metric"], *row["conditions"].items())


def cell(conditions: Mapping) -> str:
    """`sufficiency, residual stream, layer 3, last token`."""
    said = [NAMES[key](value) if key in NAMES else f"{key.replace('_', ' ')} {value}"
            for key, value in conditions.items() if value is not None]
    return ", ".join(said)


def counted(jobs: Sequence[Mapping]) -> str:
    """`5 of 6 runs are done; 1 failed`."""
    found = [job["status"] for job in jobs]
    good = sum(status in ("done", "skipped") for status in found)
    others = [f"{found.count(status)} {STATUSES[status]}" for status in ("failed", "interrupted", "running", "planned")
              if status in found]
    return "; ".join([f"{good} of {len(jobs)} runs are done", *others])


def of_groups(parts: Sequence[Part], differences: Sequence[dict]) -> list[str]:
    """The difference of two groups first, then each group by what its experiment says of its rows: of many groups the first."""
    said = _of_difference(*parts, differences) if len(parts) == 2 and differences else []
    most = 1 if len(parts) > SIDE_BY_SIDE else None
    for each in parts:
        said += [f"{each.label}: {sentence}" if each.label else sentence for sentence in each.experiment.findings(each.rows)[:most]]
    return said + (["What else each run found stands in its own report, linked below."] if most else [])


def _of_difference(one: Part, other: Part, differences: Sequence[dict]) -> list[str]:
    """One sentence a direction on the cell that differs most, and one that counts the cells that differ; of differences
    no larger than rounding, that they are."""
    cells = {key_of(row) for row in one.headline}
    known = [row for row in differences if key_of(row) in cells and row["mean"] is not None]
    if not known:
        return []
    there = {key_of(row): (row, next((r for r in other.rows if key_of(r) == key_of(row)), None)) for row in one.rows
             if key_of(row) in cells}
    sizes = _sizes([*one.rows, *other.rows])
    real = [row for row in known if abs(row["mean"]) > ROUNDING * sizes.get(row["metric"], 0.0)]
    if not real:
        return [f"{one.label} and {other.label} are equal to rounding: in none of the {len(known)} cells shown do they differ by "
                f"more than {ROUNDING:.0e} of the largest effect.".replace("e-0", "e−")]
    said = []
    for name in dict.fromkeys(row["conditions"].get("direction") for row in real):
        rows = [row for row in real if row["conditions"].get("direction") == name]
        widest = max(rows, key=lambda row: abs(row["mean"]))
        first, second = there[key_of(widest)]
        said.append(f"{one.label} and {other.label} differ most at {cell(widest['conditions'])}: {share(first)} "
                    f"against {share(second)}, a difference of {share(widest)}, "
                    f"p (max-T) {equals(widest['p_adjusted'])}, n = {widest['n']}.")
    sure = [row for row in known if row["ci_low"] is not None]
    apart = [row for row in real if row["ci_low"] is not None and (row["ci_low"] > 0 or row["ci_high"] < 0)]
    firm = sum(row["p_adjusted"] is not None and row["p_adjusted"] < ALPHA for row in real)
    alike = f" {len(known) - len(real)} are equal to rounding." if len(real) < len(known) else ""
    said.append(f"In {len(apart)} of the {len(sure)} cells shown whose difference has an interval it leaves out zero; in {firm} of "
                f"{len(known)} p is below {ALPHA:.2g} after correction over the whole map.{alike}")
    return said


def _sizes(rows: Sequence[dict]) -> dict[str, float]:
    """The largest effect of each metric."""
    sizes: dict[str, float] = {}
    for row in rows:
        if row["mean"] is not None:
            sizes[row["metric"]] = max(sizes.get(row["metric"], 0.0), abs(row["mean"]))
    return sizes


def of_draws(rows: Sequence[dict], null: Sequence[dict], metric: str) -> list[str]:
    """The largest observed effects beside those of random subspaces of the same rank."""
    said = []
    for row in judged(rows, metric)[:SHOWN]:
        chance = [each for each in null if each["metric"] == metric and _same_cell(each, row)]
        beside = "; ".join(f"{each['family']} {number(each['mean'])}, 95% in [{number(each['low'])}, {number(each['high'])}], "
                           f"{each['draws']} draws" for each in chance)
        p = NOTHING if row["control_p"] is None else equals(row["control_p"])
        p += "".join(f", {family} {equals(row[key])}" for family in ("covariance", "rescaled")
                     if row.get(key := f"control_p_{family}") is not None)
        said.append(f"{cell(row['conditions'])}: {share(row)}, n = {row['n']}. Random subspaces: {beside}. "
                    f"p (control, isotropic) {p}.")
    return said


def judged(rows: Sequence[dict], metric: str) -> list[dict]:
    """The observed rows that were compared with draws, the largest effect first."""
    found = [row for row in rows if row["metric"] == metric and row["mean"] is not None
             and row["conditions"].get("subspace") in FITTED]
    return sorted(found, key=lambda row: -abs(row["mean"]))


def _same_cell(one: Mapping, other: Mapping) -> bool:
    kept = ({k: v for k, v in each["conditions"].items() if k not in ("subspace", "draw")} for each in (one, other))
    return next(kept) == next(kept)


def table(parts: Sequence[Part], differences: Sequence[dict]) -> list[dict]:
    """The headline rows; of several groups side by side, of two with their difference."""
    if len(parts) == 1:
        return [_printed(row) for row in parts[0].headline]
    of_group = [{key_of(row): row for row in each.rows} for each in parts]
    apart = {key_of(row): row for row in differences}
    wide = []
    for key, row in ((key_of(row), row) for row in parts[0].headline):
        n = [rows[key]["n"] for rows in of_group if key in rows]
        wide.append({"conditions": row["conditions"], "metric": row["metric"],
                     "n": n[0] if len(set(n)) == 1 else " / ".join(map(str, n)),
                     **{each.label: share(rows[key]) if key in rows else None
                        for each, rows in zip(parts, of_group, strict=True)},
                     **({"difference": share(apart[key]), "p_adjusted": apart[key]["p_adjusted"]}
                        if key in apart else {})})
    return wide


def complete(rows: Sequence[dict], metric: str) -> list[dict]:
    """Every row of the headline metric, each seed's estimate in a column."""
    return [_printed(row) for row in rows if row["metric"] == metric]


def _printed(row: Mapping) -> dict:
    out = {key: value for key, value in row.items() if key not in ("seeds", "note", "control_p", "effect_size")
           or key == "control_p" and value is not None}
    if len(row.get("seeds", [])) > 1:
        out["by seed"] = " ".join(number(each["mean"]) for each in row["seeds"])
    return out
