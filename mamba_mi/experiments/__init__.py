"""Experiments: a file each, whose name is the registry's key. An experiment yields effects, a table a batch.

Everything else (keeping, resuming, statistics, figures, reports) is written once, in the runner and the rooms below.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import ClassVar

import pyarrow as pa

from mamba_mi.config import UserError, did_you_mean, typed
from mamba_mi.data import Batch, Dataset, Pair, batches, is_corpus
from mamba_mi.interventions import Ledger
from mamba_mi.models import LM, blank, load
from mamba_mi.models.variants import Meant
from mamba_mi.report.words import Columns
from mamba_mi.together import BATCHES, Alone

UNTESTED = dict.fromkeys(("effect_size", "p", "p_adjusted", "p_bh"))  # of a row that is a level, tested against nothing


@dataclass(frozen=True)
class Setting:
    """What an experiment is told besides its knobs: the seed, the cone's memory in bytes, where hooks are counted.

    `log(values, step)` shows numbers while a fit goes on; what comes before a key's `/` says of what. `model` is what the
    configuration calls the checkpoint, `reference` the name and the path of the published numbers to compare with. With
    `force` what an earlier run left may be made again.
    """

    seed: int
    memory: int
    ledger: Ledger = field(default_factory=Ledger)
    log: Callable[[Mapping[str, float], int], None] = lambda values, step: None
    model: str = ""
    reference: Mapping[str, str | None] = field(default_factory=dict)
    ranks: Alone = field(default_factory=Alone)  # the processes of the run
    force: bool = False


class Experiment:
    """Subclass in `experiments/<name>.py`, with a frozen dataclass `Knobs` for the keys of conf/method/<name>.yaml.

    `needs` is "pairs", "prompts" or "nothing": what the runner selects from the data set and hands to `step`.
    `conditions` are the columns that make a cell of the summary, `normalised` maps a metric to its ratio's name.
    `train_size` items of subjects that are not measured are kept for `fit`. A `summary_only` run is one job of many
    that make one result: it draws no figures and no report. `right_and_wrong` prompts are what it counts, so the runner
    refuses to choose those that the model gets right. A module whose name starts with _ is part of another.
    Batches are shared out over processes unless `shares` says otherwise: `step` may not need what another `step` left.
    """

    Knobs: ClassVar[type]
    figures: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[str] = "prompts"
    question: ClassVar[str] = ""
    conditions: ClassVar[tuple[str, ...]] = ()
    family: ClassVar[tuple[str, ...]] = ("direction",)
    normalised: ClassVar[Mapping[str, str]] = {}
    train_size: ClassVar[int] = 0
    same_template: ClassVar[bool] = True  # whether a pair's two prompts share their template
    summary_only: ClassVar[bool] = False
    fresh_model: ClassVar[bool] = False  # True: the runner hands over an own copy whose weights may change
    of_one_model: ClassVar[bool] = True  # False: it takes its models itself, whatever model= names
    shares: ClassVar[str] = BATCHES  # what processes that torchrun starts share: those of `step`, the FIT, or "", nothing
    right_and_wrong: ClassVar[bool] = False
    compares: ClassVar[bool] = False  # with published numbers, those that reference= names

    def __init__(self, knobs, lm, setting: Setting):
        self.knobs, self.lm, self.setting = knobs, lm, setting

    @classmethod
    def on(cls, dataset: str) -> type[Experiment]:
        """The experiment as it is done on the data set of that name; a UserError where it cannot be."""
        if is_corpus(dataset):
            raise UserError(f"dataset={dataset}: running text without prompts, which experiment=train alone reads; give another dataset")
        return cls

    @classmethod
    def model(cls, knobs, source: str, *, name: str, variant: str, sizes: Mapping, asked: Sequence[str], tokenizer: str | None,
              seed: int, options: Mapping, meant: Meant | None = None, **how) -> LM:
        """The model it runs on: the one loaded from `source` that runs share, or where `fresh_model` an own untrained one.

        `asked` are those of the `sizes` that the user set; a checkpoint has its own.
        """
        cls.refuse_sizes(asked)
        if cls.fresh_model:
            return blank(source, tokenizer=tokenizer, seed=seed, options=options, meant=meant, **how)
        lm = load(source, tokenizer=tokenizer, options=options, meant=meant, **how)
        if cls.needs != "nothing" and lm.tokenizer is None:
            raise UserError(f"{source} has no tokenizer; give model.tokenizer=FILE|DIR|hub id")
        return lm

    @staticmethod
    def refuse_sizes(asked: Sequence[str]) -> None:
        """Raise a UserError for sizes that would be passed over."""
        if asked:
            raise UserError(f"model.sizes.{asked[0]}: a checkpoint has its own sizes; only experiment=train dataset=pile "
                            "method.start=scratch builds a model from these")

    def check(self) -> None:
        """Raise a UserError for knobs that do not fit this model, before anything is run."""

    def candidates(self, load: Callable[[], Dataset]) -> Dataset | None:
        """The prompts to choose from: `load()` gives those of the configured data set; an experiment may bring its own."""
        return None if self.needs == "nothing" else load()

    def fit(self, train, scratch: Path) -> None:
        """Learn what the measurement needs from the items `train`; resumable from its own `scratch` folder."""

    @property
    def title(self) -> str:
        """What the report is headed by."""
        return self.name

    def data_in_words(self, configured: str) -> str:
        """What it was measured on; `configured` is what the configured data set is called, with its file."""
        return configured

    def setting_in_words(self) -> dict[str, str]:
        """What of its knobs a reader must know beside model, data and seed."""
        return {}

    @property
    def name(self) -> str:
        """The registry's key: the name of the file the experiment is in."""
        return type(self).__module__.rpartition(".")[2]

    def choose(self, items) -> tuple[Sequence, str]:
        """Which of the selected items are measured, in the order that figures show them, and why the others are not."""
        return items, ""

    def batches(self, items) -> list[Batch]:
        """The batches `step` will see; of one layout each, by the knob `batch`."""
        return batches(items, self.knobs.batch)

    def clusters(self, items) -> dict[str, str]:
        """What the statistics resample together, by prompt_id: prompts of one subject."""
        prompts = [item.clean if isinstance(item, Pair) else item for item in items]
        return {p.prompt_id: p.cluster or p.prompt_id for p in prompts}

    def step(self, batch) -> pa.Table:
        """Measure one batch: its effects (measure.effects)."""
        raise NotImplementedError

    @classmethod
    def in_groups(cls, effects: pa.Table) -> pa.Table:
        """The effects as the statistics of a run and of a sweep take them: an experiment may add rows for groups of prompts
        (a column of its `conditions` says which), so that a prompt counts in several. effects.parquet stays as it is."""
        return effects

    def cost(self, batch) -> tuple[int, int]:
        """(jobs, tokens times layers) that `step(batch)` will run; what a dry run prints."""
        return len(batch), len(batch) * batch.length * self.lm.config.n_layer

    @property
    def read_from(self) -> dict[str, dict]:
        """By name, what its own data were read from, with the `fingerprint`, as far as it is known yet: for the manifest."""
        return {}

    def plan(self) -> dict[str, str]:
        """What a dry run prints where there are no prompts to choose from."""
        return {"prompts": "none: this experiment brings its own data"}

    def artefacts(self) -> dict:
        """Tensors (safetensors) and JSON values worth keeping beside the effects, by file name without suffix."""
        return {}

    def tables(self, effects: pa.Table, items) -> dict:
        """More of these, made of all effects and the items they are of; a pyarrow table becomes a parquet file."""
        return {}

    def completed(self, rows: list[dict], effects: pa.Table, items) -> list[dict]:
        """The summary's rows, with numbers of the experiment's own put into them."""
        return rows

    def recall(self, folder: Path) -> None:
        """Take from the folder of a run that is done what the words below need besides its summary."""

    def headline(self, summary: list[dict]) -> list[dict]:
        """The few rows of the summary that answer the question."""
        return summary[:12]

    def findings(self, summary: list[dict]) -> list[str]:
        """The result in words, every number with its interval and n."""
        return []

    def caveats(self, summary: list[dict]) -> list[str]:
        """What a reader must know before believing the result."""
        return []

    def listings(self, run) -> list[tuple[str, Columns]]:
        """More tables of the report, each under a title, from the run's files (report.tables.RunTables)."""
        return []

    def verdict(self, summary: list[dict]) -> str:
        """What the experiment asserts and the result contradicts, in a line: the run then fails, its results kept."""
        return ""


def at_least(knobs, **bounds: float) -> None:
    """Raise a UserError for the first knob below its bound; one that is None says nothing."""
    for key, least in bounds.items():
        if (value := getattr(knobs, key)) is not None and value < least:
            raise UserError(f"method.{key}={value}: give at least {least}")


def names() -> tuple[str, ...]:
    """Every experiment: the files of this room and the entry points `mamba_mi.experiments` of installed packages."""
    own = {info.name for info in iter_modules(__path__) if not info.name.startswith("_")}
    return tuple(sorted(own | {point.name for point in entry_points(group="mamba_mi.experiments")}))


def get(name: str) -> type[Experiment]:
    """The experiment class called `name`."""
    if name not in names():
        raise UserError(f"method.name={name}: no such experiment; there are {', '.join(names())}"
                        f"{did_you_mean(name, names())}")
    for point in entry_points(group="mamba_mi.experiments"):
        if point.name == name:
            return point.load()
    module = import_module(f"{__name__}.{name}")
    return next(x for x in vars(module).values()
                if isinstance(x, type) and issubclass(x, Experiment) and x.__module__ == module.__name__)


def knobs_of(experiment: type[Experiment], method: Mapping) -> object:
    """The experiment's knobs from the config's method group, typed; a typo raises."""
    return typed(experiment.Knobs, {k: v for k, v in method.items() if k != "name"}, "method")
