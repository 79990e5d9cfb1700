"""What a knockout heatmap costs: every token x every window of layers, beside one full forward a cell. CPU time, one thread.

Three ways to the same numbers: (a) published practice, a forward a cell with each layer's attention matrix written out
and its entries zeroed, batch 1; (b) the same, many cells a batch; (c) ours, the whole map through the light cone. (a)
and (b) are timed on a sample of cells, (c) on all of them; every round times all of them one after another.
Shape legend: S cells, B batch, L length, E inner, H heads, P head width, N state, V vocabulary.
"""
from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from forward import check_equal, ours, seconds
from machine import describe, spread_of, table, write
from rich.progress import Progress
from torch import Tensor

from mamba_mi import Knockout
from mamba_mi.config import stream
from mamba_mi.experiments._knockouts import windows
from mamba_mi.interventions import contrast
from mamba_mi.measure.answers import Answers, narrow, reader

WINDOW = 5
SIZES = {20: (1, 4, 8, 24), 64: (1, 4, 8, 16), 256: (1, 2, 4)}  # batches (b) may choose among
SAMPLE = {20: 24, 64: 16, 256: 4}


class Cell(NamedTuple):
    """The source that the last token may not read, and the first layer of the window."""

    source: int
    start: int


def cells(lm, length: int, window: int) -> list[Cell]:
    return [Cell(s, start) for start in windows(window, lm.mixing) for s in range(length)]


def materialised(lm, tokens_L: Tensor, some: Sequence[Cell], window: int) -> Tensor:
    """(a) and (b): the last position's logits SV of full forwards in which M[last, source] = 0 in the window's layers."""
    resid = lm.embedding(tokens_L)[None].expand(len(some), -1, -1)
    for layer, block in enumerate(lm.layers):
        keep_SLL = torch.ones(len(some), len(tokens_L), len(tokens_L))
        for row, (source, start) in enumerate(some):
            if start <= layer < start + window:
                keep_SLL[row, -1, source] = 0
        resid = resid + _mixer(block, F.rms_norm(resid, resid.shape[-1:], block.norm.weight, lm.config.eps), keep_SLL)
    last = F.rms_norm(resid[:, -1], resid.shape[-1:], lm.norm_f.weight, lm.config.eps)
    return (last @ lm.embedding.weight.T)[:, :lm.config.vocab_size]


def _mixer(block, x_SLD, keep_SLL) -> Tensor:
    """A Mamba-2 block with its attention matrix written out, as the published knockouts have it; one group."""
    c, length = block.config, x_SLD.shape[1]
    z, xBC, dt = block.in_proj(x_SLD).split([c.d_inner, c.d_inner + 2 * c.d_state, c.heads], -1)
    padded = F.pad(xBC.transpose(1, 2), (c.d_conv - 1, 0))
    xBC = F.silu(F.conv1d(padded, block.conv1d.weight, block.conv1d.bias, groups=padded.shape[1])).transpose(1, 2)
    x, B_, C_ = xBC.split([c.d_inner, c.d_state, c.d_state], -1)
    x, dt = x.unflatten(-1, (c.heads, -1)).transpose(1, 2), F.softplus(dt + block.dt_bias)
    summed = (dt * -block.A_log.exp()).double().cumsum(1).transpose(1, 2)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    M = torch.exp((summed[..., :, None] - summed[..., None, :]).float().masked_fill_(future, -torch.inf))
    M = M.mul_((C_ @ B_.transpose(1, 2))[:, None]).mul_(dt.transpose(1, 2)[..., None, :]).mul_(keep_SLL[:, None])
    y = (M @ x + x * block.D[:, None, None]).transpose(1, 2).flatten(2) * F.silu(z)
    return block.out_proj(F.rms_norm(y, y.shape[-1:], block.gated_norm.weight, c.eps))


def light_cone(lm, tokens_L, some: Sequence[Cell], window: int, metric: str = "probability", read=None) -> Tensor:
    """(c): every cell in one call; by the probability over the whole vocabulary, or by two answers' logits alone."""
    sets = [(Knockout(range(start, start + window), -1, source),) for source, start in some]
    told = Answers(torch.tensor([[5]]), torch.tensor([1]), torch.tensor([7]))
    only_BX, told = narrow([metric], told) or (None, told)
    return contrast(lm, tokens_L[None], sets, read or reader([metric], told, None), tail=1, only_BX=only_BX)[0]


def operations(lm, length: int, window: int) -> dict[str, float]:
    """Multiplications of the products a cell, counted: of (a) and (b), and of (c) with its clean pass shared out."""
    c = lm.config
    token = c.d_model * (2 * c.d_inner + 2 * c.d_state + c.heads) + c.d_inner * c.d_model \
        + c.d_conv * (c.d_inner + 2 * c.d_state)
    head, pairs = c.d_model * c.padded_vocab, length * length * (c.d_state + c.d_inner)
    full = c.n_layer * (length * token + pairs) + head
    starts = windows(window, range(c.n_layer))
    joined = sum(c.n_layer - start for start in starts) / len(starts)
    own = token + c.d_state * (c.d_inner + 1) + c.d_inner  # reads the state, and itself
    taken_off = window * (c.d_state + c.d_inner)
    clean = c.n_layer * length * (token + min(length, 64) * (c.d_state + c.d_inner) + c.d_state * c.d_inner)
    return {"full": full, "cone": joined * own + taken_off + head + clean / (len(starts) * length)}


def check(lm, tokens_L, some: Sequence[Cell], window: int) -> float:
    """How far (b) and (c) are apart on some cells, in the largest logit; ValueError where too far."""
    V = lm.config.vocab_size
    got = light_cone(lm, tokens_L, some, window, read=lambda logits_SBKV: logits_SBKV[:, 0, 0, :V])
    clean = lm(tokens_L[None])[0][0, -1, :V]
    if torch.allclose(got[0], clean, rtol=0, atol=1e-6):
        raise ValueError("the knockouts change nothing: there is nothing to compare")
    return check_equal(got, materialised(lm, tokens_L, some, window), f"{len(tokens_L)} tokens")


def loud(lm):
    """Weights under which a knockout is seen in float32: fresh ones forget within a token."""
    generator = stream(0, "knockout benchmark")
    for layer in lm.layers:
        layer.A_log.uniform_(-5, 1, generator=generator)
        layer.dt_bias.uniform_(-2, 1, generator=generator)
        layer.conv1d.weight.normal_(0, 0.4, generator=generator)
    return lm


@torch.no_grad()
def compare(lm, length: int, window: int, repeats: int, tell=print) -> dict:
    """One length: outputs compared, (b)'s best batch found, then the rounds that count."""
    generator = stream(0, "cells", length)
    tokens_L = torch.randint(lm.config.vocab_size, (length,), generator=generator)
    every = cells(lm, length, window)
    sample = [every[i] for i in torch.randperm(len(every), generator=generator)[:SAMPLE.get(length, 8)].tolist()]
    apart = check(lm, tokens_L, sample, window)

    def batched(size):
        for at in range(0, len(sample), size):
            materialised(lm, tokens_L, sample[at:at + size], window)

    tries = {size: seconds(lambda size=size: batched(size)) for size in SIZES.get(length, (1, 2))}
    best = min(tries, key=tries.get)
    singles = sample[:max(1, len(sample) // 3)]
    calls = {  # how many cells each call has
        "a": (lambda: [materialised(lm, tokens_L, [cell], window) for cell in singles], len(singles)),
        "b": (lambda: batched(best), len(sample)),
        "c": (lambda: light_cone(lm, tokens_L, every, window), len(every)),
        "c, two logits": (lambda: light_cone(lm, tokens_L, every, window, "logit_difference"), len(every))}
    rounds = []
    for done in range(repeats + 1):  # the first warms up
        tell(f"{length} tokens: round {done} of {repeats}")
        rounds.append({name: seconds(call) / count for name, (call, count) in calls.items()})
    rounds, counted = rounds[1:], operations(lm, length, window)
    spread = lambda top, bottom: spread_of([r[top] / r[bottom] for r in rounds])  # noqa: E731
    return {"length": length, "cells": len(every), "apart": apart, "batch": best, "rounds": repeats,
            "ms_a_cell": {name: 1e3 * statistics.median(r[name] for r in rounds) for name in calls},
            "a/c": spread("a", "c"), "a/c, two logits": spread("a", "c, two logits"), "b/c": spread("b", "c"),
            "operations b/c": counted["full"] / counted["cone"]}


def page(result: dict) -> str:
    """The results in Markdown."""
    m, told = result["machine"], lambda x: f"**{x['median']:.1f}** ({x['min']:.1f}–{x['max']:.1f})"
    rows = [[r["length"], r["cells"], *(f"{x:.1f}" if x >= 10 else f"{x:.2f}" for x in r["ms_a_cell"].values()),
             told(r["a/c"]), told(r["a/c, two logits"]), told(r["b/c"]), f"{r['operations b/c']:.1f}",
             f"{r['b/c']['median'] / r['operations b/c']:.2f}", r["batch"], r["rounds"], f"{r['apart']:.0e}"]
            for r in result["lengths"]]
    header = ["length", "cells", "(a), ms a cell", "(b)", "(c)", "(c) two logits", "(a)/(c)", "(a)/(c) two logits", "(b)/(c)",
              "operations (b)/(c)", "share of it", "(b)'s batch", "rounds", "apart"]
    return (f"# A knockout heatmap: every token x every window of {result['window']} layers\n\n"
            f"CPU time (user and system) on one thread of {m['cpu']}, {m['cores']} cores, torch {m['torch']}, float32; random "
            f"weights of mamba2-130m size ({result['layers']} layers). (a): one full forward a cell that writes out each layer's "
            "attention matrix, batch 1, as published; (b): the same in batches, the best of several sizes; (c): the whole map "
            "by `contrast`, its clean pass included, with the target's probability over the whole vocabulary, or with two "
            "answers' logits alone. Ratios are taken within a round, median (min–max). Operations are the multiplications of "
            "all products a cell. \"apart\" is the largest difference of logits over the largest logit.\n\n"
            f"Made by `python benchmarks/knockout.py{result['asked']}`.\n\n" + table(header, rows))


def run(lengths, *, window: int, repeats: int, asked: str = "", **sizes) -> dict:
    """Every length, under a progress bar."""
    torch.set_num_threads(1)
    with torch.no_grad():
        lm = loud(ours("mamba2", **sizes))
    with Progress() as bar:
        task = bar.add_task("knockout", total=len(lengths))
        out = []
        for length in lengths:
            out.append(compare(lm, length, window, repeats, tell=lambda text: bar.update(task, description=text)))
            bar.advance(task)
    return {"machine": describe("torch"), "asked": asked, "window": window, "layers": lm.config.n_layer, "lengths": out}


def main(argv=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--length", nargs="+", type=int, default=[20, 64, 256])
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--repeats", type=int, default=3, help="rounds a length (3)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of knockout.md and knockout.json")
    args = parser.parse_args(argv)
    asked = "".join(f" --{name} {' '.join(map(str, x)) if isinstance(x, list) else x}"
                    for name, x in vars(args).items() if name != "out" and x != parser.get_default(name))
    result = run(args.length, window=args.window, repeats=args.repeats, asked=asked)
    write(args.out, "knockout", result, page(result))
    print(page(result))


if __name__ == "__main__":
    main()
