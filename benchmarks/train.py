"""How fast a training step is beside transformers' with the same weights: tokens per CPU-second, one thread; peak memory.

A step is the forward, the backward and AdamW. Every round times all contestants one after another, so that a busy machine
slows them alike; a ratio is taken within its round. Losses and gradients are compared before anything is timed. The peak is
that of a process of its own for every contestant, less what it held before its first step: the weights.
Shape legend: B batch, L length, V vocabulary.
"""
from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from forward import CHUNKS, SSM, ours, seconds, their_name, transformers_model
from machine import describe, spread_of, table, write
from memory import reset, status
from rich.progress import Progress
from torch import Tensor, nn

from mamba_mi.config import stream
from mamba_mi.training.packing import next_token_loss

BOUND = 1e-3  # of a parameter's largest gradient; both are sums in float32 over every token
GOAL = 2.0


class Size(NamedTuple):
    """A model and what a step of it is given."""

    d_model: int
    n_layer: int
    vocab_size: int
    batch: int
    length: int


SIZES = {"small": Size(256, 4, 1024, 8, 128),
         "a twelfth of 130m": Size(768, 2, 4184, 2, 512)}  # layers and vocabulary alike: blocks and head keep their shares


class Contestant(NamedTuple):
    """A model, and its loss on tokens BL."""

    model: nn.Module
    loss: Callable[[Tensor], Tensor]


def our_model(variant: str, size: Size):
    """Ours, untrained and open to gradients."""
    return ours(variant, d_model=size.d_model, n_layer=size.n_layer, vocab_size=size.vocab_size).train().requires_grad_(True)


def contestant(name: str, lm) -> Contestant:
    """Ours, or transformers' with `lm`'s weights: as it comes ("default"), or "chunk_size=…"."""
    if name == "ours":
        return Contestant(lm, lambda tokens_BL: next_token_loss(lm, tokens_BL, torch.ones_like(tokens_BL)))
    settings = {} if name == "default" else {"chunk_size": int(name.removeprefix("chunk_size="))}
    theirs = transformers_model(lm, **settings).train().requires_grad_(True)
    return Contestant(theirs, partial(_their_loss, theirs))


def _their_loss(model, tokens_BL) -> Tensor:
    logits_BLV = model(tokens_BL, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL[:, 1:].flatten())


def names(variant: str) -> list[str]:
    """Who takes part: Mamba-1's loop over tokens has nothing to tune."""
    tuned = [f"chunk_size={size}" for size in CHUNKS] if variant == "mamba2" else []
    return ["ours", "default", *tuned]


def step_of(each: Contestant, tokens_BL: Tensor) -> Callable[[], None]:
    """A training step."""
    optimiser = torch.optim.AdamW(each.model.parameters(), lr=1e-4)

    def step():
        optimiser.zero_grad(set_to_none=True)
        each.loss(tokens_BL).backward()
        optimiser.step()

    return step


def check_equal(ours: Contestant, theirs: Contestant, tokens_BL: Tensor, what: str) -> float:
    """How far gradients are apart at most, over the largest of their parameter; ValueError beyond BOUND."""
    losses = [each.loss(tokens_BL) for each in (ours, theirs)]
    for loss in losses:
        loss.backward()
    apart = abs(losses[0].item() / losses[1].item() - 1)
    matching = dict(theirs.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        want = matching[their_name(name)].grad.view_as(parameter)
        apart = max(apart, float((parameter.grad - want).abs().max() / want.abs().max()))
    if not apart <= BOUND:
        raise ValueError(f"{what}: losses or gradients are {apart:.1e} apart, more than {BOUND:.0e}")
    for each in (ours, theirs):
        each.model.zero_grad(set_to_none=True)
    return apart


def tokens(size: Size) -> Tensor:
    """A batch of random tokens, BL."""
    return torch.randint(size.vocab_size, (size.batch, size.length), generator=stream(0, "tokens", size.batch, size.length))


def compare(variant: str, size: Size, rounds: int, tell=lambda text: None) -> dict:
    """Gradients compared, a step that does not count, then the rounds."""
    lm, tokens_BL = our_model(variant, size), tokens(size)
    those = {name: contestant(name, lm) for name in names(variant)}
    apart = max(check_equal(those["ours"], each, tokens_BL, f"{variant} {name}")
                for name, each in those.items() if name != "ours")
    steps = {name: step_of(each, tokens_BL) for name, each in those.items()}
    times = []
    for done in range(-1, rounds):  # the first step also makes the optimiser's state
        tell(f"{variant}: round {max(done, 0) + 1} of {rounds}")
        times.append({name: seconds(step) for name, step in steps.items()})
    times, count = times[1:], tokens_BL.numel()
    return {"rounds": rounds, "apart": apart, "best": min(names(variant)[1:], key=lambda name: min(t[name] for t in times)),
            "tokens_per_second": {name: spread_of([count / t[name] for t in times]) for name in steps},
            "times_faster": {name: spread_of([t[name] / t["ours"] for t in times]) for name in steps if name != "ours"}}


def peak(variant: str, name: str, size: Size) -> int:
    """Bytes two steps take beyond the weights; run in a process of its own, which has run nothing else."""
    torch.set_num_threads(1)
    each, tokens_BL = contestant(name, our_model(variant, size)), tokens(size)
    each.loss(tokens_BL[:1, :8]).backward()  # what the first call loads is the library's
    each.model.zero_grad(set_to_none=True)
    step, before = step_of(each, tokens_BL), reset()
    for _ in range(2):
        step()
    return status("VmHWM") - before


def peaks(variant: str, size: Size, tell=lambda text: None) -> dict[str, int]:
    """Of every contestant, one after another."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # a freed tensor's memory goes back at once: the peak is what lives
    context, found = multiprocessing.get_context("forkserver"), {}
    for name in names(variant):
        tell(f"{variant}: memory of {name}")
        with context.Pool(1) as pool:
            found[name] = pool.apply(peak, (variant, name, size))
    return found


def run(variants, sizes: dict[str, Size], *, rounds: int, asked: str = "") -> dict:
    """Every size of every variant, under a progress bar."""
    torch.set_num_threads(1)
    rows = []
    with Progress() as bar:
        task = bar.add_task("train", total=len(variants) * len(sizes))
        for variant in variants:
            for name, size in sizes.items():
                tell = partial(_tell, bar, task)
                timed = compare(variant, size, rounds, tell)
                memory = peaks(variant, size, tell) if Path("/proc/self/clear_refs").exists() else {}
                rows.append({"variant": variant, "size": name, **size._asdict(), **timed, "peak_bytes": memory})
                bar.advance(task)
    return {"machine": describe("torch", "transformers"), "asked": asked, "rows": rows}


def _tell(bar, task, text: str) -> None:
    bar.update(task, description=text)


def page(result: dict) -> str:
    """The results in Markdown."""
    m, shown = result["machine"], []
    for r in result["rows"]:
        faster, speed, memory = r["times_faster"], r["tokens_per_second"], r["peak_bytes"]
        shown.append([r["variant"], r["size"], f"{r['batch']} x {r['length']}", f"{speed['ours']['median']:,.0f}",
                      f"{speed[r['best']]['median']:,.0f}", _ratio(faster["default"]), _ratio(faster[r["best"]]), r["best"],
                      *(_megabytes(memory.get(name)) for name in ("ours", "default", r["best"])), r["rounds"], f"{r['apart']:.0e}"])
    under = [f"- {r['variant']}, {r['size']}: {r['times_faster'][r['best']]['median']:.2f} times {r['best']}\n"
             for r in result["rows"] if r["times_faster"][r["best"]]["median"] < GOAL]
    sizes = {r["size"]: f"{r['size']} is d_model {r['d_model']}, {r['n_layer']} layers, vocabulary {r['vocab_size']:,}"
             for r in result["rows"]}
    header = ["variant", "size", "batch x length", "tokens/s", "theirs, best", "vs default", "vs best", "best is", "peak, MB",
              "default's", "best's", "rounds", "apart"]
    return (f"# A training step, times faster than transformers {m['transformers']}\n\n"
            f"Tokens per CPU-second (user and system) of forward, backward and AdamW on one thread of {m['cpu']}, {m['cores']} "
            f"cores, torch {m['torch']}, float32; the same random weights in both. {'; '.join(sizes.values())}. A ratio is their "
            "time over ours, median (min–max) of the rounds; every round times all of them one after another. \"best\" is their "
            f"fastest: for Mamba-2 as it comes (chunk_size 256) or with chunk_size {', '.join(map(str, CHUNKS))}. The peak is "
            "resident memory beyond the weights, in a process of its own for each; freed memory is given back at once. \"apart\" "
            "is the largest difference of losses or gradients, over the largest gradient of its parameter.\n\n"
            f"Made by `python benchmarks/train.py{result['asked']}`.\n\n" + table(header, shown)
            + f"\n## Below {GOAL:g} times\n\n{''.join(under) or 'None.'}\n")


def _ratio(spread: dict[str, float]) -> str:
    return f"**{spread['median']:.2f}** ({spread['min']:.2f}–{spread['max']:.2f})"


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.0f}"


def main(argv=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variant", nargs="+", choices=SSM, default=list(SSM))
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (5)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of train.md and train.json")
    args = parser.parse_args(argv)
    asked = "".join(f" --{name} {' '.join(map(str, x)) if isinstance(x, list) else x}"
                    for name, x in vars(args).items() if name != "out" and x != parser.get_default(name))
    result = run(args.variant, {name: SIZES[name] for name in args.size}, rounds=args.rounds, asked=asked)
    write(args.out, "train", result, page(result))
    print(page(result))


if __name__ == "__main__":
    main()
