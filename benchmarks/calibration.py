"""How true the numbers of summary.json are where the truth is known: false positives, coverage, control p-values.

Every run draws prompts from a distribution whose mean effect is zero (whose ratio of means is RATIO) and hands them to
the functions that write summary.json. Runs of one design are the cells of a few calls: each cell's data are its own,
the cells of a call share resamples and flips. That leaves each cell's rate as it is, and `one_call_a_run` shows it.
Shape legend: N prompts, C clusters, K runs, J cells of a family, R resamples or draws, D width of an activation.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from machine import describe, table, write
from rich.progress import Progress
from scipy.stats import kstest

from mamba_mi.config import stream
from mamba_mi.measure.bootstrap import bca, cluster_sums
from mamba_mi.measure.controls import judge
from mamba_mi.measure.stats import sign_flip, wilson
from mamba_mi.measure.summary import summarise

RATIO = 0.4
NOISE = 0.5    # standard deviation of the denominators, whose mean is 1
CELLS = 40     # of a family for max-T; neighbours correlate by 0.8
DRAWS = 99
CALL = 500     # runs that share their resamples
DRAWN: dict[str, Callable] = {  # mean 0, standard deviation 1
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "discrete": lambda rng, shape: rng.choice([-1.0, 0.0, 1.0], shape, p=[0.2, 0.6, 0.2]) / 0.4**0.5,
    "gamma, skewness 1": lambda rng, shape: rng.gamma(4.0, 0.5, shape) - 2.0,
    "exponential, skewness 2": lambda rng, shape: rng.exponential(1.0, shape) - 1.0,
    "lognormal, skewness 6": lambda rng, shape: (rng.lognormal(0.0, 1.0, shape) - np.exp(0.5)) / 2.1612,
    # permuting which answer is right flips an effect's sign and leaves its size, skewed as sizes are
    "permuted answers": lambda rng, shape: rng.gamma(2.0, 1.0, shape) * rng.choice([-1.0, 1.0], shape) / 6**0.5,
    "permuted answers, heavy tails": lambda rng, shape: rng.lognormal(0.0, 1.0, shape) * rng.choice([-1.0, 1.0], shape) / np.e,
}
TARGETS = {"false_positives": (4.0, 6.0), "mean_covered": (93.5, 96.5), "ratio_covered": (93.5, 96.5)}  # from n = 100 on


class Design(NamedTuple):
    """One way to draw prompts; clustered: 1 to 4 prompts share a subject, which makes half of their variance."""

    n: int
    drawn: str
    clustered: bool


def clusters_of(design: Design, rng) -> np.ndarray:
    """Each prompt's cluster."""
    sizes = rng.integers(1, 5, design.n) if design.clustered else np.ones(design.n, dtype=int)
    return np.repeat(np.arange(design.n), sizes)[:design.n]


def prompts(design: Design, cluster_N, runs: int, rng) -> np.ndarray:
    """Effects N x K of mean zero."""
    draw = DRAWN[design.drawn]
    own_NK = draw(rng, (design.n, runs))
    if not design.clustered:
        return own_NK
    shared_CK = draw(rng, (cluster_N.max() + 1, runs))
    if design.drawn.startswith("permuted answers"):  # the answer is permuted for the subject, hence for all its prompts
        return np.abs(own_NK) * np.sign(shared_CK)[cluster_N]
    return (own_NK + shared_CK[cluster_N]) / 2**0.5


def calibrate(design: Design, runs: int, resamples: int, seed: int) -> dict:
    """The design's rates: false positives of p at 5%, and how often the 95% intervals hold the truth."""
    key = (seed, "calibration", *map(str, design))
    rng = np.random.default_rng(stream(*key).initial_seed() % 2**63)
    false, held, ratio_held = [], [], []
    for start in range(0, runs, CALL):
        cluster_N, size = clusters_of(design, rng), min(CALL, runs - start)
        effect_NK = prompts(design, cluster_N, size, rng)
        full_NK = 1 + NOISE * rng.standard_normal((design.n, size))
        num_CK, count_CK, ratio_CK, full_CK = (_sums(x_NK, cluster_N) for x_NK in (
            effect_NK, np.ones_like(effect_NK), RATIO * full_NK + NOISE * effect_NK, full_NK))
        test = sign_flip(num_CK, resamples=resamples, generator=stream(*key, start, "flips"))
        mean, ratio = (bca(*sums, count_CK > 0, resamples=resamples, generator=stream(*key, start, "bootstrap"))
                       for sums in ((num_CK, count_CK), (ratio_CK, full_CK)))
        false.append(test.p <= 0.05)
        held.append((mean.low <= 0) & (0 <= mean.high))
        ratio_held.append((ratio.low <= RATIO) & (RATIO <= ratio.high))
    return {**design._asdict(), "runs": runs, "false_positives": _rate(false), "mean_covered": _rate(held),
            "ratio_covered": _rate(ratio_held)}


def _sums(x_NK, cluster_N):
    n, runs = x_NK.shape
    return cluster_sums(x_NK.ravel(), np.repeat(cluster_N, runs), np.tile(np.arange(runs), n), (cluster_N.max() + 1, runs))


def _rate(hits) -> dict[str, float]:
    """A share in percent with its 95% Wilson interval."""
    hits = np.concatenate(hits) if isinstance(hits, list) else hits
    low, high = wilson(hits.sum(), hits.size)
    return {"percent": 100 * float(hits.mean()), "low": 100 * float(low), "high": 100 * float(high)}


def one_call_a_run(design: Design, runs: int, resamples: int, seed: int) -> dict:
    """The same rates with every run a table of effects of its own, through `summarise` from end to end."""
    rng = np.random.default_rng(stream(seed, "one call", *map(str, design)).initial_seed() % 2**63)
    rows = []
    for run in range(runs):
        cluster_N = clusters_of(design, rng)
        value_N = prompts(design, cluster_N, 1, rng)[:, 0]
        names = [str(i) for i in range(design.n)]
        effects = pa.table({"prompt_id": names, "layer": pa.array([0] * design.n, pa.int32()), "metric": ["m"] * design.n,
                            "value": value_N, "baseline": np.zeros(design.n)})
        rows += summarise(effects, dict(zip(names, map(str, cluster_N))), ["layer"], normalised={}, tau=0.0,
                          resamples=resamples, seed=seed + run)
    p, low, high = (np.array([row[name] for row in rows], dtype=float) for name in ("p", "ci_low", "ci_high"))
    return {**design._asdict(), "runs": runs, "false_positives": _rate(p <= 0.05),
            "mean_covered": _rate((low <= 0) & (high >= 0))}


def family_wise(n: int, drawn: str, runs: int, resamples: int, seed: int) -> dict:
    """How often any of CELLS correlated null cells has an adjusted p at 5%."""
    rng = np.random.default_rng(stream(seed, "family", n, drawn).initial_seed() % 2**63)
    steps_JJ = np.linalg.cholesky(0.8 ** np.abs(np.subtract.outer(np.arange(CELLS), np.arange(CELLS)))).T
    least, alone = [], []
    for run in range(runs):
        test = sign_flip(DRAWN[drawn](rng, (n, CELLS)) @ steps_JJ, resamples=resamples,
                         generator=stream(seed, "family", n, drawn, run))
        least.append(test.p_adjusted.min())
        alone.append(test.p.min())
    return {"n": n, "drawn": drawn, "cells": CELLS, "runs": runs, "family_wise": _rate(np.array(least) <= 0.05),
            "unadjusted": _rate(np.array(alone) <= 0.05)}


def control_rows(rng, runs: int, family: str, chosen: bool, width: int = 32, n: int = 50) -> Iterator[dict]:
    """Rows of summary.json for ablating one direction of random activations under a linear readout, and DRAWS controls.

    The observed direction is drawn as the controls are, or, `chosen`, is the readout's own.
    """
    for run in range(runs):
        scale_D = rng.gamma(2.0, 1.0, width)
        x_ND, readout_D = rng.standard_normal((n, width)) * scale_D + scale_D, rng.standard_normal(width)
        direction_RD = rng.standard_normal((DRAWS + 1, width)) * (scale_D if family == "covariance" else 1.0)
        if chosen:
            direction_RD[0] = readout_D
        direction_RD /= np.linalg.norm(direction_RD, axis=1, keepdims=True)
        effect_R = -(x_ND @ direction_RD.T).mean(axis=0) * (direction_RD @ readout_D)
        for r, effect in enumerate(effect_R.tolist()):
            yield {"metric": "logit_difference", "mean": effect, "conditions": {
                "layer": run, "subspace": family if r else "das", "draw": r - 1 if r else None}}


def controls(family: str, runs: int, seed: int, chosen: bool = False) -> dict:
    """Whether control p-values are uniform: Kolmogorov-Smirnov, after spreading each over its own step of 1/(DRAWS+1)."""
    rng = np.random.default_rng(stream(seed, "controls", family, chosen).initial_seed() % 2**63)
    name = "control_p" if family == "isotropic" else f"control_p_{family}"
    p = np.array([row[name] for row in judge(list(control_rows(rng, runs, family, chosen)))])
    test = kstest(p - rng.random(runs) / (DRAWS + 1), "uniform")
    return {"family": family, "observed": "the readout" if chosen else "a draw", "runs": runs, "draws": DRAWS,
            "false_positives": _rate(p <= 0.05), "ks": float(test.statistic), "ks_p": float(test.pvalue)}


def designs(ns, drawn) -> list[Design]:
    return [Design(n, name, clustered) for clustered in (False, True) for name in drawn for n in ns]


def run(ns, drawn, *, runs: int, resamples: int, seed: int, asked: str = "") -> dict:
    """All of it, under a progress bar."""
    jobs = {"cells": [(calibrate, (d, runs, resamples, seed)) for d in designs(ns, drawn)],
            "one_call_a_run": [(one_call_a_run, (d, runs // 8, resamples, seed)) for d in designs(
                ns[:1], [name for name in ("normal", "exponential, skewness 2") if name in drawn])],
            "family_wise": [(family_wise, (n, name, runs, 499, seed)) for n in ns[1:3] or ns
                            for name in ("normal", "exponential, skewness 2") if name in drawn],
            "controls": [(controls, (family, runs, seed)) for family in ("isotropic", "covariance")]
            + [(controls, ("isotropic", runs // 8, seed, True))]}
    out = {"machine": describe("numpy", "scipy", "torch"), "asked": asked, "resamples": resamples, "seed": seed}
    with Progress() as bar:
        task = bar.add_task("calibration", total=sum(map(len, jobs.values())))
        for name, calls in jobs.items():
            out[name] = []
            for call, given in calls:
                bar.update(task, description=name)
                out[name].append(call(*given))
                bar.advance(task)
    return out


def missed(cells) -> Iterator[str]:
    """Every rate of 100 prompts or more outside its target, and whether its Wilson interval is outside as well."""
    for row in cells:
        for name, (low, high) in TARGETS.items():
            rate = row[name]
            if row["n"] >= 100 and not low <= rate["percent"] <= high:
                surely = "" if rate["high"] < low or rate["low"] > high else ", not beyond chance"
                yield (f"- n = {row['n']}, {row['drawn']}, {'1-4' if row['clustered'] else '1'} a cluster: "
                       f"{name.replace('_', ' ')} {rate['percent']:.1f}% of {low}–{high}%{surely}\n")


def page(result: dict) -> str:
    """The results in Markdown."""
    def line(row, *rates):
        plain = [("1-4" if x else "1") if key == "clustered" else f"{x:.3g}" if isinstance(x, float) else x
                 for key, x in row.items() if not isinstance(x, dict)]
        return plain + [f"**{row[r]['percent']:.1f}** ({row[r]['low']:.1f}–{row[r]['high']:.1f})" for r in rates]

    head = ["n", "drawn from", "prompts a cluster", "runs"]
    rates = ("false_positives", "mean_covered", "ratio_covered")
    parts = [("Tests and intervals", "False positives of p at 5%, and how often the 95% interval holds the true mean "
              "(zero) and the true ratio of means.", [*head, "false positives, %", "mean covered, %", "ratio covered, %"],
              [line(r, *rates) for r in result["cells"]]),
             ("The same with a call a run", "Through `summarise`, nothing shared between runs.",
              [*head, "false positives, %", "mean covered, %"], [line(r, *rates[:2]) for r in result["one_call_a_run"]]),
             ("Families", "Any of the cells of a null map at 5%: adjusted by max-T, and unadjusted.",
              ["n", "drawn from", "cells", "runs", "adjusted, %", "unadjusted, %"],
              [line(r, "family_wise", "unadjusted") for r in result["family_wise"]]),
             ("Controls", "p-values against random directions. Where the observed one is a draw too they must be uniform "
              "(a small KS p says they are not); where it is the readout they must be small.",
              ["family", "observed is", "runs", "draws", "KS distance", "KS p", "p ≤ 5%, %"],
              [line(r, "false_positives") for r in result["controls"]])]
    body = "\n".join(f"## {title}\n\n{text}\n\n{table(header, rows)}" for title, text, header, rows in parts)
    return (f"# Calibration of summary.json\n\nIn brackets: the 95% Wilson interval of the share, from the number of runs. "
            f"{result['resamples']} resamples and flips, seed {result['seed']}. "
            f"Made by `python benchmarks/calibration.py{result['asked']}`.\n\n{body}\n"
            f"## Outside the targets at 100 prompts and more\n\n{''.join(missed(result['cells'])) or 'None.'}")


def main(argv=None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", nargs="+", type=int, default=[20, 50, 100, 200], help="prompts a run")
    parser.add_argument("--drawn", nargs="+", choices=DRAWN, default=list(DRAWN))
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--resamples", type=int, default=1999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of calibration.md and .json")
    args = parser.parse_args(argv)
    asked = "".join(f" --{name} {' '.join(map(str, x)) if isinstance(x, list) else x}" for name, x in vars(args).items()
                    if name != "out" and x != parser.get_default(name))
    result = run(args.n, args.drawn, runs=args.runs, resamples=args.resamples, seed=args.seed, asked=asked)
    write(args.out, "calibration", result, page(result))
    print(page(result))


if __name__ == "__main__":
    main()
