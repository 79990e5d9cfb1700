"""experiment=train on running text: a language model from scratch or from a checkpoint, validated by the source of each text.

The effects are nats a document. Every mean is a ratio of sums, nats over tokens, so that its exponential is the perplexity;
the document is the sampling unit. Beside the model stands a unigram model of the very tokens it was trained on.
"""
from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import load_file

from mamba_mi import models
from mamba_mi.config import UserError
from mamba_mi.experiments import UNTESTED, Experiment
from mamba_mi.experiments._train_corpus_knobs import STARTS, Knobs, check, steps_of
from mamba_mi.measure.effects import effects
from mamba_mi.models import hugging_face, state_spaces
from mamba_mi.report import corpus_words as words
from mamba_mi.together import FIT
from mamba_mi.training import Recipe, checkpointing, fit, packing
from mamba_mi.training.progress import bar
from mamba_mi.training.speed import flops_per_token, measured_peak
from mamba_mi.training.text import Rows, Script, unigram_nats
from mamba_mi.training.validation import Paper, nats, papers

SMALLEST_BATCH = 64  # documents examined and kept together


class Documents(NamedTuple):
    """Validation documents that are kept together."""

    key: str
    papers: tuple[Paper, ...]


class TrainOnCorpus(Experiment):
    """From its start to a model of the text; how well it predicts documents it never read, beside a unigram model."""

    Knobs = Knobs
    name = "train"
    fresh_model = True
    shares = FIT
    figures = ("corpus_curve", "corpus_perplexity")
    question = "How well does the model predict text it has never read?"
    conditions = ("source",)
    family = ()
    normalised = words.RATIOS

    @classmethod
    def on(cls, dataset):
        return cls

    @classmethod
    def model(cls, knobs, source, *, name, variant, sizes, asked, seed, options, meant=None, **how):
        """Untrained, from `sizes`, without asking any network for a checkpoint; or what `source` holds."""
        if knobs.start not in STARTS:
            raise UserError(f"method.start={knobs.start}: there are {', '.join(STARTS)}")
        if knobs.start == "checkpoint":
            cls.refuse_sizes(asked)
            return models.load(source, options=options, meant=meant, cached=False, **how).requires_grad_(True)
        if meant and meant.source.startswith("model.path="):
            raise UserError(f"{meant.source}: a model from scratch reads no checkpoint; method.start=checkpoint trains it on")
        if follows := [key for key in asked if key in state_spaces.FOLLOW]:
            raise UserError(f"model.sizes.{follows[0]}: follows from d_model; give model.sizes.d_model")
        if meant:
            meant.check()
        return models.sized(name, variant, sizes, seed=seed, **how)

    def check(self) -> None:
        check(self.knobs, self.lm, self.setting.ranks)
        self.script = Script(self.lm.tokenizer, self.lm.config.vocab_size)

    @property
    def steps(self) -> int:
        return steps_of(self.knobs)

    def candidates(self, load):
        self.dataset = load()
        return self.dataset

    def plan(self):
        shards, tokens = self.dataset.corpus.shards, self.steps * self.knobs.batch * self.knobs.length
        flops = tokens * flops_per_token(self.lm)
        peak = measured_peak(self.lm.device, self._arithmetic) * self.setting.ranks.count
        return {"text": f"{len(shards)} files of {sum(shard.size for shard in shards) / 1e6:,.1f} MB",
                "training": f"{self.steps:,} steps of {self.knobs.batch} x {self.knobs.length} tokens: {tokens:,}",
                "arithmetic": f"{flops:.1e} floating point operations, {flops / peak / 60:,.1f} min at a matrix product's rate: no less"}

    def fit(self, train, scratch: Path) -> None:
        """Train on the text from its beginning, or on from where the last checkpoint stood in it."""
        knobs, ranks = self.knobs, self.setting.ranks
        self.papers, self.unread = papers(self.dataset.corpus, self.script, knobs.examined, boundaries=knobs.boundaries)
        self.rows = Rows(self.dataset.corpus.reader(paper.key for paper in self.papers), self.script, length=knobs.length,
                         boundaries=knobs.boundaries, samples=None if knobs.steps else knobs.samples)
        self.flops, self.peak = flops_per_token(self.lm), measured_peak(self.lm.device, self._arithmetic) * ranks.count
        self.lm.train()
        with bar(self.steps) if ranks.rank == 0 else nullcontext(lambda point: None) as watch:
            self.curve = fit(self.lm, self._losses_at, self._recipe(), scratch, identity=self._identity(),
                             tokens=knobs.batch * knobs.length, examine=self._examine, watch=lambda point: self._watch(watch, point),
                             source=self.rows, ranks=ranks)
        self.lm.eval().requires_grad_(False)
        ranks.leave()
        if ranks.rank == 0:
            self._save(scratch)

    def _save(self, scratch: Path) -> None:
        self.saved = scratch / "model"
        models.save(self.lm, self.saved)
        if not hugging_face.unwritable(self.lm.config):
            marks = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), self.script.mark)
            models.save(self.lm, self.saved / "hf", hugging_face, **marks)
        costs, self.smoothing = unigram_nats(self.rows.counts_V, [paper.asked for paper in self.papers])
        self.unigram = dict(zip((paper.key for paper in self.papers), costs, strict=True))

    def batches(self, items) -> list[Documents]:
        few = range(0, len(self.papers), SMALLEST_BATCH)
        return [Documents(f"{i:05d}", tuple(self.papers[at:at + SMALLEST_BATCH])) for i, at in enumerate(few)]

    def clusters(self, items) -> dict[str, str]:
        return {paper.key: paper.key for paper in self.papers}

    def step(self, batch: Documents) -> pa.Table:
        costs = self._costs(batch.papers)
        tables = [_effects(batch.papers, metric, value, baseline) for metric, value, baseline in (
            (words.MODEL, costs, [0.0] * len(costs)),
            (words.UNIGRAM, [self.unigram[paper.key] for paper in batch.papers], [0.0] * len(costs)),
            (words.GAIN, costs, [self.unigram[paper.key] for paper in batch.papers]))]
        return pa.concat_tables(tables)

    @classmethod
    def in_groups(cls, effects):
        """All sources together, too."""
        everything = effects.set_column(effects.column_names.index("source"), "source", pa.array([words.ALL] * len(effects)))
        several = pc.count_distinct(effects["source"]).as_py() > 1
        return pa.concat_tables([effects, everything]) if several else everything

    def completed(self, rows, table, items):
        """Perplexities: of a ratio its exponential. Sums over documents are no results, and a level is tested against nothing."""
        tokens = {}
        for paper in self.papers:
            for source in (paper.source, words.ALL):
                tokens[source] = tokens.get(source, 0) + len(paper.asked)
        return words.with_perplexities([row | {"tokens": tokens[row["conditions"]["source"]]} for row in rows], UNTESTED)

    def artefacts(self) -> dict:
        """The curve, what goes with the weights, and the model in the layouts of model.path= and of transformers."""
        files = {name: json.loads((self.saved / f"{name}.json").read_text()) for name in ("config", "tokenizer")}
        theirs = self.saved / "hf"
        if theirs.is_dir():
            files |= {"hf/config": json.loads((theirs / "config.json").read_text()), "hf/tokenizer": files["tokenizer"],
                      "hf/model": load_file(theirs / "model.safetensors")}
        return {"training_curve": self.curve, "training_info": self.info, **files, "model": load_file(self.saved / "model.safetensors")}

    @cached_property
    def info(self) -> dict:
        """What was trained, on what, and how fast: the training_info.json beside the weights."""
        knobs, reader, last = self.knobs, self.rows.reader, self.curve[-1]
        speeds = sorted(point["tokens_per_second"] for point in self.curve)
        return {"model_name": self.lm.name, "variant": self.lm.config.variant, "num_samples": self.steps * knobs.batch,
                "num_epochs": reader.passes + 1 if knobs.steps else knobs.epochs, "batch_size": knobs.batch, "learning_rate": knobs.lr, "max_length": knobs.length,
                "final_loss": last["loss"], "final_validation": last["validation"], "steps": self.steps,
                "recipe": asdict(knobs), "seed": self.setting.seed, "tokens": self.steps * knobs.batch * knobs.length,
                "parameters": sum(x.numel() for x in self.lm.parameters()), "weights": checkpointing.weights_hash(self.lm),
                "documents": {"read": dict(reader.read), "left_out": dict(reader.why), "passes": reader.passes + 1,
                              "asked_for_and_never_met": self._never_met()},
                "validation": {"documents": len(self.papers), "tokens": sum(len(paper.asked) for paper in self.papers),
                               "left_out": dict(self.unread)},
                "unigram": {"nats_per_token": self._level(self.unigram.values()), "smoothing": self.smoothing},
                "speed": {"tokens_per_second": speeds[len(speeds) // 2], "flops_per_token": self.flops, "measured_peak": self.peak,
                          "utilisation": speeds[len(speeds) // 2] * self.flops / self.peak, "processes": self.setting.ranks.count,
                          "threads": torch.get_num_threads(), "device": str(self.lm.device), "arithmetic": str(self._arithmetic)},
                "hugging_face": hugging_face.unwritable(self.lm.config) or "artifacts/hf", "torch": torch.__version__}

    def recall(self, folder: Path) -> None:
        self.__dict__["info"] = json.loads((folder / "artifacts" / "training_info.json").read_text(encoding="utf-8"))

    def setting_in_words(self):
        return words.setting(self.info)

    def headline(self, summary):
        return words.headline(summary)

    def findings(self, summary):
        return words.findings(summary)

    def caveats(self, summary):
        return words.caveats(summary, self.info)

    def _never_met(self) -> list[str]:
        corpus, reader = self.dataset.corpus, self.rows.reader
        wanted = {*(corpus.sets or ()), *corpus.weights} - {source for source, weight in corpus.weights.items() if weight == 0}
        return sorted(wanted - set(reader.read))

    def _watch(self, watch, point: dict) -> None:
        point["utilisation"] = point["tokens_per_second"] * self.flops / self.peak
        watch(point)
        self.setting.log({f"training/{key}": x for key, x in point.items() if key != "step"}, point["step"])

    def _examine(self) -> dict:
        self.lm.eval()
        level = self._level(self._costs(self.papers))
        self.lm.train()
        return {"validation": level}

    def _level(self, costs) -> float:
        return sum(costs) / sum(len(paper.asked) for paper in self.papers)

    def _costs(self, some) -> list[float]:
        return nats(self.lm, some, length=self.knobs.length, size=self._part)

    @property
    def _part(self) -> int:
        """Rows that are run together."""
        return self.knobs.batch // self.knobs.accumulate // self.setting.ranks.count

    @property
    def _arithmetic(self) -> torch.dtype:
        return torch.bfloat16 if self.knobs.autocast == "bf16" else self.lm.dtype

    def _losses_at(self, step: int):
        """This process's parts of the step's loss; each is made when the one before is done with."""
        tokens_BL, weights_BL = self.rows.next(self.knobs.batch)
        total, ranks, recompute = weights_BL.sum().item(), self.setting.ranks, self.knobs.checkpoint_activations
        own = slice(ranks.rank, None, ranks.count)
        for part in zip(tokens_BL[own].split(self._part), weights_BL[own].split(self._part), strict=True):
            with torch.autocast(self.lm.device.type, dtype=torch.bfloat16, enabled=self.knobs.autocast == "bf16"):
                loss = packing.next_token_loss(self.lm, *part, total=total, recompute=recompute)
            yield loss

    def _recipe(self) -> Recipe:
        knobs = self.knobs
        return Recipe(self.steps, lr=knobs.lr, warmup=knobs.warmup, weight_decay=knobs.weight_decay, clip=knobs.clip,
                      checkpoint_every=knobs.checkpoint_every, examine_every=knobs.eval_every)

    def _identity(self) -> str:
        knobs = {key: x for key, x in asdict(self.knobs).items() if key not in ("checkpoint_every", "eval_every", "examined", "resamples")}
        return (f"seed {self.setting.seed}, {knobs}, data {self.dataset.fingerprint}, {self.dataset.corpus.said()}, {self.script.said()}, "
                f"{self.lm.fingerprint}, {self.lm.config}")


def _effects(some, metric: str, value, baseline) -> pa.Table:
    """`full` is a token's worth above the baseline for every token: what is normalised by it is nats a token."""
    return effects({"prompt_id": [paper.key for paper in some], "source": [paper.source for paper in some], "metric": [metric] * len(some),
                    "value": value, "baseline": baseline,
                    "full": [x + len(paper.asked) for x, paper in zip(baseline, some, strict=True)]})
