"""A sweep from its plan to its report. `python -m mamba_mi.runs.aggregate DIR` makes the end of it again."""
from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mamba_mi.cli.checking import Plan
from mamba_mi.config import UserError
from mamba_mi.runs import aggregate


def begin(plan: Plan, argv: Sequence[str]) -> Path:
    """The sweep's folder, a new one, with the plan in it: nothing has run yet."""
    from mamba_mi.runs.manifest import command_line

    folder = aggregate.unique_folder(plan.folder)
    experiments = dict.fromkeys(job.settings["method"]["name"] for job in plan.jobs)
    jobs = [{"label": job.label, "swept": job.swept, "overrides": job.overrides, "settings": job.settings}
            for job in plan.jobs]
    aggregate.begin(folder, jobs, experiment=" ".join(experiments), argv=argv, command=command_line(list(argv)))
    return folder


def conclude(folder: Path, over: bool = True) -> dict:
    """Settle how every job ended, put the results together, write the report, show the table; the record."""
    from mamba_mi.runs.files import write_json

    record = aggregate.settle(folder, over)
    found = _found(record)
    write_json(folder / "summary.json", [*found.pooled.rows, *found.pooled.differences])
    if found.pooled.null:
        write_json(folder / "controls.json", found.pooled.null)
    _tell(folder, found)
    return record


def _found(record: dict):
    """The results of the jobs that are done, and for each group of them an experiment that can read a summary."""
    from mamba_mi.report.sweep import Found
    from mamba_mi.runs.pooling import Pooled, pool

    kinds = set() if " " in record["experiment"] else _kinds(record)
    if len(kinds) != 1:
        note = "The runs are of different experiments: each has a report of its own, and none is put together here."
        return Found(record, Pooled([], [], notes=[note]), [])
    (kind,) = kinds
    pooled = pool(record["jobs"], normalised=kind.normalised, family=kind.family, in_groups=kind.in_groups)
    readers = [_reader(kind, Path(group.jobs[0]["path"])) for group in pooled.groups]
    varied = ("the weights the training starts from and the order of its data, and the resampling" if kind.fresh_model
              else "prompts, pairing and resampling, not the weights")
    return Found(record, pooled, readers, varied)


def _kinds(record: dict) -> set[type]:
    """The experiment as each run did it on its data set; as it is by itself where none has come so far."""
    from mamba_mi import experiments

    begun = [Path(job["path"]) for job in record["jobs"] if (Path(job["path"]) / "config.yaml").is_file()]
    kind = experiments.get(record["experiment"])
    return {kind.on(_config(folder)["dataset"]["name"]) for folder in begun} or {kind}


def _config(folder: Path) -> dict:
    import yaml

    return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))


def _reader(kind, folder: Path):
    """The experiment of a run without its model: enough for what it says of a summary."""
    from mamba_mi import experiments

    config = _config(folder)
    setting = experiments.Setting(config["seed"], config["cone"]["memory"])
    return kind(experiments.knobs_of(kind, config["method"]), None, setting)


def _tell(folder: Path, found) -> None:
    from rich.console import Console

    from mamba_mi.report.sweep import jobs_table, write_sweep_report

    console, path = Console(), write_sweep_report(folder, found)
    console.print()
    console.print(jobs_table(folder, found))
    for sentence in found.findings:
        console.print(f"• {sentence}", highlight=False, markup=False)
    console.print(f"report: {path}", soft_wrap=True, highlight=False, markup=False)


def main(words: Sequence[str]) -> int:
    """The command `python -m mamba_mi.runs.aggregate DIR …`."""
    if not words or any(word.startswith("-") for word in words):
        print("usage: python -m mamba_mi.runs.aggregate DIR   a sweep's folder, such as multirun/patching/2026-01-31_12-00-00",
              file=sys.stderr)
        return 1
    code = 0
    for word in words:
        try:
            conclude(_from_where_it_ran(Path(word).resolve()), over=False)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 1
    return code


def _from_where_it_ran(folder: Path) -> Path:
    """Go to the folder the sweep was started in, for its runs' paths may be relative to it; the sweep's folder."""
    record = aggregate.read(folder)
    if not any(Path(job["path"]).exists() for job in record["jobs"]) and Path(record["cwd"]).is_dir():
        os.chdir(record["cwd"])
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
