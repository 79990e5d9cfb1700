"""The runs of a sweep put together: one set of rows over seeds, between models, or over random draws.

The swept keys other than `seed` and `method.draw` form groups; within a group the seeds are one sample.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ..config import UserError
from ..measure import controls
from ..measure.sweep import Measured, difference, estimate, stack
from .aggregate import GOOD
from .files import read_json

SEED, DRAW = "seed", "method.draw"


@dataclass(frozen=True)
class Group:
    """Like runs: their values of the keys that form groups, and the jobs."""

    names: dict[str, str]
    jobs: list[dict]

    @property
    def label(self) -> str:
        return ", ".join(value if key == "model" else f"{key}={value}" for key, value in self.names.items())


@dataclass(frozen=True)
class Pooled:
    """What a sweep measured. `rows` and `differences` are rows of its summary.json, `null` the spread of its draws."""

    groups: list[Group]
    rows: list[dict]
    differences: list[dict] = field(default_factory=list)
    null: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    draws: bool = False


def pool(jobs: Sequence[Mapping], *, normalised: Mapping[str, str], family: Sequence[str],
         in_groups: Callable[[pa.Table], pa.Table] = lambda effects: effects) -> Pooled:
    """The statistics over all jobs of a sweep that are done; what could not be used is said in `notes`.

    `in_groups` is the experiment's: the effects of a run as its statistics take them.
    """
    # by run_id: a value given twice is the same run, and must not count twice
    found = {job["run_id"]: job for job in jobs
             if job["status"] in GOOD and (Path(job["path"]) / "summary.json").is_file()}
    with_results = list(found.values())
    if not with_results:
        return Pooled([], [], notes=["No job is done: there is nothing to put together yet."])
    if any(DRAW in job["swept"] for job in with_results):
        return _over_draws(jobs, with_results)
    return _over_seeds(with_results, normalised, family, in_groups)


def grouped(jobs: Sequence[Mapping], besides: Sequence[str]) -> list[Group]:
    """The jobs by their values of the swept keys, those in `besides` apart."""
    found: dict[tuple, Group] = {}
    for job in jobs:
        names = {key: value for key, value in job["swept"].items() if key not in besides}
        found.setdefault(tuple(names.items()), Group(names, [])).jobs.append(job)
    return list(found.values())


def _over_draws(planned: Sequence[Mapping], jobs: Sequence[Mapping]) -> Pooled:
    """Observed effects of the first run of each group, judged against the random draws of all its runs."""
    groups, rows, null, notes = grouped(jobs, [DRAW]), [], [], []
    wanted = {group.label: len(group.jobs) for group in grouped(planned, [DRAW])}
    for group in groups:
        tables = [read_json(Path(job["path"]) / "summary.json") for job in group.jobs]
        observed = [row for row in tables[0] if row["conditions"].get("draw") is None]
        drawn = [row for table in tables for row in table if row["conditions"].get("draw") is not None]
        rows += [_named(row, group) for row in controls.judge([*observed, *drawn])]
        null += [_named(each, group) for each in controls.spread(drawn)]
        missing = wanted[group.label] - len(group.jobs)
        of = f" of {group.label}" if group.label else ""
        if missing:
            notes.append(f"{len(group.jobs)} of {wanted[group.label]} planned draws{of} are done: "
                         f"{missing} are missing, and every p counts those that are there.")
        if len(group.jobs) < controls.FEWEST:
            notes.append(f"{len(group.jobs)} draws{of}: under {controls.FEWEST} no p can fall below .05, and none is given.")
        if not drawn:
            notes.append(f"The summaries{of} hold no rows of random draws: nothing to compare with.")
    return Pooled(groups, rows, null=null, notes=notes, draws=True)


def _over_seeds(jobs: Sequence[Mapping], normalised: Mapping[str, str], family: Sequence[str], in_groups) -> Pooled:
    groups, notes = grouped(jobs, [SEED]), []
    stacks, rows = [], []
    for group in groups:
        runs, conditions, layers = _measured(group, notes, in_groups)
        normal = {metric: name for metric, name in normalised.items() if any(name in job_metrics for _, job_metrics in runs)}
        stacks.append((stack([run for run, _ in runs], conditions, normalised=normal, family=family), conditions))
        rows += [_named(row | layers.get(tuple(row["conditions"].items()), {}), group)
                 for row in estimate(*stacks[-1], resamples=_resamples(jobs))]
    differences = []
    if len(groups) == 2:
        (one, conditions), (other, others) = stacks
        if conditions == others and _depths(one, conditions) == _depths(other, conditions):
            names = _contrast(*groups)
            differences = [_named(row, Group(names, [])) for row in difference(one, other, conditions,
                                                                             resamples=_resamples(jobs))]
        else:
            notes.append("The two groups have different cells (layers or conditions): their curves are shown together, "
                         "and no difference is taken cell by cell.")
    elif len(groups) > 2:
        notes.append(f"{len(groups)} groups: their curves are shown together; differences are taken between two only.")
    return Pooled(groups, rows, differences, notes=notes)


def _measured(group: Group, notes: list[str],
              in_groups) -> tuple[list[tuple[Measured, set[str]]], list[str], dict[tuple, dict]]:
    """What statistics need of each of the group's runs, the conditions that make its cells, and by these the layers of a
    window where the runs spell them out, for others lie between."""
    runs, conditions, layers = [], [], {}
    for job in group.jobs:
        folder = Path(job["path"])
        summary = read_json(folder / "summary.json")
        if not summary or not (folder / "effects.parquet").is_file():
            raise UserError(f"{folder} has no effects to put together; run that job again with force=true")
        conditions = list(summary[0]["conditions"])
        layers |= {tuple(row["conditions"].items()): {"layers": row["layers"]} for row in summary if "layers" in row}
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        effects = in_groups(pq.read_table(folder / "effects.parquet"))
        clusters = {record["prompt_id"]: record.get("cluster") or record["prompt_id"]
                    for record in read_json(folder / "prompts.json")}
        ids = effects["prompt_id"].unique().to_pylist()
        if alone := [i for i in ids if i not in clusters]:
            said = f"{len(alone)} prompts are not in prompts.json: each is taken for a cluster of its own ({job['label']})."
            notes.append(said)
        runs.append((Measured(config["seed"], effects, {i: clusters.get(i, i) for i in ids},
                              config["method"].get("tau") or 0.0), {row["metric"] for row in summary}))
    return runs, conditions, layers


def _resamples(jobs: Sequence[Mapping]) -> int:
    config = yaml.safe_load((Path(jobs[0]["path"]) / "config.yaml").read_text(encoding="utf-8"))
    return config["method"].get("resamples") or 2000


def _depths(stacks: Mapping, conditions: Sequence[str]) -> dict[tuple, set]:
    """The layers each map has: layer 3 of 6 and layer 3 of 48 are not the same place."""
    at = next((i for i, name in enumerate(conditions) if name in ("layer", "window_start")), None)
    return {} if at is None else {name: {cell[at] for cell in each.cells} for name, each in stacks.items()}


def _contrast(one: Group, other: Group) -> dict[str, str]:
    return {key: one.names[key] if one.names[key] == other.names[key] else f"{one.names[key]} − {other.names[key]}"
            for key in one.names}


def _named(row: Mapping, group: Group) -> dict:
    return {**row, "conditions": {**group.names, **row["conditions"]}}
