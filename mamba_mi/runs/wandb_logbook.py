"""Weights & Biases as the logbook of a run: online, or into the run's own folder to be synced later.

Whatever fails here, be it the server, wandb or the disk, is said once, and the run goes on without.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..config import UserError, did_you_mean, typed
from . import wandb_names as names
from .logbook import Card
from .wandb_mode import Chosen, check_mode, choose, library, shut_down

FILES = ("config.yaml", "effects.parquet", "prompts.json", "report.html", "summary.json")


@dataclass(frozen=True)
class Knobs:
    """Keys of conf/logger/wandb.yaml."""

    mode: str = "auto"
    project: str = "mamba_mi"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=lambda: ["report.html", "summary.json"])
    patience: float = 30.0


class WandbLogbook:
    """One W&B run a run, of the same id; a run that is resumed is continued there too."""

    def __init__(self, knobs: Mapping, card: Card, say: Callable[[str], None]):
        self._knobs, self._card, self._say = _typed(knobs), card, say
        self._run, self._axes = None, set()
        self.facts = {"name": "wandb"}
        try:
            self._open(choose(self._knobs.mode))
        except Exception as e:  # wandb cannot even be loaded, or read its settings
            self._give_up("the start", e)

    @staticmethod
    def check(knobs: Mapping) -> None:
        typed_knobs = _typed(knobs)
        for name in typed_knobs.files:
            if name not in FILES:
                raise UserError(f"logger.files={name}: there are {', '.join(FILES)}{did_you_mean(name, FILES)}")
        if not typed_knobs.patience > 0:
            raise UserError(f"logger.patience={typed_knobs.patience}: give some seconds, such as 30")
        check_mode(typed_knobs.mode)

    def config(self, settings: Mapping) -> None:
        self._tell("the configuration", lambda run: run.config.update(dict(settings), allow_val_change=True))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._tell("step by step", lambda run: self._log(run, values, step))

    def summary(self, rows: Sequence[Mapping], headline: Sequence[Mapping], measured: Mapping) -> None:
        self._tell("the summary", lambda run: self._summarise(run, rows, headline, measured))

    def figure(self, path: Path) -> None:
        self._tell("a figure", lambda run: run.log({f"figures/{path.stem}": library().Image(str(path))}))

    def close(self, status: str) -> None:
        if status == "done":
            self._tell("the files", self._save_files)
        self._tell("the end", lambda run: run.finish(exit_code=0 if status == "done" else 1))
        self._run = None

    def _open(self, chosen: Chosen) -> None:
        self.facts.update(mode=chosen.mode, why=chosen.why)
        if chosen.mode == "disabled":
            return self._say(f"W&B is disabled ({chosen.why})")
        try:
            self._run = self._started(chosen.mode)
        except Exception as e:
            return self._recover(chosen, e)
        self.facts.update(version=library().__version__, path=str(Path(self._run.dir).parent), url=self._run.url)
        self._say(self._where(chosen))

    def _started(self, mode: str):
        wandb, knobs, card = library(), self._knobs, self._card
        settings = wandb.Settings(silent=True, console="off", disable_git=True, init_timeout=knobs.patience,
                                  finish_timeout=knobs.patience, finish_timeout_raises=True)
        return wandb.init(mode=mode, dir=str(card.folder), id=card.run_id, resume="allow", reinit="create_new",
                          project=knobs.project, entity=knobs.entity, group=card.group, job_type=card.experiment,
                          name=card.name or f"{card.experiment} {card.run_id}", settings=settings,
                          tags=names.tags([*card.tags, *knobs.tags]))

    def _recover(self, chosen: Chosen, error: Exception) -> None:
        """After a start that failed: offline if it was to be online, else without W&B."""
        shut_down()  # it holds on to the id of a run that never began
        if chosen.mode == "online":
            self._open(Chosen("offline", f"online failed ({_line(error)})"))
        else:
            self._give_up("the start", error)

    def _where(self, chosen: Chosen) -> str:
        if chosen.mode == "online":
            return f"W&B: {self._run.url}"
        return f"W&B is offline ({chosen.why}); later: wandb sync {self.facts['path']}"

    def _tell(self, what: str, call: Callable[[object], object]) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as e:
            self._give_up(what, e)

    def _give_up(self, what: str, error: Exception) -> None:
        run, self._run = self._run, None
        self.facts["trouble"] = f"{what}: {_line(error)}"
        kept = f"; what it has: wandb sync {self.facts['path']}" if run else ""
        self._say(f"W&B failed at {what} ({_line(error)}); the run goes on without it{kept}")
        with suppress(Exception):
            run and run.finish(exit_code=1)
        shut_down()  # it may be what failed

    def _log(self, run, values: Mapping[str, float], step: int) -> None:
        topic = next(iter(values)).partition("/")[0]
        # an axis of its own, for wandb's one counter never goes back, as a run resumed from a checkpoint does
        if topic not in self._axes:
            run.define_metric(f"{topic}/*", step_metric=f"{topic}/step")
            self._axes.add(topic)
        run.log({**values, f"{topic}/step": step})

    def _summarise(self, run, rows, headline, measured: Mapping) -> None:
        counts = {"rows/summary": len(rows), "rows/headline": len(headline),
                  "rows/headline_logged": min(len(headline), names.MOST)}
        run.summary.update({**names.headline_keys(headline), **dict(names.flat(measured, "run")), **counts})
        columns, data = names.table_of(rows)
        Table = library().Table  # last, for online it needs most of the server
        for number, start in enumerate(range(0, len(data), Table.MAX_ROWS), start=1):  # it cuts off the rest in silence
            piece = data[start:start + Table.MAX_ROWS]
            run.log({"summary" if number == 1 else f"summary_{number}": Table(columns=columns, data=piece)})

    def _save_files(self, run) -> None:
        folder = self._card.folder.absolute()
        for name in self._knobs.files:
            run.save(str(folder / name), base_path=str(folder), policy="now")


def _typed(knobs: Mapping) -> Knobs:
    return typed(Knobs, {key: value for key, value in knobs.items() if key != "name"}, "logger")


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
