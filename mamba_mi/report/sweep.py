"""The report of a sweep: what was swept, how its jobs ended, and what they show together."""
from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mamba_mi.report import families
from mamba_mi.report import sweep_words as say
from mamba_mi.report.figures import house_style, save
from mamba_mi.report.figures.sweep_controls import sweep_controls
from mamba_mi.report.figures.sweep_curves import has_layers, sweep_curves, sweep_list
from mamba_mi.report.html import JobLine, Page, render
from mamba_mi.report.words import share

LARGE = 10  # cells of draws in the table
MANY = 20  # jobs, of more only those that are not done are listed one by one


@dataclass(frozen=True)
class Found:
    """A sweep's results, ready to be told: its record, its pooled rows, and an experiment for each group.

    An experiment here is one without a model: its question, headline and findings read a summary alone.
    """

    record: dict
    pooled: object
    experiments: Sequence
    varied: str = ""
    parts: list[say.Part] = field(default_factory=list)

    def __post_init__(self):
        pairs = zip(self.pooled.groups, self.experiments, strict=True)
        self.parts.extend(say.part(group, experiment, self.pooled.rows) for group, experiment in pairs)

    @property
    def metric(self) -> str:
        """The headline's metric."""
        named = [row["metric"] for part in self.parts for row in part.headline]
        known = {row["metric"] for row in self.pooled.rows}
        ratios = [name for part in self.parts for name in part.experiment.normalised.values() if name in known]
        return next(iter([*named, *ratios, *sorted(known)]), "")

    @property
    def differences(self) -> list[dict]:
        """The rows between the two groups, without the groups' keys."""
        keys = self.pooled.groups[0].names if self.pooled.groups else {}
        return [say._without(row, keys) for row in self.pooled.differences]

    @property
    def findings(self) -> list[str]:
        whole = all(job["status"] in ("done", "skipped") for job in self.record["jobs"])
        first = [] if whole else [f"{say.counted(self.record['jobs'])}: what follows rests on those that are."]
        first += families.differ(self.models)
        if self.pooled.draws:
            return first + say.of_draws(self.pooled.rows, self.pooled.null, self.metric)
        return first + say.of_groups(self.parts, self.differences)

    @cached_property
    def models(self) -> dict[str, dict]:
        """What the manifests say of each model; runs of before they said it are left out."""
        jobs = [group.jobs[0] for group in self.pooled.groups]
        told = [json.loads((Path(job["path"]) / "manifest.json").read_text(encoding="utf-8")).get("model") or {} for job in jobs]
        named = [Path(job["path"]).parent.name for job in jobs]
        return {name: model for name, model in zip(named, told, strict=True) if "mixed" in model}

    @property
    def table(self) -> list[dict]:
        if self.pooled.draws:
            return [{key: row[key] for key in row if key in say.JUDGED or key.startswith("control_p")}
                    for row in say.judged(self.pooled.rows, self.metric)[:LARGE]]
        return say.table(self.parts, self.differences) if self.parts else []


def write_sweep_report(folder: Path, found: Found) -> Path:
    """report.html and figures/ in the sweep's folder."""
    record, pooled = found.record, found.pooled
    question = found.experiments[0].question if found.experiments else "No run of this sweep has a result yet."
    first = next((part.experiment.name for part in found.parts), record["experiment"])
    page = Page(
        title=f"Sweep · {first} · {_swept(record)}" if _swept(record) else f"Sweep · {first}",
        question=question,
        setting=_setting(found),
        findings=found.findings or [f"{say.counted(record['jobs'])}."],
        table=found.table,
        figures=_figures(folder, found) if pooled.rows else [],
        caveats=_caveats(found),
        listings=families.table(found.models),
        reproduce=record["command"],
        config_yaml=_first_config(pooled),
        manifest={key: value for key, value in record.items() if key != "jobs"},
        complete=say.complete([*pooled.rows, *pooled.differences], found.metric),
        jobs=job_lines(folder, found),
    )
    path = folder / "report.html"
    path.write_text(render(page), encoding="utf-8")
    return path


def job_lines(folder: Path, found: Found) -> list[JobLine]:
    """Every planned job: what it was, how it ended, its largest effect or its error, and where its report lies."""
    group_of = {job["number"]: part for group, part in zip(found.pooled.groups, found.parts, strict=True)
                for job in group.jobs}
    return [JobLine(job["label"] or f"run {job['number'] + 1}", job["status"], say.STATUSES[job["status"]], job["run_id"],
                    job["error"] or _headline(job, group_of.get(job["number"]), found.metric), _link(folder, job))
            for job in found.record["jobs"]]


def _headline(job: Mapping, part: say.Part | None, metric: str) -> str:
    """What a run found in a sentence: its experiment's first, or where its effect is largest."""
    if part is None:
        return ""
    rows = json.loads((Path(job["path"]) / "summary.json").read_text(encoding="utf-8"))
    drawn = [row for row in rows if row["conditions"].get("draw") is not None and row["metric"] == metric]
    own = copy(part.experiment)
    own.recall(Path(job["path"]))
    if said := [] if drawn else own.findings(rows):
        return said[0]
    rows = [row for row in drawn or part.experiment.headline(rows) if row["mean"] is not None]
    if not rows:
        return "no estimate: every prompt is excluded"
    top = max(rows, key=lambda row: abs(row["mean"]))
    return f"largest effect {share(top)}: {say.cell(top['conditions'])}"


def _link(folder: Path, job: Mapping) -> str:
    """The run's report as seen from the sweep's; nothing where there is none."""
    report = Path(job["path"]) / "report.html"
    return quote(os.path.relpath(report, folder)) if report.is_file() else ""


def jobs_table(folder: Path, found: Found) -> Table:
    """The jobs for the terminal."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), collapse_padding=True, title_justify="left",
                  title=Text(say.counted(found.record["jobs"]), style="bold"))
    for name in ("job", "status", "headline or error"):
        table.add_column(name, overflow="fold")
    lines = job_lines(folder, found)
    shown = lines if len(lines) <= MANY else [line for line in lines if not line.good]
    for line in shown:
        table.add_row(*map(Text, (line.label, line.said, line.text)))
    if len(shown) < len(lines):
        table.add_row(Text(f"{len(lines) - len(shown)} others"), Text("done"), Text("listed in the report"))
    return table


def _swept(record: Mapping) -> str:
    return "; ".join(f"{key}: {_listed(values)}" for key, values in _axes(record).items())


def _axes(record: Mapping) -> dict[str, list[str]]:
    axes: dict[str, list[str]] = {}
    for job in record["jobs"]:
        for key, value in job["swept"].items():
            if value not in axes.setdefault(key, []):
                axes[key].append(value)
    return axes


def _listed(values: Sequence[str]) -> str:
    return ", ".join(values) if len(values) <= 8 else f"{values[0]} … {values[-1]} ({len(values)} values)"


def _setting(found: Found) -> dict[str, str]:
    record, config = found.record, _config(found.pooled)
    shared = {"model": config["model"]["name"], "dataset": config["dataset"]["name"]} if config else {}
    out = shared | {key: _listed(values) for key, values in _axes(record).items()}
    out |= {"runs": say.counted(record["jobs"]), "begun": record["started"].replace("+00:00", " UTC")}
    if (seeds := _axes(record).get("seed")) and len(seeds) > 1 and found.varied:
        out["a seed decides"] = found.varied
    return out


def _caveats(found: Found) -> list[str]:
    seeds = max((row.get("n_seeds") or 1 for row in found.pooled.rows), default=0)
    said = list(dict.fromkeys(found.pooled.notes))
    if found.pooled.draws and found.experiments:
        return said + found.experiments[0].caveats(found.pooled.rows)
    if not found.pooled.rows:
        return said
    said += _noted(found)
    if seeds > 1:
        said.append(f"The seed decided {found.varied}. n counts a prompt once for each seed that chose it; prompts with one "
                    "subject form a cluster, and p flips a cluster's sign in all seeds together.")
    if 1 < seeds < 5:
        said.append(f"With {seeds} seeds the mean is that of the seeds' estimates and the interval is Student's over them "
                    f"(t with {seeds - 1} degrees of freedom): look at the points. From five seeds on, seeds and clusters "
                    "are resampled, crossed.")
    if seeds >= 5:
        said.append("The intervals resample seeds and clusters, crossed (pigeonhole bootstrap, percentiles); a cluster that a "
                    "seed did not choose counts zero there.")
    if found.pooled.differences:
        said.append("Differences are paired by seed and, where both groups chose a subject, by cluster; their n is the "
                    "smaller group's. Two models that differ in architecture differ in their training too: one pair of "
                    "models is no evidence about the architectures at large.")
    return said + ["The caveats of the single runs stand in their reports, linked above."]


def _noted(found: Found) -> list[str]:
    """What the statistics noted of headline cells: a missing interval, or a point, must not read as a narrow one."""
    counted: dict[str, list[str]] = {}
    for part in found.parts:
        cells = {say.key_of(row) for row in part.headline}
        shown = [row for row in part.rows if say.key_of(row) in cells]
        of = f" of {part.label}" if part.label else ""
        for why, count in Counter(row["note"] for row in shown if row["note"]).most_common():
            counted.setdefault(why, []).append(f"{count} of the {len(shown)} cells shown{of}")
    return [f"In {'; '.join(where)} the interval is missing, a point, or of fewer seeds: {why}." for why, where in counted.items()]


def _first_config(pooled) -> str:
    jobs = [job for group in pooled.groups for job in group.jobs]
    return (Path(jobs[0]["path"]) / "config.yaml").read_text(encoding="utf-8") if jobs else ""


def _config(pooled) -> dict:
    return yaml.safe_load(_first_config(pooled)) or {}


def _figures(folder: Path, found: Found) -> list[tuple[Path, str]]:
    with house_style():
        drawn = _of_draws(found) if found.pooled.draws else _of_groups(found)
    return [(save(figure, folder, name), caption) for name, (figure, caption) in drawn.items()]


def _of_draws(found: Found) -> dict:
    rows = say.judged(found.pooled.rows, found.metric)
    null = [each for each in found.pooled.null if each["metric"] == found.metric]
    return {"sweep_controls": sweep_controls(rows, null, _subtitle(found))} if rows and null else {}


def _of_groups(found: Found) -> dict:
    cells = {say.key_of(row) for part in found.parts for row in part.headline if row["metric"] == found.metric}
    groups = {part.label: [row for row in part.rows if say.key_of(row) in cells] for part in found.parts}
    every = [row for rows in groups.values() for row in rows]
    if not every:
        return {}
    if not has_layers(every):
        return {"sweep_list": sweep_list(groups, _subtitle(found))}
    drawn = {"sweep_curves": sweep_curves(groups, _subtitle(found))}
    apart = [row for row in found.differences if say.key_of(row) in cells]
    if apart:
        label = " − ".join(groups)
        figure, caption = sweep_curves({label: apart}, _subtitle(found), f"The difference {label}")
        drawn["sweep_differences"] = figure, f"{label}. {caption}"
    return drawn


def _subtitle(found: Found) -> str:
    config = _config(found.pooled)
    names = [] if any("model" in group.names for group in found.pooled.groups) else [config["model"]["name"]]
    return " · ".join([*names, config["dataset"]["name"], say.counted(found.record["jobs"])])
