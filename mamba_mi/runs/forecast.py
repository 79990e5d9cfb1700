"""What a run would do, without doing it: prompts, jobs, token-forwards, memory, and an estimate of the time.

Shape legend: B batch, L length.
"""
from __future__ import annotations

import time

import torch

from mamba_mi.data import pair_up

LONG = 2  # seconds: a pass that takes so long is not repeated for a better estimate


def forecast(experiment, dataset, *, n: int | None, only_correct: bool, seed: int) -> dict[str, str]:
    """Lines for the console. Uses the first n candidates as if the model got them all right."""
    if dataset is None or dataset.corpus:
        return experiment.plan()
    lm = experiment.lm
    items = list(dataset.pairs[:n]) or list(dataset.prompts)
    if not dataset.pairs and experiment.needs == "pairs":
        items, _ = pair_up(items, seed=seed)
    items = items[:n]
    parts = experiment.batches(items)
    costs = [experiment.cost(batch) for batch in parts]
    jobs, token_layers = sum(jobs for jobs, _ in costs), sum(tokens for _, tokens in costs)
    seconds = token_layers / _rate(lm, parts[0]) if parts else 0.0
    looked_at = len(dataset.pairs) or len(dataset.prompts)
    return {
        "prompts": f"{len(items)} of {looked_at} candidates in {len(parts)} batches"
                   + (", if the model gets them right; those it does not are dropped" if only_correct else ""),
        "jobs": f"{jobs:,}, one an intervention set and prompt",
        "token-forwards": f"{token_layers / lm.config.n_layer:,.0f} through all {lm.config.n_layer} layers "
                          f"(one full forward a job: {sum(j * b.length for (j, _), b in zip(costs, parts)):,})",
        "memory": f"{_bytes(lm) / 2**30:.2f} GiB of weights and at most "
                  f"{experiment.setting.memory / 2**30:.2f} GiB of activations in the cone (cone.memory)",
        "time": f"about {_words(seconds)} on {lm.device}, choosing prompts and statistics apart",
    }


def _rate(lm, batch) -> float:
    """Tokens times layers a second, measured on one batch; on several of it together where one is done in no time."""
    tokens_BL = batch.tokens_BL
    with torch.no_grad():
        if (first := _timed(lm, tokens_BL)) > LONG:  # also where kernels are compiled first
            return tokens_BL.numel() * lm.config.n_layer / min(first, _timed(lm, tokens_BL))
        tokens_BL = tokens_BL.repeat(-(-16 // len(batch)), 1)
        seconds = min(_timed(lm, tokens_BL) for _ in range(3))  # the machine may be busy with something else
    return tokens_BL.numel() * lm.config.n_layer / seconds


def _timed(lm, tokens_BL) -> float:
    start = time.perf_counter()
    lm(tokens_BL)[0][0, 0, 0].item()  # a GPU is waited for
    return time.perf_counter() - start


def _bytes(lm) -> int:
    return sum(p.numel() * p.element_size() for p in lm.parameters())


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
