"""What answers are worth that have nothing to do with the question: the same ones, held against other prompts' right answers.

A model that says one word to everything is right as often as that word happens to be; here it is as often without its
prompt. Shape legend: N prompts of a group, S draws, M metrics of scoring.METRICS.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping

import numpy as np
import torch

from mamba_mi.config import stream
from mamba_mi.measure.scoring import Gold, Said, scores


class Shuffled:
    """`draws` random orders of every group's right answers, one for each of its prompts; the same for the same seed.

    An order may leave an answer where it is: over all orders alike, which makes the share of them that do as well as the
    true one a p-value (a permutation test). A baseline is about other prompts' answers alone.
    """

    def __init__(self, golds: Mapping[str, Gold], groups: Mapping[str, Hashable], *, draws: int, seed: int):
        self.golds, members = golds, defaultdict(list)
        for name in sorted(golds):
            members[groups[name]].append(name)
        self.draws, self._place = draws, {name: (group, i) for group, names in members.items() for i, name in enumerate(names)}
        self._members, self._order_SN = dict(members), {group: _orders(len(names), draws, stream(seed, "shuffled", group))
                                                        for group, names in members.items()}

    def scores(self, name: str, said: Said) -> np.ndarray:
        """The answer's score in every draw, SM."""
        names, drawn_S = self._drawn(name)
        partners, of_S = np.unique(drawn_S, return_inverse=True)
        return np.array([scores(said, self.golds[names[i]]) for i in partners])[of_S]

    def baseline(self, name: str, said: Said) -> np.ndarray | None:
        """The mean over the draws that give it another prompt's answer, M; None for a prompt that is alone."""
        others_S = self._drawn(name)[1] != self._place[name][1]
        return self.scores(name, said)[others_S].mean(axis=0) if others_S.any() else None

    def _drawn(self, name: str) -> tuple[list[str], np.ndarray]:
        group, at = self._place[name]
        return self._members[group], self._order_SN[group][:, at]


def _orders(size: int, draws: int, generator: torch.Generator) -> np.ndarray:
    return np.stack([torch.randperm(size, generator=generator).numpy() for _ in range(draws)])
