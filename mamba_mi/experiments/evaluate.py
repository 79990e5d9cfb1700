"""Capability assessment: how many answers are right, by category, beside the same answers held against other questions.

Every prompt is answered through the recurrent state, greedily; its answer is scored by first token, as a whole, and word by
word, and the right answer's log-probability is read. In the effects `baseline` is the score of the same answer against the
right answers of other prompts of its category; with interventions it is the clean run's (`against` says which).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mamba_mi.config import UserError, did_you_mean
from mamba_mi.data import Batch, batches, custom, no_longer
from mamba_mi.experiments import Experiment, at_least
from mamba_mi.experiments._evaluate_candidates import candidates, golds
from mamba_mi.experiments._evaluate_tally import Tally, answers_given, complete, marks
from mamba_mi.measure.answers import answers, reader
from mamba_mi.measure.effects import PREDICTION, effects
from mamba_mi.measure.generation import Answered, Ends, answer
from mamba_mi.measure.scoring import METRICS, scores
from mamba_mi.measure.shuffling import Shuffled
from mamba_mi.report import evaluate_words as words
from mamba_mi.report.evaluate_words import ALL, CLEAN, NOTHING, SHUFFLED

KINDS = {"custom": ("custom",), "dataset": ("dataset",), "both": ("custom", "dataset")}
LOGPROB = "target_logprob"


@dataclass(frozen=True)
class Knobs:
    """The keys of conf/method/evaluate.yaml."""

    prompts: str = "both"
    path: str | None = None
    bos: bool | None = None
    max_per_category: int | None = 100
    max_new_tokens: int = 16
    stop: Any = None
    batch: int = 32
    shuffles: int = 1000
    resamples: int = 2000


class Evaluate(Experiment):
    """First token, exact match and F1 of every prompt's answer, and the right answer's log-probability."""

    Knobs = Knobs
    needs = "prompts"
    right_and_wrong = True
    figures = ("capability_profile",)
    question = "Which questions does the model answer rightly, and would its answers be as right without the question?"
    conditions = ("prompts", "category", "against")
    family = ("prompts", "against")

    def check(self) -> None:
        at_least(self.knobs, max_per_category=1, max_new_tokens=1, batch=1, shuffles=20, resamples=20)
        if self.knobs.prompts not in KINDS:
            raise UserError(f"method.prompts={self.knobs.prompts}: there are {', '.join(KINDS)}{did_you_mean(self.knobs.prompts, KINDS)}")
        if self.knobs.path and self.knobs.prompts == "dataset":
            raise UserError("method.path with method.prompts=dataset: the file would not be read; give method.prompts=custom or both")
        if self.knobs.bos is not None and self.knobs.prompts == "dataset":
            raise UserError("method.bos with method.prompts=dataset: it is about custom prompts; give dataset.bos")
        stop = self.knobs.stop
        if stop is not None and not (isinstance(stop, list) and stop and all(isinstance(text, str) and text for text in stop)):
            raise UserError(f"method.stop={stop!r}: give a list of texts, as method.stop=[.]")

    def candidates(self, load):
        """The custom prompts, those of the configured data set, or both."""
        sources, longest = {"custom": self._custom, "dataset": load}, self.lm.config.max_length
        parts = {kind: no_longer(sources[kind](), longest, answer=self.knobs.max_new_tokens) for kind in KINDS[self.knobs.prompts]}
        self.chosen = candidates(parts, self.knobs.max_per_category)
        return self.chosen.dataset

    def _custom(self):
        how = (self.lm.tokenizer, self.setting.seed, self.knobs.bos)
        return custom.of_file(self.knobs.path, *how) if self.knobs.path else custom.shipped(*how)

    def batches(self, items) -> list[Batch]:
        """By length alone; what the answers are held against is drawn over all items."""
        found = golds(items, self.lm.tokenizer)
        groups = {name: (self.chosen.kind[name], self.chosen.category[name]) for name in found}
        self.shuffled = Shuffled(found, groups, draws=self.knobs.shuffles, seed=self.setting.seed)
        return batches([replace(prompt, spans={}) for prompt in items], self.knobs.batch)

    @cached_property
    def ends(self) -> Ends:
        return Ends(self.lm.tokenizer, self.knobs.stop)

    def cost(self, batch):
        tokens = batch.length + max(len(p.target_ids) for p in batch.prompts) + self.knobs.max_new_tokens - 2
        return len(batch), len(batch) * tokens * self.lm.config.n_layer

    def interventions(self, batch) -> tuple:
        """What acts on the prompts of a batch and on the answers to them; here nothing. Where something does, the clean run
        goes beside it, and rows `against` it hold the metric under the interventions as value and without as baseline."""
        return ()

    def step(self, batch) -> pa.Table:
        clean = self._answered(batch, ())
        rows = [row for prompt, said, measured in zip(batch.prompts, *clean, strict=True)
                for row in self._against_others(prompt.prompt_id, said, measured)]
        if acts := self.interventions(batch):
            said, measured = self._answered(batch, acts)
            for number, prompt in enumerate(batch.prompts):
                without = clean[1][number]
                rows += [(prompt.prompt_id, CLEAN, None, name, x, without[name]) for name, x in measured[number].items()]
                rows += _tokens(prompt.prompt_id, CLEAN, said[number])
        return self._table(rows)

    def _answered(self, batch, acts) -> tuple[list[tuple[int, ...]], list[dict[str, float]]]:
        """The tokens of each prompt's answer, and its metrics."""
        told = answers(batch, (LOGPROB,), self.lm.device)
        found: Answered = answer(self.lm, batch.tokens_BL, told.right_BK, most=self.knobs.max_new_tokens, ends=self.ends,
                                 interventions=acts)
        self.setting.ledger.edits.update(found.edits)
        log_p_B = reader((LOGPROB,), told, None)(found.logits_BKV[None])[0, :, 0].tolist()
        return found.said, [dict(zip(METRICS, scores(self.ends.said(ids), self.shuffled.golds[p.prompt_id]), strict=True)) | {LOGPROB: log_p}
                            for p, ids, log_p in zip(batch.prompts, found.said, log_p_B, strict=True)]

    def _against_others(self, name: str, ids: tuple[int, ...], measured: Mapping[str, float]) -> list[tuple]:
        baseline = self.shuffled.baseline(name, self.ends.said(ids))
        against, others = (NOTHING, np.zeros(len(METRICS))) if baseline is None else (SHUFFLED, baseline)
        rows = [(name, against, None, metric, measured[metric], x) for metric, x in zip(METRICS, others, strict=True)]
        return [*rows, (name, NOTHING, None, LOGPROB, measured[LOGPROB], 0.0), *_tokens(name, NOTHING, ids)]

    def _table(self, rows: Sequence[tuple]) -> pa.Table:
        names, *rest = zip(*rows, strict=True)
        found = zip(("against", "position", "metric", "value", "baseline"), rest, strict=True)
        return effects({"prompt_id": names, "prompts": [self.chosen.kind[name] for name in names],
                        "category": [self.chosen.category[name] for name in names], **dict(found)})

    @classmethod
    def in_groups(cls, effects):
        """The levels beside the differences, and every kind of prompts as a whole beside its categories."""
        effects = effects.filter(pc.not_equal(effects["metric"], PREDICTION))
        compared = effects.filter(pc.equal(effects["against"], SHUFFLED))
        levels = _filled(_filled(compared, "against", NOTHING), "baseline", 0.0)
        every = pa.concat_tables([effects, levels])
        return pa.concat_tables([every, _filled(every, "category", ALL)])

    def completed(self, rows, table, items):
        """A level is tested against nothing but the shuffled answers; what is counted gets Wilson's interval."""
        return complete(rows, Tally(table, self.shuffled, self.ends, self.knobs.max_new_tokens))

    def tables(self, effects, items):
        """Every prompt with its answer and its marks."""
        given, scored = answers_given(effects), marks(effects)
        return {"answers": [{"prompt_id": p.prompt_id, "prompt": p.text, "expected": p.target.strip(),
                             "alternatives": list(self.shuffled.golds[p.prompt_id].texts[1:]),
                             "answer": self.ends.text(given[p.prompt_id]), "ended": self.ends.met(given[p.prompt_id]),
                             **scored[p.prompt_id]} for p in items]}

    def data_in_words(self, configured):
        return words.data(self.knobs, configured)

    def setting_in_words(self):
        return words.setting(self.knobs, self.ends.texts, self.chosen.left_out)

    def headline(self, summary):
        return words.profile(summary)

    def findings(self, summary):
        return words.findings(summary)

    def caveats(self, summary):
        return words.caveats(summary, self.knobs.max_new_tokens)

    def listings(self, run):
        return words.examples(run.artifact("answers.json"))


def _tokens(name: str, against: str, ids: Sequence[int]) -> list[tuple]:
    """The answer itself: a row a token, of the metric that is never averaged."""
    return [(name, against, place, PREDICTION, float(token), 0.0) for place, token in enumerate(ids)]


def _filled(table: pa.Table, column: str, value) -> pa.Table:
    at = table.column_names.index(column)
    return table.set_column(at, column, pa.array([value] * len(table), type=table.schema.field(column).type))
