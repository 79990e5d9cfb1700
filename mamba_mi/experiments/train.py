"""Training the embedded model on the world of facts, and examining it in what it was and was not told.

The effects compare the trained model with the same model before its first step, on the same prompts.
"""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file

from mamba_mi import models
from mamba_mi.config import UserError
from mamba_mi.data import Batch, batches, is_corpus
from mamba_mi.data.facts import world
from mamba_mi.experiments import Experiment, at_least
from mamba_mi.experiments._train_corpus import TrainOnCorpus
from mamba_mi.measure.effects import effects
from mamba_mi.training import Recipe, checkpointing, fit, packing
from mamba_mi.training.examination import exam, grades, marks
from mamba_mi.training.progress import bar

METRICS = ("hit", "probability")
EXAMINED_AT_ONCE, QUICK = 256, 96  # prompts a batch; prompts a task in the examinations along the way
MEANINGS = {"recall_heldout": "Facts asked for in words they were never told in",
            "recall_train": "Facts asked for in words they were told in",
            "two_hop_heldout": "What follows from two facts, of people of whom it was never said",
            "two_hop_train": "What follows from two facts and was said",
            "mqar8": "A key's value among eight pairs just read", "mqar4": "The same among four",
            "box": "Which thing was said to be in a box", "repeat": "The next word of a repeated list"}


@dataclass(frozen=True)
class Knobs:
    """Keys of conf/method/train.yaml. `examined` prompts a task, null for the whole world."""

    steps: int = 2400
    batch: int = 16
    length: int = 64
    lr: float = 4e-3
    weight_decay: float = 0.1
    warmup: int = 100
    checkpoint_every: int = 200
    eval_every: int = 400
    examined: int | None = None
    resamples: int = 2000


class Train(Experiment):
    """From untrained weights to a model that knows the world; what it answers, before and after."""

    Knobs = Knobs
    needs = "nothing"
    shares = ""
    fresh_model = True
    figures = ("training_curve", "training_recall")
    question = "What has the model learnt, in words it was told and in words it was not?"
    conditions = ("task",)
    family = ()

    @classmethod
    def on(cls, dataset):
        """The world of facts is what this class trains on; a corpus has a class of its own."""
        if is_corpus(dataset):
            return TrainOnCorpus
        if dataset != "facts":
            raise UserError(f"dataset={dataset}: experiment=train reads dataset=facts or running text, dataset=pile")
        return cls

    def check(self) -> None:
        at_least(self.knobs, steps=1, batch=1, checkpoint_every=1, eval_every=1)
        if self.knobs.length < packing.SHORTEST:
            raise UserError(f"method.length={self.knobs.length}: the tasks need {packing.SHORTEST} tokens or more")
        most = self.lm.config.max_length
        if most is not None and self.knobs.length > most:
            raise UserError(f"method.length={self.knobs.length}: {self.lm.name} takes at most {most} tokens")
        self.papers = self._exam(self.knobs.examined)
        self.task_of = {p.prompt_id: task for task, prompts in self.papers.items() for p in prompts}

    def fit(self, train, scratch: Path) -> None:
        """Train on what (seed, step) draws; started again, go on from the last checkpoint to the same bits."""
        self.before = self._marks(self.papers)
        with bar(self.knobs.steps) as watch:
            self.curve = fit(self.lm, self._loss_at, self._recipe(), scratch, identity=self._identity(),
                             tokens=self.knobs.batch * self.knobs.length, examine=self._examiner(),
                             watch=lambda point: (watch(point), self.setting.log(_values(point), point["step"])))
        self.lm.eval().requires_grad_(False)
        self.after = self._marks(self.papers)
        self.saved = scratch / "model"
        models.save(self.lm, self.saved)

    def batches(self, items) -> list[Batch]:
        return batches([p for prompts in self.papers.values() for p in prompts], EXAMINED_AT_ONCE)

    def clusters(self, items) -> dict[str, str]:
        return {p.prompt_id: p.cluster for prompts in self.papers.values() for p in prompts}

    def step(self, batch) -> pa.Table:
        ids = [p.prompt_id for p in batch.prompts]
        tasks = [self.task_of[i] for i in ids]
        value, baseline = ([x for task, i in zip(tasks, ids, strict=True) for x in scored[task][i]]
                           for scored in (self.after, self.before))
        twice = {"prompt_id": np.repeat(ids, len(METRICS)), "task": np.repeat(tasks, len(METRICS))}
        return effects({**twice, "metric": METRICS * len(batch), "value": value, "baseline": baseline})

    def artefacts(self) -> dict:
        """The curve, the marks that go with the weights, and the model in the layout that model.path= takes."""
        files = {name: json.loads((self.saved / f"{name}.json").read_text()) for name in ("config", "tokenizer")}
        return {"training_curve": self.curve, "training_info": self.info(), **files,
                "model": load_file(self.saved / "model.safetensors")}

    def info(self) -> dict:
        """What was trained, how, and what it knows: the training_info.json beside the weights."""
        seed, resamples = self.setting.seed, self.knobs.resamples
        tokens = self.knobs.steps * self.knobs.batch * self.knobs.length
        return {"recipe": asdict(self.knobs), "seed": seed, "tokens": tokens,
                "parameters": sum(x.numel() for x in self.lm.parameters()), "torch": torch.__version__,
                "threads": torch.get_num_threads(), "device": str(self.lm.device),
                "world": world().fingerprint, "weights": checkpointing.weights_hash(self.lm),
                "trained": grades(self.papers, self.after, seed=seed, resamples=resamples),
                "untrained": grades(self.papers, self.before, seed=seed, resamples=resamples)}

    def findings(self, summary):
        rows = {row["conditions"]["task"]: row for row in summary if row["metric"] == "hit"}
        return [f"{meaning}: {_number(rows[task])} more right than before training, n = {rows[task]['n']}"
                for task, meaning in MEANINGS.items() if task in rows]

    def caveats(self, summary):
        return ["The world is made up and small: what holds for a model of it is no evidence about pretrained ones.",
                "One seed is one model: what is seen on it may not be seen on the next."]

    def _exam(self, n: int | None) -> dict:
        return exam(self.lm.tokenizer, n=n, seed=self.setting.seed, length=self.knobs.length)

    def _marks(self, papers) -> dict:
        return {task: marks(self.lm, prompts) for task, prompts in papers.items()}

    def _examiner(self):
        papers = self._exam(QUICK)
        return lambda: {"tasks": {task: sum(hit for hit, _ in scored.values()) / len(scored)
                                  for task, scored in self._marks(papers).items()}}

    def _recipe(self) -> Recipe:
        knobs = self.knobs
        return Recipe(knobs.steps, lr=knobs.lr, warmup=knobs.warmup, weight_decay=knobs.weight_decay,
                      checkpoint_every=knobs.checkpoint_every, examine_every=knobs.eval_every)

    def _identity(self) -> str:
        return (f"seed {self.setting.seed}, batch {self.knobs.batch} x {self.knobs.length}, "
                f"world {world().fingerprint}, {self.lm.config}")

    def _loss_at(self, step: int) -> torch.Tensor:
        knobs = self.knobs
        drawn = packing.batch_at(step, seed=self.setting.seed, batch=knobs.batch, length=knobs.length)
        return packing.next_token_loss(self.lm, *drawn)


def _values(point: dict) -> dict[str, float]:
    """A point of the curve as a logbook takes it; where there was an examination, each task's share of right answers."""
    numbers = {f"training/{name}": point[name] for name in ("loss", "lr", "tokens_per_second")}
    return numbers | {f"training/right/{task}": share for task, share in point.get("tasks", {}).items()}


def _number(row) -> str:
    interval = "" if row["ci_low"] is None else f" [{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
    return f"{100 * row['mean']:.1f}%{interval}"
