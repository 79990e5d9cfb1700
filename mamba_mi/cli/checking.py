"""Everything that can be wrong with a command, found before anything is run, each answered in a line."""
from __future__ import annotations

import itertools
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from mamba_mi.cli.composing import Composer, resolved
from mamba_mi.config import UserError


@dataclass(frozen=True)
class Job:
    """One run to be: what of it is swept over, as the user wrote it and by key, all its overrides, its settings."""

    label: str = ""
    swept: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    settings: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a checked command will run: the words for Hydra, its jobs, and for a sweep the folder it is recorded in."""

    dry_run: bool
    words: tuple[str, ...]
    jobs: tuple[Job, ...] = (Job(),)
    folder: Path | None = None


def check(asked: Namespace, conf: Path, command: str) -> Plan:
    """The plan of a command in which nothing is wrong; a UserError for the first thing that is."""
    with initialize_config_dir(str(conf), version_base="1.3", job_name="mamba_mi"):
        composer = Composer(asked.config_dir)
        given = composer.parse(asked.overrides)
        if asked.multirun:
            return _sweep(composer, given)
        return _single(composer, given, " ".join([command, "-m", *asked.overrides]))


def _single(composer: Composer, given: list[Override], as_sweep: str) -> Plan:
    for override in given:
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: several values are several runs, which need -m: {as_sweep} "
                            f"(one value that is a list has brackets: {override.key_or_group}=[a,b])")
    for override in given:
        if override.key_or_group == "launcher":
            raise UserError(f"{override.input_line}: a launcher starts the jobs of a sweep, which need -m: {as_sweep}")
    cfg = composer.checked(given)
    if named := _set_of_runs(cfg):
        by = composer.presets(cfg) or "the configuration"
        raise UserError(f"several runs ({_words(named)}) are asked for by {by}; they need -m: {as_sweep}")
    return Plan(cfg.dry_run, tuple(override.input_line for override in given))


def _sweep(composer: Composer, given: list[Override]) -> Plan:
    shared = composer.composed([o for o in given if not o.is_sweep_override()])
    words = [_for_the_jobs(composer, shared, override) for override in given]
    named = _set_of_runs(shared)
    swept = composer.parse([*(f"{key}={value}" for key, value in named.items()), *words])
    # as Hydra's sweeper has it: of a key given twice the last counts, in the place of the first
    axes = {override.get_key_element(): _lines(composer, override) for override in swept}
    jobs, checked = [], []
    for lines in itertools.product(*axes.values()):
        cfg = composer.checked(composer.parse(lines))
        swept = [line for line, axis in zip(lines, axes.values(), strict=True) if len(axis) > 1]
        label = " ".join(swept)
        if _set_of_runs(cfg) != named:
            raise UserError(f"{label}: a set of runs cannot itself be swept over; name one set, or list the values")
        checked.append(cfg)
        jobs.append(Job(label, dict(line.split("=", 1) for line in swept), lines, resolved(cfg)))
    folder = Path(checked[0].hydra.sweep.dir)
    return Plan(all(cfg.dry_run for cfg in checked), tuple(words), tuple(jobs), folder)


def _for_the_jobs(composer: Composer, shared: DictConfig, override: Override) -> str:
    """The override as Hydra's sweeper takes it.

    Hydra first composes what the jobs share, and refuses a key of a group that is still to be swept over:
    `-m model=mamba-130m,mamba2-130m dataset.path=FILE`. A choice of one value is left to the jobs.
    """
    if override.is_sweep_override() or composer.has(shared, override):
        return override.input_line
    if override.value() is None:  # Hydra has no choice(null)
        group = override.key_or_group.partition(".")[0]
        raise UserError(f"{override.input_line}: not every {group} has such a key; name the {group} as well: {group}=OPTION")
    return f"{override.get_key_element()}=choice({override.get_value_element_as_str()})"


def _lines(composer: Composer, override: Override) -> list[str]:
    """One override a value, as Hydra will give them to the jobs."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [override.input_line]
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: an interval has no list of values; write {key}=a,b or {key}=range(0,3)")
    lines = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if twice := [line for line, count in Counter(lines).items() if count > 1]:
        raise UserError(f"{override.input_line}: {', '.join(twice)} is there twice, and would be one run")
    if not lines:
        known = composer.options(override.key_or_group)
        raise UserError(f"{override.input_line}: matches nothing; {key} has {', '.join(known) or 'no named options'}")
    return lines


def _set_of_runs(cfg: DictConfig) -> Mapping[str, str]:
    """What seeds=, sweep= or any other preset hands to Hydra's sweeper."""
    return dict(cfg.hydra.sweeper.get("params") or {})


def _words(named: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in named.items())
