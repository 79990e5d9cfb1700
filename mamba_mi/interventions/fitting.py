"""Subspaces fitted to training pairs, with everything their judgement needs: controls, and the part nobody reads.

Shape legend: B prompts, L length, N samples, D width of the site, R rank.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mamba_mi.config import ORTHOGONAL, UNCONSTRAINED, UserError, stream
from mamba_mi.data import Batch, roles
from mamba_mi.interventions import subspace
from mamba_mi.interventions.das import align
from mamba_mi.interventions.patches import Swap, watch
from mamba_mi.trace import Site

Place = tuple[Site, str]  # a site and a position role: each has its own subspace
FAMILIES = (*UNCONSTRAINED, ORTHOGONAL)
PARTS = ("row_space", "null_space")


class Fitted:
    """The fitted subspaces of a run, by place; `swap` has them, their two parts and their random controls."""

    def __init__(self, lm, kind: str, rank: int, seed: int):
        self.lm, self.kind, self.rank, self.seed = lm, kind, rank, seed
        self.directions: dict[Place, Tensor] = {}
        self._samples: dict[Place, Tensor] = {}
        self._parts: dict[Place, tuple[Tensor, Tensor] | None] = {}

    def fit(self, batches: Sequence[Batch], places: Sequence[Place], *, steps: int,
            known: Mapping[str, Tensor] | None = None, progress: Callable[[int, int], None] | None = None) -> None:
        """Find every place's subspace on these pairs; `known` ones, by their `named` names, are taken as they are."""
        samples, classes = self._gather(batches, places)
        for done, place in enumerate(places, start=1):
            if place not in samples:
                raise UserError(f"method.subspace={self.kind}: none of the pairs to fit on has the role {place[1]}; "
                                "more pairs (method.train) or fewer roles (method.roles)")
            self._samples[place] = samples[place]
            start = subspace.principal(samples[place], self.rank) if self.kind == "pca" else \
                subspace.mean_difference(samples[place], classes[place], self.rank)
            found = (known or {}).get(named(place))
            if found is None:
                found = align(self.lm, batches, *place, start, steps=steps) if self.kind == "das" else start
            self.directions[place] = found.double()
            self._parts[place] = self._split(place)
            if progress:
                progress(done, len(places))

    def swap(self, place: Place, name: str, draw: int | None = None) -> Swap:
        """The exchange called `name` at a place: the fitted subspace, one of PARTS, or a control of FAMILIES."""
        fitted_RD = self.directions[place]
        if draw is None:
            return Swap(fitted_RD if name == self.kind else self._parts[place][PARTS.index(name)])
        # of the place and the draw alone: one job a draw and all draws in one run meet the same subspaces
        generator = stream(self.seed, "controls", name, *named(place).split("|"), draw)
        if name == "covariance":
            return Swap(subspace.shaped(self._samples[place], self.rank, generator))
        if name == ORTHOGONAL:
            return Swap(subspace.orthogonal(fitted_RD, generator))
        drawn_RD = subspace.isotropic(fitted_RD.shape[1], self.rank, generator)
        return Swap(drawn_RD, fitted_RD if name == "rescaled" else None)

    def parts(self, place: Place) -> Iterator[tuple[str, int]]:
        """The parts a place's subspace has, with their ranks; none where no linear map reads the site."""
        if self._parts[place] is not None:
            yield from zip(PARTS, map(len, self._parts[place]), strict=True)

    def _split(self, place: Place) -> tuple[Tensor, Tensor] | None:
        reader_WD = self.lm.reader(place[0])
        return None if reader_WD is None else subspace.split(self.directions[place], reader_WD.detach().cpu())

    @torch.no_grad()
    def _gather(self, batches, places) -> tuple[dict[Place, Tensor], dict[Place, Tensor]]:
        """Each place's values at every position of its role, over both sides of the pairs, with their answers."""
        samples, classes = defaultdict(list), defaultdict(list)
        for batch in batches:
            found = roles(batch.length, batch.spans)
            for tokens_BL, prompts in ((batch.tokens_BL, batch.prompts), (batch.corrupt_BL, batch.corrupt)):
                values, _ = watch(self.lm, self.lm.embed(tokens_BL), {site for site, _ in places})
                answer_B = torch.tensor([p.target_id for p in prompts])
                for site, role in places:
                    at = found.get(role, ())
                    samples[site, role] += [values[site][:, position].cpu() for position in at]
                    classes[site, role] += [answer_B] * len(at)
        joined = [{place: torch.cat(xs) for place, xs in found.items() if xs} for found in (samples, classes)]
        return joined[0], joined[1]


def named(place: Place) -> str:
    """A place as text: `3.resid|last`."""
    return f"{place[0]}|{place[1]}"
