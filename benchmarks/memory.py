"""How much memory a knockout takes as the prompt grows: peak of a process of its own for every point.

One layer of mamba-130m's and mamba2-130m's size, over a small vocabulary, so that no logits hide what the layer takes.
A number is the process's highest resident set while it runs, less what it held just before: the model, the tokens.
Shape legend: S sets, B batch, L length, H heads, N state, V vocabulary.
"""
from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from forward import SSM
from machine import describe, table, write
from rich.progress import Progress
from torch import Tensor

from mamba_mi import models
from mamba_mi.backends import attention
from mamba_mi.config import stream
from mamba_mi.interventions import Knockout, contrast
from mamba_mi.trace import Site, Trace

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
ATTENTION = (128, 256, 512, 1024, 2048)  # where M is written out whole, as far as it fits
SOURCES = (2, 3, 4)
FITS = 1 << 29  # bytes of M alone, in float32: writing it takes twice as much, and Mamba-1's some time
ONE_LAYER = {"d_model": 768, "n_layer": 1, "vocab_size": 96}
BOUND = 1.1  # what a cost linear in length stays below


def last(length: int, **how) -> Knockout:
    """The last token no longer reads three early ones."""
    return Knockout(0, -1, SOURCES, **how)


def half(length: int, **how) -> Knockout:
    """The second half no longer does."""
    return Knockout(0, tuple(range(length // 2, length)), SOURCES, **how)


def in_the_cone(lm, tokens_BL, knockout) -> Tensor:
    """As the experiments run it: the last position's logits, BV."""
    return contrast(lm, tokens_BL, [[knockout]], lambda logits_SBV: logits_SBV)[0][0]


def in_a_pass(lm, tokens_BL, knockout) -> Tensor:
    """As a notebook does."""
    with Trace(interventions=[knockout]) as trace:
        return lm(tokens_BL, trace=trace)[0][:, -1]


def no_knockout(lm, tokens_BL, _) -> Tensor:
    """The forward alone."""
    return lm(tokens_BL)[0][:, -1]


def written_out(lm, tokens_BL, _) -> Tensor:
    """M of every head or channel, by the attention backend: what a knockout by zeroing entries starts from."""
    with Trace(keep=[Site(0, name) for name in ("dt", "B", "C")]) as trace:
        lm(tokens_BL, trace=trace)
    A_HN = -lm.layers[0].A_log.exp()
    return attention.mixing(trace.values[Site(0, "dt")], A_HN[:, None] if A_HN.ndim == 1 else A_HN,
                            trace.values[Site(0, "B")], trace.values[Site(0, "C")])


CASES: dict[str, tuple[Callable, Callable]] = {
    "forward alone": (no_knockout, last),
    "last token, cone": (in_the_cone, last),
    "second half, cone": (in_the_cone, half),
    "second half, cone, conv=both": (in_the_cone, partial(half, conv="both")),
    "last token, one pass": (in_a_pass, last),
    "second half, one pass": (in_a_pass, half),
}
KNOCKOUTS = tuple(CASES)[1:]
MATRIX = "M written out"


def model(variant: str, **sizes):
    """One untrained layer."""
    lm = models.fresh(ONE_LAYER | sizes | {"ssm_cfg": SSM[variant]}, generator=stream(0, "memory", variant))
    return lm.eval().requires_grad_(False)


def matrix_bytes(config, length: int) -> int:
    """M in float32: a length × length matrix for each head of Mamba-2, each channel of Mamba-1."""
    return 4 * length**2 * (config.heads if config.variant == "mamba2" else config.d_inner)


@torch.no_grad()
def peak(variant: str, case: str, length: int, sizes: dict) -> int:
    """Bytes the case takes beyond the model; run in a process of its own, which has run nothing else."""
    torch.set_num_threads(1)
    lm = model(variant, **sizes)
    run, of = CASES.get(case, (written_out, last))
    tokens_BL = torch.randint(lm.config.vocab_size, (1, length), generator=stream(0, "tokens", length))
    knockout = of(length)
    run(lm, tokens_BL[:, :16], of(16))  # what the first call loads is the library's, not the prompt's
    before = reset()
    run(lm, tokens_BL, knockout)
    return status("VmHWM") - before


def reset() -> int:
    """Start the high-water mark anew; the resident set now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def exponent(lengths: list[int], numbers: list[float]) -> float:
    """The slope of log memory over log length, by least squares."""
    x, y = (torch.tensor([math.log(v) for v in values], dtype=torch.float64) for values in (lengths, numbers))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def measure(variants, lengths, sizes: dict, tell=lambda: None) -> list[dict]:
    """Every case of every variant at every length, each in a process that does nothing else, one after another."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # a freed tensor's memory goes back at once: the peak is what lives
    context = multiprocessing.get_context("forkserver")
    # each is a fork of a process that has imported nearly everything and run nothing
    context.set_forkserver_preload(["torch", "torch._dynamo", "rich.progress", "mamba_mi.models", "mamba_mi.interventions"])
    rows = []
    for variant in variants:
        config = model(variant, **sizes).config
        fits = [n for n in ATTENTION if n <= max(lengths) and matrix_bytes(config, n) <= FITS]
        for case, at in [*((case, lengths) for case in CASES), (MATRIX, fits)]:
            bytes_at = {}
            for length in at:
                with context.Pool(1) as pool:
                    bytes_at[length] = pool.apply(peak, (variant, case, length, sizes))
                tell()
            rows.append({"variant": variant, "case": case, "bytes": bytes_at,
                         "exponent": exponent(list(bytes_at), list(bytes_at.values())),
                         **({"matrix_bytes": {n: matrix_bytes(config, n) for n in lengths}} if case == MATRIX else {})})
    return rows


def page(result: dict) -> str:
    """The results in Markdown."""
    m, lengths, parts = result["machine"], result["lengths"], []
    for variant in dict.fromkeys(row["variant"] for row in result["rows"]):
        rows = [r for r in result["rows"] if r["variant"] == variant]
        shown = [[r["case"], *(_said(r["bytes"].get(n)) for n in lengths), f"**{r['exponent']:.2f}**"]
                 for r in rows if r["case"] != MATRIX]
        out = next(r for r in rows if r["case"] == MATRIX)
        shown.append([f"{MATRIX}: M alone", *(f"({_said(out['matrix_bytes'][n])})" for n in lengths), "2"])
        seen = ", ".join(f"{_said(x)} MB at {n}" for n, x in out["bytes"].items())
        parts.append(f"## {variant}\n\n" + table(["MB at length", *lengths, "exponent"], shown)
                     + f"\nM written out whole by `backend=attention`, measured as far as it fits: {seen} (exponent "
                     f"{out['exponent']:.2f}).\n")
    over = [f"- {r['variant']}, {r['case']}: {r['exponent']:.2f}\n" for r in result["rows"]
            if r["case"] in KNOCKOUTS and r["exponent"] > BOUND]
    return (f"# Memory of a knockout\n\nPeak resident memory, MB, beyond the model's, in a process of its own for every point; "
            f"one layer of mamba-130m's and mamba2-130m's size, one prompt, float32, one thread, torch {m['torch']}, "
            f"{m['system']}; freed memory is given back at once (glibc would keep some for later). Sources are tokens {', '.join(map(str, SOURCES))}; \"cone\" is `contrast`, which runs the clean "
            "prompt beside the knocked-out one, \"one pass\" a `Trace` with the `Knockout` in it. The exponent is the slope of "
            f"log memory over log length; a knockout's should stay below {BOUND}. In brackets: not run, M's size alone, "
            "length × length for each head of Mamba-2 and each channel of Mamba-1.\n\n"
            f"Made by `python benchmarks/memory.py{result['asked']}`.\n\n" + "\n".join(parts)
            + f"\n## Above {BOUND}\n\n{''.join(over) or 'None.'}\n")


def _said(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.0f}" if size >= 1e7 else f"{size / 1e6:.1f}"


def run(variants, lengths, *, asked: str = "", **sizes) -> dict:
    """Every point, under a progress bar."""
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("memory.py starts the high-water mark of resident memory anew for each point, which only Linux can")
    with Progress() as bar:
        task = bar.add_task("memory", total=len(variants) * len(lengths) * len(CASES))
        rows = measure(variants, lengths, sizes, tell=lambda: bar.advance(task))
    return {"machine": describe("torch"), "asked": asked, "lengths": list(lengths), "rows": rows}


def main(argv=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variant", nargs="+", choices=SSM, default=list(SSM))
    parser.add_argument("--length", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of memory.md and memory.json")
    args = parser.parse_args(argv)
    asked = "".join(f" --{name} {' '.join(map(str, x))}" for name, x in vars(args).items()
                    if name != "out" and x != parser.get_default(name))
    result = run(args.variant, args.length, asked=asked)
    write(args.out, "memory", result, page(result))
    print(page(result))


if __name__ == "__main__":
    main()
