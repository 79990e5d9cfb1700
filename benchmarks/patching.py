"""How fast a patching grid is, residual stream by layer and position, beside hooks on transformers' model and rivals.

Every contestant gets the same random weights and the same two prompts, patches the clean run's residual stream into the
corrupt run a cell at a time, and is asked for the last position's logits. These are compared before anything is timed.
Ours is timed over the whole grid from tokens to metrics; the others on as many cells as fit in the budget, their clean
run given. In every round all are timed one after another, and a ratio is taken within its round.
Shape legend: S cells, V vocabulary, L length.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from forward import SSM, ours, seconds, transformers_model
from machine import describe, table, write
from rich.progress import Progress
from torch import Tensor
from workers import ENVIRONMENTS, Failed, Worker, environment

from mamba_mi.config import stream
from mamba_mi.experiments.patching import Patching
from mamba_mi.interventions import Ledger
from mamba_mi.interventions.cone import MEMORY
from mamba_mi.interventions.exchange import Exchange
from mamba_mi.interventions.patches import Cell
from mamba_mi.measure.answers import Answers, reader
from mamba_mi.trace import Site

BOUND = 1e-4  # of the largest logit, in float32
SMALL = 32  # the chunk_size that suits a short prompt; transformers' default is 256
BATCHES = (8, 16, 32)
CHECKED = 12  # cells whose logits are compared
RIGHT, WRONG = 0, 1  # the two answers of the metrics


class Way(NamedTuple):
    """One way to patch: whose, at which chunk_size (None: as it comes), and whether many cells share a forward."""

    name: str
    chunk_size: int | None
    batched: bool

    def __str__(self):
        said = [self.name] + [f"chunk_size {self.chunk_size}"] * bool(self.chunk_size) + ["batched"] * self.batched
        return ", ".join(said)


TARGETS = {Way("hooks", None, False): 40, Way("hooks", SMALL, False): 8, Way("hooks", SMALL, True): 3,
           Way("transformer_lens", None, False): 20, Way("nnsight", None, False): 20}  # of Mamba-2, times faster


def ways(variant: str, names: list[str]) -> list[Way]:
    """Everything there is to try: Mamba-1 has no chunk_size, and TransformerLens' loop over cells no batches."""
    sizes = [None] if variant == "mamba1" else [None, SMALL]
    alone = [Way(name, size, False) for name in names for size in sizes]
    return alone + [Way(name, sizes[-1], True) for name in names if name != "transformer_lens"]


@dataclass
class Grid:
    """Our side: the model, two random prompts that differ everywhere, and every layer × position of the stream."""

    lm: object
    length: int
    cells: list = field(init=False)

    def __post_init__(self):
        drawn = torch.randint(self.lm.config.vocab_size, (2, self.length), generator=stream(0, "prompts", self.length))
        self.clean_BL, self.corrupt_BL = drawn[:1], drawn[1:]
        self.cells = [[layer, position] for layer in range(self.lm.config.n_layer) for position in range(self.length)]

    def _exchange(self, cells, read) -> tuple[Tensor, Tensor]:
        asked = [Cell(Site(layer, "resid"), str(position), (position,)) for layer, position in cells]
        clean_BLD, corrupt_BLD = self.lm.embed(self.clean_BL), self.lm.embed(self.corrupt_BL)
        exchange = Exchange(self.lm, 1, MEMORY, Ledger())
        return exchange(self.clean_BL, corrupt_BLD, clean_BLD, asked, read)[:2]

    def logits(self, cells) -> tuple[Tensor, Tensor]:
        """The last position's logits of these cells, SV, and of the corrupt run as it is, V."""
        values_SBKV, clean_SBKV = self._exchange(cells, lambda logits_SBKV: logits_SBKV)
        return values_SBKV[:, 0, 0], clean_SBKV[0, 0, 0]

    def measured(self) -> Tensor:
        """The whole grid in the metrics of `experiment=patching`, as that runs it."""
        told = Answers(torch.tensor([[RIGHT]]), torch.tensor([1]), torch.tensor([WRONG]))
        return self._exchange(self.cells, reader(Patching.Knobs().metrics, told, None))[0]

    def save(self, folder: Path) -> None:
        """The checkpoint in Hugging Face's layout, as it comes and with the small chunk_size, and the prompts in both."""
        model = transformers_model(self.lm)
        model.save_pretrained(folder / "default")
        if self.lm.config.variant == "mamba2":
            model.config.chunk_size = SMALL
            model.config.save_pretrained(folder / str(SMALL))
            os.link(folder / "default" / "model.safetensors", folder / str(SMALL) / "model.safetensors")
        prompts = {"clean": self.clean_BL[0].tolist(), "corrupt": self.corrupt_BL[0].tolist()}
        for each in folder.iterdir():
            (each / "prompts.json").write_text(json.dumps(prompts))


def spread(cells: list, count: int) -> list:
    """`count` cells, or all there are, evenly over the grid: over its layers and over its positions."""
    count = min(count, len(cells))
    return [cells[i * (len(cells) - 1) // max(1, count - 1)] for i in range(count)]


def check(grid: Grid, worker: Worker, batch: int, what: str) -> dict[str, float]:
    """How far its logits are from ours, over the largest; ValueError beyond BOUND, or if too few cells do anything."""
    cells = spread(grid.cells, max(CHECKED, batch))
    ours_SV, base_V = grid.logits(cells)
    theirs_SV, scale = worker.logits(cells, batch), float(base_V.abs().max())
    apart, moves_S = float((ours_SV - theirs_SV).abs().max()) / scale, (ours_SV - base_V).abs().amax(dim=1) / scale
    moved = float((moves_S > 10 * BOUND).float().mean())
    if not apart <= BOUND:
        idle = float((theirs_SV - base_V).abs().max()) / scale <= BOUND
        raise ValueError(f"{what}: logits are {apart:.1e} of the largest apart, more than {BOUND:.0e}"
                         + "; they are those of the run without a patch: its hook did nothing" * idle)
    if moved < 1 / 3:
        raise ValueError(f"{what}: only {moved:.0%} of the cells compared move a logit, so that equality says little")
    return {"apart": apart, "moved": moved}


def prepare(grid: Grid, way: Way, worker: Worker, budget: float) -> dict:
    """What is to be timed: outputs compared, the best batch found, and as many cells as fit in the budget."""
    sizes = [size for size in BATCHES if size <= len(grid.cells)] if way.batched else [1]
    tries = {size: worker.seconds(spread(grid.cells, size), size) / size for size in sizes}
    batch = min(tries, key=tries.get)
    found = check(grid, worker, batch, f"{grid.lm.config.variant}, {way}")
    count = max(1, min(len(grid.cells) // batch, round(budget / (batch * tries[batch])))) * batch
    return {"way": way, "worker": worker, "batch": batch, "cells": spread(grid.cells, count), **found}


def compare(grid: Grid, pythons: dict[str, Path | str], folder: Path, budget: float, repeats: int, tell) -> dict:
    """One variant: the contestants that can be timed, in rounds, and what the others said."""
    variant = grid.lm.config.variant
    grid.save(folder)
    pythons, ready, failed, running = {"hooks": sys.executable, **pythons}, [], {}, {}
    with ExitStack() as stack:
        for way in ways(variant, list(pythons)):
            tell(f"{variant}: {way}")
            place = folder / str(way.chunk_size or "default")
            try:
                if (way.name, place) not in running:
                    running[way.name, place] = stack.enter_context(Worker(way.name, place, pythons[way.name]))
                ready.append(prepare(grid, way, running[way.name, place], budget))
            except (Failed, ValueError) as e:
                if way.name == "hooks":
                    raise
                failed[str(way)] = str(e)
        rounds = []
        for number in range(repeats):
            tell(f"{variant}: round {number + 1} of {repeats}")
            rounds.append([len(grid.cells) / seconds(grid.measured)]
                          + [len(r["cells"]) / r["worker"].seconds(r["cells"], r["batch"]) for r in ready])
    mine, *theirs = zip(*rounds)
    return {"variant": variant, "cells": len(grid.cells), "cells_a_second": statistics.median(mine), "failed": failed,
            "contestants": [_row(r, mine, rates) for r, rates in zip(ready, theirs)]}


def _row(ready: dict, mine, rates) -> dict:
    times = [a / b for a, b in zip(mine, rates)]
    return {**ready["way"]._asdict(), "versions": ready["worker"].versions, "batch": ready["batch"],
            "timed": len(ready["cells"]), "cells_a_second": statistics.median(rates), "apart": ready["apart"],
            "moved": ready["moved"], "times_faster": {"median": statistics.median(times), "min": min(times), "max": max(times)}}


def page(result: dict) -> str:
    """The results in Markdown."""
    m, parts = result["machine"], []
    for grid in result["grids"]:
        rows = []
        for c in grid["contestants"]:
            way, x = Way(c["name"], c["chunk_size"], c["batched"]), c["times_faster"]
            target = TARGETS.get(way) if grid["variant"] == "mamba2" else None
            rows.append([way, " ".join(next(iter(c["versions"].items()))), f"{c['cells_a_second']:.2f}",
                         f"**{x['median']:.1f}** ({x['min']:.1f}–{x['max']:.1f})", f"≥ {target}" if target else "",
                         c["batch"], c["timed"], f"{c['apart']:.0e}", f"{c['moved']:.0%}"])
        parts.append(f"## {grid['variant']}: {grid['cells_a_second']:.1f} cells a CPU-second\n\n"
                     + table(["beside", "version", "cells a CPU-second", "ours, times faster", "target", "cells a forward",
                              "cells timed", "apart", "moved"], rows)
                     + "".join(f"\nNot timed: {name}. {said}\n" for name, said in grid["failed"].items()))
    return (f"# A patching grid, beside hooks{' and rivals' * result['rivals']}\n\n"
            f"CPU time (user and system) on one thread of {m['cpu']}, {m['cores']} cores, torch {m['torch']}, float32; random "
            f"weights of mamba-130m and mamba2-130m size. The residual stream, {result['layers']} layers × {result['length']} "
            "positions, one pair of prompts. Ours: the whole grid from tokens to the metrics of `experiment=patching`, clean "
            "run included. Theirs: the clean run is given, and as many cells are timed as the budget holds. \"hooks\" are "
            "plain PyTorch hooks on transformers' model, asked for the last logits and no cache; without a chunk_size the "
            "model is as it comes (Mamba-2: 256). TransformerLens runs its own patching loop, nnsight a trace a cell, or, "
            "batched, an invoke a cell. Times faster: median (min–max) of the rounds' ratios; a round times all of them one "
            "after another. \"apart\" is the largest difference from our logits over the largest logit, \"moved\" the share of "
            f"the cells compared that change a logit by more than {10 * BOUND:.0e} of it.\n\n"
            f"Made by `python benchmarks/patching.py{result['asked']}`.\n\n" + "\n".join(parts))


def run(variants, length: int, *, rivals: Path | None, budget: float, repeats: int, asked: str = "", **sizes) -> dict:
    """Every variant, under a progress bar; `rivals` is the folder of their environments, None leaves them out."""
    torch.set_num_threads(1)
    pythons, missing, grids = {}, {}, []
    with Progress() as bar:
        task = bar.add_task("patching", total=len(variants))
        for name in ENVIRONMENTS if rivals else ():
            bar.update(task, description=f"installing {name}")
            try:
                pythons[name] = environment(name, rivals)
            except Failed as e:
                missing[name] = str(e)
        for variant in variants:
            with tempfile.TemporaryDirectory() as folder:
                grid = Grid(ours(variant, **sizes), length)
                found = compare(grid, pythons, Path(folder), budget, repeats, lambda text: bar.update(task, description=text))
            grids.append(found | {"failed": missing | found["failed"]})
            bar.advance(task)
    return {"machine": describe("torch", "transformers"), "asked": asked, "rivals": rivals is not None, "length": length,
            "layers": grid.lm.config.n_layer, "grids": grids}


def main(argv=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variant", nargs="+", choices=SSM, default=list(SSM))
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--rivals", action="store_true", help="TransformerLens and nnsight too, in environments it makes")
    parser.add_argument("--environments", type=Path, help="folder that keeps these environments (made anew without)")
    parser.add_argument("--budget", type=float, default=2.5, help="CPU seconds a contestant and round (2.5)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (3)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of patching.md and patching.json")
    args = parser.parse_args(argv)
    asked = "".join(f" --{name} {' '.join(map(str, x)) if isinstance(x, list) else '' if x is True else x}".rstrip()
                    for name, x in vars(args).items() if name not in ("out", "environments") and x != parser.get_default(name))
    with tempfile.TemporaryDirectory() as made:
        rivals = (args.environments or Path(made)) if args.rivals else None
        result = run(args.variant, args.length, rivals=rivals, budget=args.budget, repeats=args.repeats, asked=asked)
    write(args.out, "patching", result, page(result))
    print(page(result))


if __name__ == "__main__":
    main()
