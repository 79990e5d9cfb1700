"""The command line: `python launch.py`, or `mamba-mi` from any folder.

Everything a user can mistype is found before Hydra runs anything (`checking`), and answered in a line. What goes
wrong inside a run is a line too when the user can mend it, and a traceback when only a programmer can. In a sweep
the other runs go on. The exit code is 0, 1 (refused or failed) or 130 (interrupted).
"""
from __future__ import annotations

import itertools
import os
import sys
import tempfile
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from mamba_mi import __version__
from mamba_mi.cli import flags
from mamba_mi.config import UserError, processes

HERE = Path(__file__).resolve().parents[1]


@dataclass
class Progress:
    """What this process knows of its own jobs; a launcher's worker is another process and has the empty one."""

    process: int = 0
    argv: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


PROGRESS = Progress()


def main() -> None:
    """Do what the command line says, and exit with a code other than 0 when it could not be done."""
    try:
        code = _obey(sys.argv[1:])
    except UserError as error:
        code = _say(error)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
        code = 130
    if code:
        sys.exit(code)


def conf_dir() -> Path:
    """The folder of the configuration: inside the installed package, or beside it in a checkout."""
    for folder in (HERE / "conf", HERE.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(f"the configuration is missing: there is no conf/config.yaml in {HERE} nor beside it; "
                    "install mamba_mi again")


def _obey(argv: list[str]) -> int:
    if "--version" in argv:  # Hydra's own would answer with Hydra's
        print(f"mamba_mi {__version__}")
        return 0
    asked = flags.parse(argv)
    if asked.help:
        from mamba_mi.cli.page import help_text

        print(help_text(conf_dir(), _command()))
        return 0
    if flags.is_about_hydra(asked):
        return _hand_over(asked.flags, asked.overrides)
    from mamba_mi.cli.checking import check

    plan = check(asked, conf_dir(), _command())
    if asked.cfg:
        return _hand_over(asked.flags, plan.words)
    PROGRESS.process, PROGRESS.argv, PROGRESS.failed = os.getpid(), sys.argv, []
    if plan.folder is not None and not plan.dry_run:
        return _sweep(asked.flags, plan)
    with tempfile.TemporaryDirectory() as nowhere:  # Hydra makes a sweep's folder, a dry run none
        # a dry run has nothing to run side by side: it needs no launcher
        words = [word for word in plan.words if not (plan.dry_run and word.startswith("launcher="))]
        _hand_over(asked.flags, words, [_sweep_dir(nowhere)] if plan.dry_run else [])
    return 1 if PROGRESS.failed else 0


def _sweep(given: list[str], plan) -> int:
    """All jobs of a sweep, then what they show together: also when a launcher failed or the user has had enough."""
    from mamba_mi.cli import sweeping

    if processes() > 1:
        raise UserError(f"WORLD_SIZE={processes()}: a sweep is started without torchrun; launcher=joblib runs its jobs side by side")
    folder = sweeping.begin(plan, sys.argv)
    try:
        _hand_over(given, plan.words, [_sweep_dir(folder)])
    finally:
        jobs = sweeping.conclude(folder)["jobs"]
    bad = [job for job in jobs if job["status"] not in ("done", "skipped")]
    if bad:
        lines = (f"  run {job['number'] + 1} of {len(jobs)}: {job['label']}: {job['status']}: {job['error']}" for job in bad)
        print("\n".join([f"\n{len(bad)} of {len(jobs)} runs are not done:", *lines]), file=sys.stderr)
    return 1 if bad else 0


def _sweep_dir(folder: str | Path) -> str:
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.sweep.dir='{quoted}'"


def task(cfg) -> object:
    """One job. A module's function, so that the worker of any launcher finds it by its name."""
    ours = PROGRESS.process == os.getpid()
    if ours:
        sys.argv = PROGRESS.argv  # not Hydra's: the manifest shows the command as the user gave it
    folder = _folder()
    if folder is not None:
        return _job(cfg, folder)
    try:
        return import_module("mamba_mi.runner").run(cfg)
    except Exception as error:
        if not ours:
            raise  # it reaches us through the launcher
        _say(error)
        PROGRESS.failed.append(_line(error))


def _job(cfg, folder: Path) -> object:
    """One job of a sweep. It notes its start and its end in the sweep's record, whatever process it is in."""
    from hydra.core.hydra_config import HydraConfig

    from mamba_mi.runs import aggregate

    number, record = HydraConfig.get().job.num, aggregate.read(folder)
    jobs, sys.argv = record["jobs"], record["argv"]
    if len(jobs) > 1:
        print(f"\nrun {number + 1} of {len(jobs)}: {jobs[number]['label']}", flush=True)
    aggregate.note(folder, number, "running")
    try:
        done = import_module("mamba_mi.runner").run(cfg)
    except Exception as error:
        _say(error)
        aggregate.note(folder, number, "failed", _line(error))
        return None  # raised, it would keep a launcher's other jobs from being heard
    except BaseException:
        aggregate.note(folder, number, "interrupted", "interrupted: the same command goes on with it")
        raise
    aggregate.note(folder, number, "done")
    return done


def _folder() -> Path | None:
    """The folder of the sweep this is a job of, if it keeps a record: a dry run does not."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    folder = Path(HydraConfig.get().sweep.dir)
    return folder if (folder / "sweep.json").is_file() else None


def _hand_over(*words: Iterable[str]) -> int:
    import hydra

    called = sys.argv
    sys.argv = [called[0], *itertools.chain(*words)]
    try:
        hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(task)()
    finally:
        sys.argv = called
    return 0


def _say(error: Exception) -> int:
    """The error on stderr: a line for what the user can mend, the traceback of a bug."""
    ours = _is_users(error)
    if not ours or os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    where = f"error (process {int(os.environ['RANK']) + 1} of {processes()})" if processes() > 1 else "error"
    print(f"{where}: {_line(error)}" if ours else f"{where}: this is a fault of the program, not of the command; please "
          f"report it with the lines above (mamba_mi {__version__})", file=sys.stderr)
    return 1


def _is_users(error: Exception) -> bool:
    trace = sys.modules.get("mamba_mi.trace")  # it imports torch: before a run there is no need of it
    return isinstance(error, UserError) or bool(trace) and isinstance(error, trace.NeverReached)


def _line(error: Exception) -> str:
    said = str(error) if _is_users(error) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())


def _command() -> str:
    """How the user calls us: `python launch.py` or `mamba-mi`."""
    program = Path(sys.argv[0]).name
    return f"python {program}" if program.endswith(".py") else program
