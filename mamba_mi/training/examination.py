"""What a model of the world is examined in: facts as told and in new words, what follows, in-context tasks."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mamba_mi.config import stream
from mamba_mi.data import Prompt, batches, facts
from mamba_mi.data.facts.tasks import IN_CONTEXT, asked
from mamba_mi.data.facts.words import PERSON, TWO_HOP
from mamba_mi.measure import metrics
from mamba_mi.measure.bootstrap import bca, cluster_sums
from mamba_mi.measure.stats import wilson

TOLD = {"recall_heldout": (PERSON, "heldout"), "recall_train": (PERSON, "train"),
        "two_hop_heldout": (TWO_HOP, "heldout"), "two_hop_train": (TWO_HOP, "train")}


def exam(tokenizer, *, n: int | None, seed: int, length: int) -> dict[str, tuple[Prompt, ...]]:
    """At most n prompts a task (None: all of the world, 256 of each in-context task), of `length` at the most."""
    papers = {}
    for task, (relations, split) in TOLD.items():
        knobs = facts.Knobs(relations=list(relations), split=split)
        papers[task] = facts.load(knobs, tokenizer, seed).prompts[:n]
    for task in IN_CONTEXT:
        papers[task] = asked(task, n or 256, stream(seed, "exam", task), length)
    return papers


@torch.no_grad()
def marks(lm, prompts: Sequence[Prompt], size: int = 256) -> dict[str, tuple[float, float]]:
    """Each prompt's `hit` (1 or 0) and the probability of its answer, by prompt_id."""
    out = {}
    for batch in batches(prompts, size):
        resid_BLD, _ = lm.through(lm.embed(batch.tokens_BL), keep=False)
        logits_BV = lm.unembed(resid_BLD[:, -1:])[:, 0]
        target_B = torch.tensor([p.target_id for p in batch.prompts], device=logits_BV.device)
        scores = zip(*(metric(logits_BV, target_B).tolist() for metric in (metrics.hit, metrics.probability)),
                     strict=True)
        out.update(zip((p.prompt_id for p in batch.prompts), scores, strict=True))
    return out


def grades(papers: Mapping[str, Sequence[Prompt]], scored: Mapping[str, Mapping], *, seed: int,
           resamples: int = 2000) -> dict[str, dict]:
    """The share of right answers on each task, with its 95% interval.

    Questions about one person are resampled together; in-context tasks, each drawn on its own, get Wilson's.
    """
    out = {}
    for task, prompts in papers.items():
        hits = np.array([scored[task][p.prompt_id][0] for p in prompts])
        low, high = (_clustered(hits, [p.cluster for p in prompts], stream(seed, "grades", task), resamples)
                     if task in TOLD else wilson(hits.sum(), len(hits)))
        probability = float(np.mean([scored[task][p.prompt_id][1] for p in prompts]))
        out[task] = {"hit": float(hits.mean()), "ci_low": float(low), "ci_high": float(high), "n": len(hits),
                     "n_clusters": len({p.cluster for p in prompts}), "probability": probability}
    return out


def _clustered(hits_N, clusters: Sequence[str], generator, resamples: int) -> tuple[float, float]:
    labels, cluster_N = np.unique(clusters, return_inverse=True)
    cell_N, shape = np.zeros_like(cluster_N), (len(labels), 1)
    sums_C1, counts_C1 = (cluster_sums(x_N, cluster_N, cell_N, shape) for x_N in (hits_N, np.ones(hits_N.size)))
    interval = bca(sums_C1, counts_C1, counts_C1 > 0, resamples=resamples, generator=generator)
    return interval.low[0], interval.high[0]
