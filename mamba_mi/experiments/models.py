"""Every variant there is: its checkpoints, format and sites, what runs on it, and how exact it is.

Measured on the variant's embedded model, or an untrained one where none ships: how far its float32 logits are from the
float64 reference. How far both are from an independent implementation is in models/numerics.json, which the tests measure again.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from mamba_mi import backends, experiments, models
from mamba_mi.config import UserError, stream
from mamba_mi.data import Batch, facts
from mamba_mi.experiments import UNTESTED, Experiment, Setting, at_least
from mamba_mi.measure.effects import effects
from mamba_mi.models import checkpoints, footprint, variants
from mamba_mi.report import models_words as words
from mamba_mi.runs.precision import off_float64

DEVIATION = "relative_logit_deviation"  # the largest |float32 - float64| over the largest |float64|, of a prompt's logits


@dataclass(frozen=True)
class Knobs:
    """The keys of conf/method/models.yaml."""

    prompts: int = 64
    batch: int = 32
    resamples: int = 2000


class Models(Experiment):
    """A row of facts and a measured deviation for every variant."""

    Knobs = Knobs
    needs = "nothing"
    shares = ""
    of_one_model = False
    question = "Which variants are there, what runs on each, and how exact is it?"
    conditions = ("variant",)
    family = ()

    def check(self) -> None:
        at_least(self.knobs, prompts=2, batch=1, resamples=20)
        if self.lm.name not in models.EMBEDDED:
            raise UserError(f"model={self.lm.name}: experiment=models looks at every variant's embedded model; leave model= out")

    @cached_property
    def models(self) -> dict:
        """By variant its embedded model, or an untrained one of its SMALL sizes where none ships."""
        found, where = {}, {"backend": self.lm.choice.asked, "device": str(self.lm.device)}
        for name in models.EMBEDDED:
            lm = models.load(name, cached=False, **where)
            found.setdefault(lm.config.variant, lm)
        for variant, module in variants.modules().items():
            if variant not in found:
                lm = models.fresh(checkpoints.published_config(module.SMALL), generator=stream(self.setting.seed, "initialise"),
                                  tokenizer=self.lm.tokenizer, name=f"small {variant}", **where)
                found[variant] = lm.eval().requires_grad_(False)
        return found

    @cached_property
    def prompts(self) -> tuple:
        """Those the deviation is measured on, of the vocabulary that the embedded models share."""
        return facts.load(facts.Knobs(), self.lm.tokenizer, seed=self.setting.seed).prompts[:self.knobs.prompts]

    def batches(self, items) -> list[Batch]:
        return super().batches(self.prompts)

    def clusters(self, items):
        return super().clusters(self.prompts)

    def cost(self, batch):
        jobs = 2 * len(self.models) * len(batch)
        return jobs, jobs * batch.length * self.lm.config.n_layer

    def step(self, batch) -> pa.Table:
        ids = [prompt.prompt_id for prompt in batch.prompts]
        off = {variant: _relative(lm, batch.tokens_BL) for variant, lm in self.models.items()}
        return pa.concat_tables([effects({
            "prompt_id": ids, "variant": [variant] * len(ids), "metric": [DEVIATION] * len(ids),
            "value": off_B, "baseline": np.zeros(len(ids))}) for variant, off_B in off.items()])

    def completed(self, rows, table, items):
        """A deviation is tested against nothing."""
        return [row | UNTESTED for row in rows]

    @cached_property
    def facts(self) -> list[dict]:
        """What is known of each variant, in the order of the table."""
        return [_facts(variant, lm, self.setting) for variant, lm in self.models.items()]

    @cached_property
    def footprints(self) -> dict:
        """What every published Mamba takes, reckoned."""
        return {name: footprint.footprint(name) for name in footprint.SHAPES}

    def artefacts(self):
        return {"models": {"variants": self.facts, "markdown": words.markdown(self.facts),
                           "memory": words.memory_markdown(self.footprints, footprint.measured())}}

    def headline(self, summary):
        return []  # a deviation stands in its variant's row of the tables

    def findings(self, summary):
        return words.findings(summary)

    def caveats(self, summary):
        return words.CAVEATS

    def recall(self, folder):
        self.__dict__["facts"] = json.loads((folder / "artifacts" / "models.json").read_text(encoding="utf-8"))["variants"]

    def listings(self, run):
        return [("The variants", words.table(self.facts)), ("What runs on them, and how exact", words.exact(self.facts, run.summary)),
                ("Their sites", words.sites(self.facts)),
                ("Memory of the published Mambas", words.memory(self.footprints, footprint.measured()))]


def _relative(lm, tokens_BL) -> np.ndarray:
    off_B, largest_B = off_float64(lm, tokens_BL)
    return (off_B / largest_B).cpu().numpy()


def _facts(variant: str, lm, setting: Setting) -> dict:
    """What the table says of a variant; its sites are those of its embedded model."""
    module = variants.modules()[variant]
    return {"variant": variant, **module.CARD._asdict(), "about": variants.about(lm.config),
            "checkpoints": {name: each._asdict() for name, each in module.PUBLISHED.items()},
            "embedded": {"name": lm.name, "parameters": sum(x.numel() for x in lm.parameters()),
                         "recall": _recall(lm) if lm.source else None},
            "options": {name: list(values) for name, values in variants.options(module).items()},
            "sites": list(lm.sites.names), "backends": list(backends.available()), "experiments": _that_run(lm, setting),
            "numerics": variants.numerics()[variant], "real_weights": "never tried"}


def _recall(lm) -> dict:
    """Of the facts it was trained on, in words it was not."""
    recall = json.loads((Path(lm.source) / "training_info.json").read_text(encoding="utf-8"))["trained"]["recall_heldout"]
    return {key: recall[key] for key in ("hit", "ci_low", "ci_high", "n")}


def _that_run(lm, setting: Setting) -> list[str]:
    """The experiments whose own check accepts the model; those that look into none, or compare with published numbers, are
    asked nothing."""
    found = []
    for name in experiments.names():
        kind = experiments.get(name)
        if kind.compares or (kind.needs == "nothing" and not kind.fresh_model):
            continue
        try:
            kind(kind.Knobs(), lm, setting).check()
        except UserError:
            continue
        found.append(name)
    return found
