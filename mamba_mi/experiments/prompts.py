"""The generated prompts as files: what experiment=evaluate and dataset=generated read, and what each level holds.

Nothing is measured of the model; of it only the tokenizer is asked, for the words it reads. In the effects the value is
a count (facts told, facts chained, words), the baseline 0, the task the level.
"""
from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from mamba_mi.config import several
from mamba_mi.data import Batch, Prompt, generated
from mamba_mi.data.generation import LEVELS, left_out
from mamba_mi.data.generation.draft import Generated
from mamba_mi.experiments import UNTESTED, Experiment, at_least
from mamba_mi.measure.effects import effects
from mamba_mi.report import prompts_words as words

COUNTS = {"facts": lambda item: item.question.num_facts, "hops": lambda item: item.question.num_hops,
          "words": lambda item: len(item.question.prompt.split())}


@dataclass(frozen=True)
class Knobs:
    """The keys of conf/method/prompts.yaml."""

    level: Any = "all"
    per_level: int = 100
    lexicon: str = "auto"
    resamples: int = 2000


class Prompts(Experiment):
    """Every level's prompts, counted and written down."""

    Knobs = Knobs
    needs = "nothing"
    shares = ""
    figures = ("prompts_levels",)
    question = "What do the generated prompts of each level hold?"
    conditions = ("task",)
    family = ()

    def check(self) -> None:
        at_least(self.knobs, per_level=1, resamples=20)
        self.levels = several(self.knobs.level, list(LEVELS), "method.level")
        self.lexicon = generated.lexicon_for(self.knobs.lexicon, self.lm.tokenizer, "method.lexicon")
        items = generated.made_of(self.lexicon, self.levels, self.knobs.per_level, self.setting.seed, "method")
        by_level = {level: [item for item in items if item.question.category == LEVELS[level]] for level in self.levels}
        self.made: dict[str, list[Generated]] = {level: found for level, found in by_level.items() if found}

    @cached_property
    def of_id(self) -> dict[str, Generated]:
        return {item.question.question_id: item for items in self.made.values() for item in items}

    def setting_in_words(self):
        return {"data": "made by rule from the seed", "lexicon": words.lexicon(self.lexicon), "levels": f"{len(self.made)} of {len(self.levels)} asked for"}

    def batches(self, items) -> list[Batch]:
        """A level a batch; its texts are no model's tokens."""
        return [Batch(tuple(Prompt(item.question.question_id, item.question.prompt, (), item.question.expected, -1) for item in found), level)
                for level, found in self.made.items()]

    def clusters(self, items) -> dict[str, str]:
        return {prompt_id: item.question.cluster for prompt_id, item in self.of_id.items()}

    def cost(self, batch):
        return len(batch), 0

    def step(self, batch) -> pa.Table:
        rows = [(prompt.prompt_id, batch.key, metric, count(self.of_id[prompt.prompt_id]))
                for prompt in batch.prompts for metric, count in COUNTS.items()]
        prompt_id, task, metric, value = zip(*(row for row in rows if row[3] is not None))
        return effects({"prompt_id": prompt_id, "task": task, "metric": metric, "value": value, "baseline": [0] * len(value)})

    def completed(self, rows, table, items):
        """A count is tested against nothing; beside its mean stand its bounds."""
        for row in rows:
            values = [COUNTS[row["metric"]](item) for item in self.made[row["conditions"]["task"]]]
            row.update(UNTESTED, least=min(values), most=max(values))
        return rows

    @cached_property
    def counted(self) -> list[dict]:
        """A row a level: what the table of the report says."""
        return [counted(level, items) for level, items in self.made.items()]

    def artefacts(self):
        items = [item for found in self.made.values() for item in found]
        records = [item.record() for item in items]
        return {"generated_prompts": records, "generated_prompts.csv": as_csv(records),
                "generation": {"lexicon": self.lexicon, "seed": self.setting.seed, "per_level": self.knobs.per_level,
                               "sha256": generated.digest_of(items), "duplicates": len(items) - len({item.question.prompt for item in items}),
                               "left_out": left_out(self.lexicon, self.levels), "levels": self.counted}}

    def headline(self, summary):
        return words.headline(sorted(summary, key=lambda row: list(LEVELS).index(row["conditions"]["task"])))

    def findings(self, summary):
        return words.findings(summary, left_out(self.lexicon, self.levels))

    def caveats(self, summary):
        return words.caveats(self.lexicon)

    def listings(self, run):
        return [("The levels", words.table(run.artifact("generation.json")["levels"])),
                ("One prompt of each kind", words.examples(run.artifact("generated_prompts.json")))]


def counted(level: str, items: Sequence[Generated]) -> dict:
    """What a level holds."""
    answers = Counter(item.question.expected for item in items)
    bounds = {name: _bounds([count(item) for item in items]) for name, count in COUNTS.items()}
    return {"level": level, "category": LEVELS[level], "n": len(items), "originals": sum(item.is_original for item in items), **bounds,
            "patterns": dict(Counter(item.pattern for item in items)), "answers": dict(answers.most_common())}


def _bounds(values: Sequence[int | None]) -> list[int] | None:
    known = [value for value in values if value is not None]
    return [min(known), max(known)] if known else None


def as_csv(records: Sequence[dict]) -> str:
    """The same records as a table; lists and the partner as JSON."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in record.items()})
    return out.getvalue()
