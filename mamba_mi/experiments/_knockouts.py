"""What the experiments on knockouts share: their windows of layers, their metrics, and effects from the cone's numbers.

Shape legend: S cells, B prompts, M metrics.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from torch import Tensor

from mamba_mi.config import UserError
from mamba_mi.data import Batch
from mamba_mi.interventions.cone import contrast
from mamba_mi.interventions.knockout import CONVS, SPANS
from mamba_mi.measure.answers import METRICS, answers, narrow, reader
from mamba_mi.measure.effects import effects
from mamba_mi.report.words import RELATIVE

DEFAULT = ("probability", RELATIVE, "hit", "log_probability", "logit_difference")
KNOWN = tuple(name for name in METRICS if name not in ("kl", "rank")) + (RELATIVE,)


def windows(size: int, mixing: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Every window of `size` consecutive layers of those that mix tokens, by its first layer."""
    if not 1 <= size <= len(mixing):
        raise UserError(f"a window of {size} layers: this model has {len(mixing)}; give 1-{len(mixing)}")
    return {mixing[at]: tuple(mixing[at:at + size]) for at in range(len(mixing) - size + 1)}


def policies(knobs, lm) -> list[tuple[str, str]]:
    """The (conv, span) that are asked for; in a model without a conv (its width is 1) all are the same."""
    if lm.config.d_conv == 1:
        wrong = [f"method.{key}=[{','.join(asked)}]" for key, asked, plain in (("conv", knobs.conv, "scan"), ("span", knobs.span, "token"))
                 if plain not in asked]
        if wrong:
            raise UserError(f"{' '.join(wrong)}: {lm.name} has no conv; leave method.conv and method.span out, or give [scan] and [token]")
        return [("scan", "token")]
    return [(conv, span) for conv in CONVS if conv in knobs.conv for span in SPANS if span in knobs.span]


def check_dense(knobs, lm) -> None:
    """Raise where the ways from earlier layers are to be cut and there are none."""
    if knobs.dense and not getattr(lm.config, "cuts_dense", False):
        raise UserError(f"method.dense=true: {lm.name} is a {lm.config.variant}, whose knockouts have no ways from earlier layers to "
                        "cut apart; leave it out")


def distinct(asked: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without those that say the same: the slots after a source are widened under scan alone, for `both` and `conv` take
    the token out of those slots already."""
    return [(conv, span) for conv, span in asked if conv == "scan" or span == "token"]


def _read(metrics: Sequence[str]) -> list[str]:
    """What is read off the logits for these metrics: the relative probability is made of the probability."""
    asked = [name for name in metrics if name != RELATIVE]
    return asked + ["probability"] * (RELATIVE in metrics and "probability" not in asked)


def measure(lm, batch: Batch, sets: Sequence, metrics: Sequence[str], *, memory: int, ledger) -> tuple[Tensor, Tensor]:
    """The metrics of each set of interventions and of the clean run beside it, S B M each; of two logits alone where
    the metrics need no more."""
    asked = _read(metrics)
    told = answers(batch, asked, lm.device)
    tokens_BL, few = told.continued(batch.tokens_BL), narrow(asked, told)
    only_BX, told_here = few or (None, told)
    return contrast(lm, tokens_BL, sets, reader(asked, told_here, None), tail=told.tail, memory=memory, ledger=ledger,
                    only_BX=only_BX)


def table(batch: Batch, metrics: Sequence[str], cells: Sequence[Mapping], values_SBM: Tensor, baselines_SBM: Tensor,
          left_out: Mapping[int, set[str]] | None = None) -> pa.Table:
    """The effects: a row a prompt, cell and metric. `cells` are the condition columns of each set; `left_out` names
    the prompts that a cell says nothing of. A prompt without a wrong answer has no logit difference."""
    values, baselines = (x.double().cpu().numpy() for x in (values_SBM, baselines_SBM))
    columns = {name: (values[..., i], baselines[..., i]) for i, name in enumerate(_read(metrics))}
    if RELATIVE in metrics:
        p, p0 = columns["probability"]
        columns[RELATIVE] = 100 * (p / np.where(p0 > 0, p0, np.nan)), np.full_like(p0, 100.0)  # so: p / p is exactly 1
    ids = np.array([p.prompt_id for p in batch.prompts])
    known_SB = np.array([[i not in (left_out or {}).get(s, ()) for i in ids] for s in range(len(cells))])
    compared_B = np.array([p.wrong_id is not None for p in batch.prompts]) | bool(batch.corrupt)
    parts = []
    for name in metrics:
        value_SB, baseline_SB = columns[name]
        keep = known_SB & np.isfinite(value_SB) if name == RELATIVE else known_SB
        at_S, at_B = np.nonzero(keep & compared_B if name == "logit_difference" else keep)
        parts.append(effects({
            "prompt_id": ids[at_B],
            **{key: [cells[s][key] for s in at_S] for key in cells[0]},
            "metric": np.full(len(at_S), name), "value": value_SB[at_S, at_B], "baseline": baseline_SB[at_S, at_B]}))
    return pa.concat_tables(parts)


def with_layers(rows: list[dict], lm) -> list[dict]:
    """The summary's rows, each told the layers of its window where not all between them mix tokens."""
    if len(lm.mixing) == lm.config.n_layer:
        return rows
    return [row | {"layers": list(windows(row["conditions"]["window_size"], lm.mixing)[row["conditions"]["window_start"]])} for row in rows]
