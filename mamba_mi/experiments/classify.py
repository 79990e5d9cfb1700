"""Questions of six data sets in seven categories, by the rules of data/classify.py; kept in one file for dataset=classified.

No model is asked anything. In the effects a record is a row for each category of its set, 1 where it is of it: means are
shares of the set's records, over clusters of questions about one article. The baseline is 0.
"""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from mamba_mi.config import UserError, did_you_mean
from mamba_mi.data import Batch
from mamba_mi.data.classify import CATEGORIES_OF, RULES
from mamba_mi.experiments import UNTESTED, Experiment, _classified_file, at_least
from mamba_mi.measure.effects import effects
from mamba_mi.report import classify_words as words

SETS = ("squad", "hotpotqa", "triviaqa", "musique", "drop", "natural_questions")
SHARE = "share"
EXAMPLES, CLIPPED = 2, 60  # of a category; characters of each text


@dataclass(frozen=True)
class Knobs:
    """Keys of conf/method/classify.yaml."""

    sets: list[str] = field(default_factory=lambda: [*SETS])
    samples_per_dataset: int | None = 1000
    target_per_category: int = 100
    paths: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(SETS))
    revisions: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(SETS))
    file: str = "experiment_logs/classified_questions.json"
    resamples: int = 2000


class Classify(Experiment):
    """The file of classified questions, and what is in it."""

    Knobs = Knobs
    needs = "nothing"
    shares = ""
    figures = ("classified_questions",)
    question = "Which questions of which data set are of which category?"
    conditions = ("dataset", "category")
    family = ()

    def check(self) -> None:
        knobs = self.knobs
        at_least(knobs, samples_per_dataset=1, target_per_category=1, resamples=20)
        for key, asked in (("sets", knobs.sets), ("paths", knobs.paths), ("revisions", knobs.revisions)):
            for name in asked:
                if name not in CATEGORIES_OF:
                    raise UserError(f"method.{key}: no set {name}; there are {', '.join(CATEGORIES_OF)}{did_you_mean(name, CATEGORIES_OF)}")
        if not knobs.sets or len(set(knobs.sets)) < len(knobs.sets):
            raise UserError(f"method.sets=[{', '.join(knobs.sets)}]: at least one, and each once")
        if Path(knobs.file).suffix != ".json":
            raise UserError(f"method.file={knobs.file}: its name must end in .json; the questions are in a .parquet beside it, too")
        for name, revision in knobs.revisions.items():
            if revision is not None and knobs.paths.get(name):
                raise UserError(f"method.revisions.{name}={revision}: the hub's copy has revisions, method.paths.{name}={knobs.paths[name]} none; "
                                "leave one of them out")
        self.whole = None if self.setting.force else _classified_file.kept(knobs, self.setting.seed)
        # read before there is a run's folder: a file that cannot be used leaves none
        self.local = _classified_file.local_sets(knobs, self.setting.seed) if self.whole is None else {}

    def setting_in_words(self) -> dict[str, str]:
        return {"model": "none is asked anything", "data": ", ".join(self.knobs.sets)}

    def fit(self, train, scratch: Path) -> None:
        """Read and classify, unless that is done: nothing is written twice."""
        if self.whole is None:
            self.whole = _classified_file.make(self.knobs, self.setting.seed, self.local)
        if not (beside := Path(self.knobs.file).expanduser().with_suffix(".parquet")).is_file():
            _classified_file.write_parquet(beside, self.whole)

    @property
    def read_from(self) -> dict[str, dict]:
        """Of each set that has been read."""
        read = self.whole["sources"] if self.whole else {name: each.source for name, each in self.local.items()}
        return {name: _classified_file.described(self.knobs, name, source) for name, source in read.items()}

    def batches(self, items) -> list[Batch]:
        """One a set, without prompts: what was judged is in the file."""
        return [Batch((), name) for name in self.knobs.sets]

    def clusters(self, items) -> dict[str, str]:
        return {each["question_id"]: f"{each['source']}: {each['cluster'] or each['question_id']}" for each in self.whole["judged"]}

    def step(self, batch) -> pa.Table:
        judged = [each for each in self.whole["judged"] if each["source"] == batch.key]
        ids = [each["question_id"] for each in judged]
        found = np.array([each["category"] or words.SKIPPED for each in judged])
        columns = [*CATEGORIES_OF[batch.key], words.SKIPPED]
        return pa.concat_tables([effects({
            "prompt_id": ids, "dataset": [batch.key] * len(ids), "category": [category] * len(ids), "metric": [SHARE] * len(ids),
            "value": (found == category).astype(float), "baseline": np.zeros(len(ids))}) for category in columns])

    def completed(self, rows, table, items):
        """Beside the share the records it is of, and how many were kept; a share is tested against nothing."""
        cells = {(each["dataset"], each["category"]): each for each in account(self.whole)["cells"]}
        for row in rows:
            cell = cells[row["conditions"]["dataset"], row["conditions"]["category"]]
            row.update(UNTESTED, found=cell["found"], kept=cell["kept"])
        return rows

    def artefacts(self) -> dict:
        return {"classified": account(self.whole)}

    def recall(self, folder: Path) -> None:
        self.__dict__["told"] = json.loads((folder / "artifacts" / "classified.json").read_text(encoding="utf-8"))

    @property
    def account(self) -> Mapping:
        """What was found, of this run or of the one that is done."""
        return self.__dict__.get("told") or account(self.whole)

    def headline(self, summary):
        return [{key: row[key] for key in ("conditions", "found", "kept", "n", "n_clusters", "mean", "ci_low", "ci_high")} for row in summary]

    def findings(self, summary):
        return words.findings(self.account, self.knobs.file)

    def caveats(self, summary):
        return words.caveats(self.account)

    def listings(self, run):
        return words.listings(self.account)


def account(whole: Mapping) -> dict:
    """What a reader wants to know of the file: questions found and kept, skipped and why, rules, examples, sources."""
    judged, records = whole["judged"], whole["records"]
    found = Counter((each["source"], each["category"] or words.SKIPPED) for each in judged)
    kept = Counter((each["source"], each["category"]) for each in records)
    fired, used = Counter(each["rule"] for each in judged), Counter(each["rule"] for each in records)
    skipped = Counter((each["source"], each["why"]) for each in judged if each["why"])
    return {
        "target": whole["settings"]["target_per_category"], "sources": whole["sources"],
        "cells": [{"dataset": name, "category": category, "found": found[name, category], "kept": kept[name, category]}
                  for name in whole["settings"]["sets"] for category in (*CATEGORIES_OF[name], words.SKIPPED)],
        "skipped": [{"dataset": name, "why": why, "count": count} for (name, why), count in skipped.most_common()],
        "rules": [{"rule": rule.name, "when": rule.when, "category": rule.category, "heuristic": rule.heuristic,
                   "fired": fired[rule.name], "kept": used[rule.name]} for rule in RULES],
        "examples": _examples(records)}


def _examples(records: Sequence[Mapping]) -> list[dict]:
    """A few of each category, one of every set before a second of any."""
    turn: Counter = Counter()
    by_turn: dict[str, list[tuple[int, int]]] = {}
    for i, record in enumerate(records):
        turn[record["category"], record["source"]] += 1
        by_turn.setdefault(record["category"], []).append((turn[record["category"], record["source"]], i))
    chosen = [records[i] for found in by_turn.values() for _, i in sorted(found)[:EXAMPLES]]
    return [{key: _clip(record[key]) for key in ("category", "source", "rule", "question", "expected", "context")} for record in chosen]


def _clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= CLIPPED else f"{line[:CLIPPED - 1].rstrip()}…"
