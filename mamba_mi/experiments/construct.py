"""The data set as the model answers it: every prompt on both paths, the source's columns and what the model says.

Experiments that need prompts the model knows take those that are hits on both paths (Endy et al. 2025 do).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from mamba_mi.data import Prompt
from mamba_mi.data.reading import printable
from mamba_mi.experiments._paths import PATHS, Paths, both
from mamba_mi.measure.effects import PREDICTION
from mamba_mi.report.paths_words import levels, table_of_levels

METRIC_OF = {"true_prob": "probability", "false_prob": "false_probability", "max_prob": "max_probability", "hit": "hit",
             "pred_id": PREDICTION, "target_logprob": "target_logprob"}
OURS = ("prompt_id", "path", *METRIC_OF, "pred", "target_id", "n_tokens")


class Construct(Paths):
    """artifacts/construct.parquet: a row a prompt and path."""

    question = "What does the model answer to every prompt, on the ordinary and on the attention path?"
    metrics = tuple(METRIC_OF.values())

    def tables(self, effects, items):
        return {"construct": self._constructed(effects, sorted(items, key=lambda p: p.prompt_id))}

    def _constructed(self, effects: pa.Table, prompts: Sequence[Prompt]) -> pa.Table:
        sources = [_source(prompt) for prompt in prompts for _ in PATHS]
        names = list(dict.fromkeys(name for source in sources for name in source))
        columns = {"prompt_id": [p.prompt_id for p in prompts for _ in PATHS]}
        columns |= {f"source_{name}" if name in OURS else name: _column([source.get(name) for source in sources])
                    for name in names}
        columns["path"] = [path for _ in prompts for path in PATHS]
        measured = {name: self._measured(effects, prompts, metric) for name, metric in METRIC_OF.items()}
        measured = {name: values for name, values in measured.items() if any(x is not None for x in values)}
        token_ids = list(map(int, measured["pred_id"]))
        texts = {token: self.predicted(token) for token in set(token_ids)}
        return pa.table(columns | measured | {
            "hit": [x == 1.0 for x in measured["hit"]], "pred": [texts[token] for token in token_ids], "pred_id": token_ids,
            "target_id": [p.target_id for p in prompts for _ in PATHS],
            "n_tokens": [len(p.token_ids) for p in prompts for _ in PATHS]})

    @staticmethod
    def _measured(effects, prompts, metric: str) -> list[float | None]:
        """A metric of every prompt on each path, as the rows stand; None where the prompt has none."""
        found = {i: pair for i, *pair in zip(*both(effects, metric), strict=True)}
        return [x for prompt in prompts for x in found.get(prompt.prompt_id, (None, None))]

    def headline(self, summary):
        return table_of_levels(summary)

    def findings(self, summary):
        return levels(summary)

def _source(prompt: Prompt) -> Mapping:
    """The record a prompt came from, or what the prompt itself says where the data set has none."""
    return prompt.source or {"prompt": prompt.text, "target": prompt.target, "subject": prompt.cluster}


def _column(values: list) -> pa.Array:
    """As the file has them; a column of several kinds of values as text."""
    try:
        return pa.array(values)
    except (pa.ArrowException, UnicodeEncodeError):
        return pa.array([None if x is None else printable(str(x)) for x in values])
