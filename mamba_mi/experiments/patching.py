"""Activation patching: where the answer sits, where it has moved to, and in which heads, coordinates or subspaces.

Denoising puts the clean run's value into the corrupted run: what is restored was sufficient. Noising puts the
corrupted run's value into the clean one: what is lost was necessary. Symmetric token replacement, logit difference
first (Zhang & Nanda 2024; Heimersheim & Nanda 2024); with corruption=noise it is causal tracing (Meng et al. 2022).
Shape legend: S cells, B pairs, L length, D width, K answer tokens read, V vocabulary, M metrics.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save

from mamba_mi.config import UserError, did_you_mean, stream
from mamba_mi.data import batches, roles
from mamba_mi.data.spans import is_role
from mamba_mi.experiments import Experiment, _patching_knobs
from mamba_mi.experiments._patching_knobs import DIRECTIONS, Knobs
from mamba_mi.interventions.exchange import Exchange
from mamba_mi.interventions.fitting import FAMILIES, Fitted, named
from mamba_mi.interventions.patches import Cell
from mamba_mi.measure.answers import answers, reader
from mamba_mi.measure.controls import NORM
from mamba_mi.measure.effects import effects
from mamba_mi.report.patching_words import beside_chance, caveats, crossing, largest, setting
from mamba_mi.report.words import HEADLINE
from mamba_mi.runs import files
from mamba_mi.runs.progress import bar
from mamba_mi.trace import Site

ROLES_SHOWN = ("subject", "between", "last")
BESIDE_CHANCE = ("conditions", "metric", "n", "n_clusters", "mean", "ci_low", "ci_high", "effect_size", "p_adjusted", "control_mean",
                 "control_p", "control_p_covariance", "control_p_rescaled", "control_match", "excluded")


class Patching(Experiment):
    """Every site × layer × position role, both directions, through the light cone."""

    Knobs = Knobs
    needs = "pairs"
    family = ("direction", "subspace")
    normalised = {"logit_difference": HEADLINE}

    def __init__(self, knobs, lm, setting):
        # as TransformerLens and MambaLens name them, too; each once
        knobs = replace(knobs, sites=_patching_knobs.sites(knobs, lm))
        super().__init__(knobs, lm, setting)
        self.fitted = Fitted(lm, knobs.subspace, knobs.rank, setting.seed) if knobs.subspace else None

    @property
    def question(self) -> str:
        if self.knobs.subspace:
            return (f"How much of the information that decides the answer lies in {self.knobs.rank} dimensions of a site, "
                    "and is that more than in random ones?")
        what = "In which heads" if self.knobs.heads is not None else "Where in the model"
        return f"{what} does the information that decides the answer sit, and where does it move to?"

    @property
    def title(self) -> str:
        if self.knobs.subspace:
            return "patching in a subspace"
        return "causal tracing" if self.knobs.corruption == "noise" else "patching"

    def setting_in_words(self):
        return setting(self.knobs, self.lm)

    @property
    def conditions(self) -> tuple[str, ...]:
        inside = ("head",) if self.knobs.heads is not None else ("subspace", "rank", "draw") if self.knobs.subspace else ()
        return ("direction", "site", "layer", "role", *inside)

    @property
    def figures(self) -> tuple[str, ...]:
        if self.knobs.subspace:
            return ("patching_subspace",)
        return ("patching_heads",) if self.knobs.heads is not None else ("patching_map", "patching_curves")

    @property
    def train_size(self) -> int:
        return self.knobs.train if self.knobs.subspace else 0

    @property
    def same_template(self) -> bool:
        return self.knobs.corruption != "resample"

    @property
    def summary_only(self) -> bool:
        return self.knobs.draw is not None

    def check(self) -> None:
        _patching_knobs.check(self.knobs, self.lm)

    def places(self, batch) -> list[tuple[Site, str, tuple[int, ...]]]:
        """Every site, role and its positions of this layout: outer sites once, the final norm at the last token only."""
        found = self._roles(batch)
        layers = [-1, *_patching_knobs.layers(self.knobs, self.lm)]
        return [(Site(layer, name), role, at) for name in self.knobs.sites for layer in layers if Site(layer, name) in self.lm.sites
                for role, at in found.items() if name != "final_norm" or role == "last"]

    def cells(self, batch) -> list[Cell]:
        """Every exchange of this layout; those in subspaces only after `fit`."""
        if self.fitted is not None:
            return [cell for place in self.places(batch) for cell in self._in_subspaces(*place)]
        heads = _patching_knobs.heads(self.knobs, self.lm)
        return [Cell(*place, head) for place in self.places(batch) for head in heads]

    def _roles(self, batch) -> dict[str, tuple[int, ...]]:
        found, chosen = roles(batch.length, batch.spans), self.knobs.roles
        if chosen == "all":
            return found
        chosen = [chosen] if isinstance(chosen, str) else chosen
        for role in chosen:
            if role not in found and role not in ("subject", *batch.spans) and not is_role(role):
                raise UserError(f"method.roles={role}: these prompts have {', '.join(found)}{did_you_mean(role, found)}")
        return {role: at for role, at in found.items() if role in chosen}

    def _in_subspaces(self, site: Site, role: str, at: tuple[int, ...]) -> Iterator[Cell]:
        rank = self.knobs.rank
        yield Cell(site, role, at, subspace="full", rank=self.lm.widths[site.name][0])
        yield Cell(site, role, at, subspace=self.knobs.subspace, rank=rank)
        for name, left in self.fitted.parts((site, role)):
            yield Cell(site, role, at, subspace=name, rank=left)
        for draw in self._draws():
            yield from (Cell(site, role, at, subspace=family, rank=rank, draw=draw) for family in FAMILIES)

    def _draws(self) -> range:
        return range(self.knobs.draws) if self.knobs.draw is None else range(self.knobs.draw, self.knobs.draw + 1)

    def fit(self, train, scratch: Path) -> None:
        """Find the subspaces on pairs whose subjects are not measured; what took long to find is kept in `scratch`."""
        if self.fitted is None:
            return
        file, parts = scratch / "directions.safetensors", batches(train, self.knobs.batch)
        places = list(dict.fromkeys((site, role) for batch in parts for site, role, _ in self.places(batch)))

        with bar("fitting") as progress:
            def keep(done, total):
                progress(done, total)
                if self.knobs.subspace == "das":
                    files.write_bytes(file, save(self._directions()))
            self.fitted.fit(parts, places, steps=self.knobs.das_steps, known=load_file(file) if file.exists() else {},
                            progress=keep)

    def _directions(self) -> dict:
        return {named(place): x.contiguous() for place, x in self.fitted.directions.items()}

    def artefacts(self):
        return {"directions": self._directions()} if self.fitted else {}

    def cost(self, batch) -> tuple[int, int]:
        places, depth = self.places(batch), self.lm.config.n_layer
        each = len(batch) * len(self.knobs.directions) * len(self._samples())
        if self.fitted is None:
            each *= len(_patching_knobs.heads(self.knobs, self.lm))
        else:
            each *= 4 + len(self._draws()) * len(FAMILIES)  # whole, subspace, its two parts
        tokens = sum((batch.length - min(at)) * (depth - max(site.layer, 0)) for site, _, at in places)
        return len(places) * each, tokens * each

    def step(self, batch) -> pa.Table:
        cells = self.cells(batch)
        if not cells:
            raise UserError(f"method.roles={self.knobs.roles}: these prompts have "
                            f"{', '.join(roles(batch.length, batch.spans))}")
        swaps = {cell: self.fitted.swap((cell.site, cell.role), cell.subspace, cell.draw)
                 for cell in cells if cell.subspace not in (None, "full")}
        tables = [self._measured(batch, cells, swaps, way) for way in DIRECTIONS if way in self.knobs.directions]
        return pa.concat_tables(tables, promote_options="default")

    def _measured(self, batch, cells, swaps, direction: str) -> pa.Table:
        knobs, setting = self.knobs, self.setting
        told = answers(batch, knobs.metrics, self.lm.device)
        exchange = Exchange(self.lm, told.tail, setting.memory, setting.ledger,
                            _patching_knobs.dims(knobs, self.lm))
        clean_BL, corrupt_BL = (told.continued(tokens) for tokens in (batch.tokens_BL, batch.corrupt_BL))
        read = reader(knobs.metrics, told, exchange.logits(self.lm.embed(clean_BL)) if "kl" in knobs.metrics else None)
        found = []
        for sample in self._samples():
            clean_BLD = self.lm.embed(clean_BL)
            corrupt_BLD = self.lm.embed(corrupt_BL) if sample is None else clean_BLD + self._noise(batch, sample, clean_BLD)
            base_BLD, source_BLD = (corrupt_BLD, clean_BLD) if direction == "denoising" else (clean_BLD, corrupt_BLD)
            found.append(exchange(clean_BL, base_BLD, source_BLD, cells, read, swaps))
        values, baselines, full, norms = (None if parts[0] is None else torch.stack(parts).mean(dim=0)
                                          for parts in zip(*found, strict=True))
        return self._table(batch, cells, direction, values, baselines, norms, full)

    def _samples(self) -> list[int | None]:
        """The noise draws a prompt is averaged over; [None] where the corrupted run is another prompt's."""
        return list(range(self.knobs.samples)) if self.knobs.corruption == "noise" else [None]

    def _noise(self, batch, sample: int, like_BLD: torch.Tensor) -> torch.Tensor:
        """Gaussian noise on the subject, `noise` standard deviations of the embedding's numbers; each prompt's own."""
        if "subject" not in batch.spans:
            raise UserError("method.corruption=noise: these prompts have no subject to put noise on; "
                            "method.corruption=pair needs none")
        start, end = batch.spans["subject"]
        noise_BLD, scale = torch.zeros_like(like_BLD), self.knobs.noise * self.lm.embedding.weight.float().std().item()
        for row, prompt in enumerate(batch.prompts):
            drawn = torch.randn(end - start, like_BLD.shape[2], dtype=torch.float64,
                                generator=stream(self.setting.seed, "noise", prompt.prompt_id, sample))
            noise_BLD[row, start:end] = (scale * drawn).to(noise_BLD)
        return noise_BLD

    def _table(self, batch, cells, direction, values_SBM, baselines_SBM, norms_SB, full_BM) -> pa.Table:
        asked = [i for i, cell in enumerate(cells) if cell.draw is None]
        drawn = [i for i, cell in enumerate(cells) if cell.draw is not None]
        headline = [self.knobs.metrics.index("logit_difference")]
        every = list(range(len(self.knobs.metrics)))
        tables = [self._rows(batch, cells, direction, rows, self.knobs.metrics, which, values_SBM, baselines_SBM, full_BM)
                  for rows, which in ((asked, every), (drawn, headline)) if rows]
        if norms_SB is not None:
            nothing = torch.zeros_like(norms_SB)[..., None]
            sized = [i for i, cell in enumerate(cells) if cell.subspace in (self.knobs.subspace, *FAMILIES)]
            tables.append(self._rows(batch, cells, direction, sized, [NORM], [0], norms_SB[..., None], nothing, nothing[0]))
        return pa.concat_tables(tables)

    def _rows(self, batch, cells, direction, rows, metrics, which, values_SBM, baselines_SBM, full_BM) -> pa.Table:
        """The effects of some cells in some metrics."""
        B, M = len(batch), len(which)
        picked = [cells[i] for i in rows]
        inside = {name: [getattr(cell, name) for cell in picked for _ in range(B * M)] for name in self.conditions[4:]}
        each_cell = lambda xs: np.repeat(np.array(xs), B * M)  # noqa: E731
        return effects({
            "prompt_id": np.tile(np.repeat([p.prompt_id for p in batch.prompts], M), len(picked)),
            "direction": np.full(len(picked) * B * M, direction),
            "site": each_cell([cell.site.name for cell in picked]),
            "layer": each_cell([cell.site.layer for cell in picked]),
            "role": each_cell([cell.role for cell in picked]),
            "position": each_cell([min(cell.positions) for cell in picked]),
            **inside,
            "metric": np.tile(np.array([metrics[m] for m in which]), len(picked) * B),
            "value": values_SBM[rows][..., which].flatten().cpu().numpy(),
            "baseline": baselines_SBM[rows][..., which].flatten().cpu().numpy(),
            "full": full_BM[..., which].expand(len(picked), B, M).flatten().cpu().numpy(),
        })

    def _told_of(self, summary) -> str:
        """The first site asked for; of `mixed` the one the run has, which is known without the model."""
        there = [row["conditions"]["site"] for row in summary]
        return next((name for name in self.knobs.sites if name in there), there[0])

    def headline(self, summary):
        shown = [row for row in summary if row["metric"] == HEADLINE and row["conditions"]["site"] == self._told_of(summary)]
        if self.knobs.heads is not None:
            return [_unnoted(row) for row in sorted(shown, key=lambda row: -abs(row["mean"] or 0.0))[:12]]
        if self.knobs.subspace:
            return [{key: row[key] for key in BESIDE_CHANCE if key in row} for row in shown
                    if row["conditions"]["subspace"] == self.knobs.subspace]
        return [_unnoted(row) for row in shown if row["conditions"]["role"] in ROLES_SHOWN]

    def findings(self, summary):
        ways, site = [way for way in DIRECTIONS if way in self.knobs.directions], self._told_of(summary)
        if all(row["mean"] is None for row in summary if row["metric"] == HEADLINE):
            return [f"There is no result: in every pair the two runs lie within method.tau={self.knobs.tau:g} logits of each "
                    "other, so none was left to take a ratio of."]
        if self.knobs.subspace:
            places = dict.fromkeys(row["conditions"]["role"] for row in summary)
            return [line for way in ways for role in places
                    for line in beside_chance(summary, way, site, role, self.knobs.subspace)]
        told = [line for way in ways for line in largest(summary, way)]
        if self.knobs.heads is not None:
            return told
        return [line for way in ways for role in ("subject", "last") for line in crossing(summary, way, site, role)] + (
            told if len(self.knobs.sites) > 1 or self.knobs.roles != "all" else [])

    def caveats(self, summary):
        return caveats(summary, self.knobs, self.lm and self.lm.config.d_conv)


def _unnoted(row: dict) -> dict:
    return {key: value for key, value in row.items() if key != "note"}
