"""Runs made up with the shape of real ones: half-way up, the subject hands over to the last token."""
from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from mamba_mi.data.alignment import aligned
from mamba_mi.data.questions import CATEGORIES
from mamba_mi.experiments.heatmap import Heatmap, mean_by_role
from mamba_mi.measure.effects import effects
from mamba_mi.measure.summary import summarise

METRICS = ("normalised_logit_difference", "probability")
SITES = ("resid", "out", "scan_out")
PROMPT = "The Eiffel Tower is located in the city of"


def patching_summary(layers=6, tokens=2, sites=SITES, n=200, metrics=METRICS, seed=0) -> list[dict]:
    """Rows of a patching summary. With many subject tokens, fewer prompts have the later ones."""
    random = np.random.default_rng(seed)
    subject = [f"subject_{i}" for i in range(1, tokens + 1)]
    roles = ["bos", "pre_subject", *subject, "subject", "between", "last"]
    cells = list(product(("denoising", "noising"), sites, range(layers), roles))
    return [_row(random, metric, n, tokens, layers, *cell) for metric in metrics for cell in cells]


def _row(random, metric, n, tokens, layers, direction, site, layer, role) -> dict:
    effect = _effect(direction, site, layer / max(1, layers - 1), role, tokens)
    if role.startswith("subject_"):
        n = max(14, int(n * (1.25 - 0.22 * int(role[8:]))) if tokens > 3 else n)
    scale = {"normalised_logit_difference": 1, "probability": 0.6}[metric]
    half = scale * (0.012 + 0.07 * math.sqrt(max(0.0, effect * (1.1 - effect)))) * math.sqrt(200 / n)
    mean = scale * effect + random.normal() * half / 2.5
    p = 0.001 if abs(mean) > 2.6 * half else round(min(1.0, 0.9 * math.exp(-abs(mean) / half)), 3)
    conditions = {"direction": direction, "site": site, "layer": layer, "role": role}
    return {"conditions": conditions, "metric": metric, "n": n,
            "n_clusters": max(8, int(n * 0.45)), "mean": mean, "ci_low": mean - half * 1.05,
            "ci_high": mean + half * 0.95, "effect_size": mean / half / 4, "p": p,
            "p_adjusted": min(1.0, p * 3), "p_bh": min(1.0, p * 1.4),
            "control_p": None, "excluded": 3 if metric == METRICS[0] else 0}


def _effect(direction, site, depth, role, tokens) -> float:
    handed_over = 1 / (1 + math.exp(-11 * (depth - 0.55)))
    passing = math.exp(-((depth - 0.55) / 0.2) ** 2)
    if site == "resid":
        shape = {"subject": 1 - handed_over, "last": handed_over, "between": 0.3 * passing}
    else:
        written = math.exp(-(depth / 0.25) ** 2)
        shape = {"subject": 0.55 * written, "last": 0.62 * passing, "between": -0.12 * passing}
    if role.startswith("subject_"):
        share = int(role[8:]) / sum(range(1, tokens + 1))
        return shape["subject"] * share * (0.9 if direction == "denoising" else 0.6)
    return shape.get(role, 0.0) * (1 if direction == "denoising" else 0.93)


def subspace_summary(layers=6, draws=25, seed=0) -> list[dict]:
    """Rows of a run in a subspace: fitted at .6, random ones about .1, a row a draw and family."""
    random, rows = np.random.default_rng(seed), []
    for direction, role, layer in product(("denoising", "noising"), ("subject", "last"), range(layers)):
        cell = {"direction": direction, "site": "resid", "layer": layer, "role": role}
        for name, rank, mean in (("full", 128, 0.9), ("mean_difference", 8, 0.6), ("row_space", 8, 0.6), ("null_space", 0, 0.0)):
            rows.append({"conditions": {**cell, "subspace": name, "rank": rank, "draw": None}, **_numbers(mean, 0.05)})
        rows += [{"conditions": {**cell, "subspace": family, "rank": 8, "draw": draw},
                  **_numbers(0.1 + 0.03 * random.normal(), None), "match": 0.3}
                 for family in ("isotropic", "covariance", "rescaled", "orthogonal") for draw in range(draws)]
    return rows


def heads_summary(layers=6, heads=8) -> list[dict]:
    """Rows of a run head by head: one head does it all."""
    cells = product(("denoising", "noising"), ("scan_out", "state"), range(layers), ("subject", "last"), range(heads))
    return [{"conditions": {"direction": d, "site": s, "layer": y, "role": r, "head": h},
             **_numbers(0.8 if (y, h) == (3, 5) else 0.0, 0.05)} for d, s, y, r, h in cells]


def _numbers(mean: float, half: float | None) -> dict:
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"metric": METRICS[0], "n": 80, "n_clusters": 40, "mean": mean, "ci_low": low, "ci_high": high,
            "effect_size": None, "p": None, "p_adjusted": 0.001 if mean > 0.3 else 0.9, "control_p": None, "excluded": 0}


def heatmap_measured(layers=6, tokens=9, prompts=8, window=2, policies=(("scan", "token"),), spans=None) -> dict:
    """What a heatmap run keeps of its prompts: one token read in the upper half of the layers, and nothing else."""
    spans = {"bos": (0, 1), "subject": (2, 4)} if spans is None else spans
    ids = [f"instrument-{i}-Anouk-Solstad" for i in range(prompts)]
    roles, random = aligned(tokens, spans), np.random.default_rng(0)
    cells = list(product(range(prompts), policies, range(tokens), range(layers - window + 1)))
    p0 = random.uniform(0.2, 1.0, prompts)
    p = [p0[i] * (1 - 0.9 * (t == 3 and w > layers // 2)) * random.uniform(0.97, 1) for i, _, t, w in cells]
    kept = {"prompt_id": [ids[i] for i, *_ in cells], "position": [t for *_, t, _ in cells],
            "role": [roles[t] for *_, t, _ in cells], "source": "token", "conv": [c for _, (c, _), *_ in cells],
            "span": [s for _, (_, s), *_ in cells], "window_start": [w for *_, w in cells], "window_size": window,
            "metric": "probability", "value": p, "baseline": [p0[i] for i, *_ in cells]}
    kept = {name: [x] * len(cells) if isinstance(x, str | int) else x for name, x in kept.items()}
    words = ["<bos>", "the", " Anouk", "##stad", " plays", " profession", "$5", " \n", " on", " longest-token-of-all", " the"]
    records = [{"prompt_id": i, "text": PROMPT, "kept": True, "why": None, "spans": spans, "target": " trumpet"} for i in ids]
    return {"effects": effects(kept), "prompts": records, "tokens": {i: [words[t % 11] for t in range(tokens)] for i in ids}}


def heatmap_summary(measured: dict | None = None) -> list[dict]:
    """The summary of that run, in % of the clean probability."""
    table = mean_by_role((measured or heatmap_measured())["effects"])
    change = pc.multiply(100, pc.divide(table["value"], table["baseline"]))
    for name, column in (("value", change), ("baseline", pa.array([100.0] * len(table))),
                         ("metric", pa.array(["relative_probability"] * len(table)))):
        table = table.set_column(table.column_names.index(name), name, column)
    return summarise(table, {i: i for i in table["prompt_id"].to_pylist()}, Heatmap.conditions, normalised={}, tau=0.0,
                     resamples=200, seed=0, family=Heatmap.family)


def training_summary() -> list[dict]:
    tasks = {"recall_train": (1.0, 512), "recall_held_out": (0.981, 479), "two_hop_train": (1.0, 200),
             "two_hop_held_out": (0.567, 90), "mqar_4": (1.0, 400), "mqar_8": (0.99, 400),
             "box": (0.716, 300)}
    rows = []
    for task, (p, n) in tasks.items():
        half = 1.96 * math.sqrt(p * (1 - p) / n)
        rows.append({"conditions": {"task": task}, "metric": "hit", "n": n, "n_clusters": n // 4, "mean": p,
                     "ci_low": p - half, "ci_high": min(1, p + half), "effect_size": None, "p": None,
                     "p_adjusted": None, "control_p": None})
    return rows


def training_curve(steps=2400, every=10) -> list[dict]:
    random = np.random.default_rng(1)
    at = range(every, steps + 1, every)
    return [{"step": s, "loss": 0.9 + 4.6 * math.exp(-s / 330) + random.normal() * 0.05,
             "lr": 4e-3 * min(1, s / 100) * (0.51 + 0.49 * math.cos(math.pi * s / steps)),
             "tokens_per_second": 7800 + random.normal() * 250, "utilisation": 0.31 + random.normal() * 0.01,
             **({"validation": 1.0 + 4.6 * math.exp(-s / 330)} if s % 400 == 0 else {})} for s in at]


def corpus_summary(sources=("Pile-CC", "Github", "Wikipedia (en)", "all sources"), model=31.4) -> list[dict]:
    """Rows of a training on text: what it reaches and what a unigram model does; the last source has no interval."""
    rows = []
    for i, source in enumerate(sources):
        for metric, level in (("perplexity", model * (1 + 0.2 * i)), ("unigram_perplexity", 812.0 + 31 * i)):
            ends = (None, None) if i == len(sources) - 2 else (level * 0.94, level * 1.07)
            rows.append({"conditions": {"source": source}, "metric": metric, "n": 40 + i, "tokens": 12345 * (i + 1), "mean": level,
                         "ci_low": ends[0], "ci_high": ends[1]})
    return rows


def paths_summary(tolerance=1e-4) -> list[dict]:
    """Rows of compare_paths that its figure reads."""
    return [{"conditions": {"path": path}, **_numbers(0.0, 0.01), "metric": metric, "n": 80,
             **({"tolerance": tolerance} if tolerance else {})}
            for path in ("ordinary", "attention") for metric in ("probability", "max_probability")]


def paths_effects(scale=1e-7, n=80) -> pa.Table:
    """Effects of two paths whose probabilities differ by about `scale`: those of the answer upwards, of the first choice
    downwards, and every fourth not at all."""
    random, parts = np.random.default_rng(2), []
    for metric, sign in (("probability", 1), ("max_probability", -1)):
        one = random.beta(2, 1, n) * 0.9 + 0.05
        other = one + sign * scale * np.abs(random.normal(size=n)) * (np.arange(n) % 4 > 0)
        for path, value, baseline in (("ordinary", one, 0 * one), ("attention", other, one)):
            parts.append(effects({"prompt_id": [f"p{i:03d}" for i in range(n)], "path": [path] * n, "metric": [metric] * n,
                                  "value": value, "baseline": baseline}))
    return pa.concat_tables(parts)


def generated_levels(n=20) -> tuple[dict, pa.Table]:
    """artifacts/generation.json of six levels and the effects that count their prompts."""
    levels = [{"level": category.lower(), "category": category, "n": n, "answers": {"red": n // 4, "blue": n - n // 4}}
              for category in CATEGORIES[:6]]
    rows = [(f"{each['level']}-{i}", each["level"], metric, 2 + number + i % 3 + 20 * (metric == "words"))
            for number, each in enumerate(levels) for i in range(n) for metric in ("facts", "words")]
    ids, tasks, metrics, values = zip(*rows)
    return {"lexicon": "english", "seed": 0, "levels": levels}, effects({
        "prompt_id": ids, "task": tasks, "metric": metrics, "value": values, "baseline": [0] * len(rows)})


def comparison(off: float = 0.0) -> dict:
    """artifacts/reproduce.json of eleven knockouts at ten starts, of logit differences and of a mean; one number is off."""
    random, names = np.random.default_rng(2), ("query", "source", "timescale", "window_start")
    knocked = [(query, source, None) for query in ("last", "relation", "subject") for source in ("subject", "context", "relation")]
    knocked += [("last", "subject", "all_but_slow"), ("last", "subject", "all_but_fast")]
    cells = [((*cell, start), "probability", 0.0, 1.0) for cell in knocked for start in range(10)]
    cells += [((None, "none", None, None), "probability", 0.0, 1.0), ((None, "none", None, None), "logit_difference", -5.0, 15.0)]
    items = []
    for cell, metric, low, high in cells:
        published = random.uniform(low, high, 8)
        ours = published + (off if cell == ("last", "relation", None, 4) else 0.0)
        prompts = [{"prompt_id": f"cf-{i:05d}", "published": x, "ours": y, "difference": y - x, "within": bool(abs(y - x) < 1e-3)}
                   for i, (x, y) in enumerate(zip(published, ours))]
        items.append({"item": "", **dict(zip(names, cell)), "window_size": 15, "metric": metric, "unit": "change in %", "n": 8,
                      "n_published": 8, "published": -100 * published.mean(), "ours": -100 * ours.mean(),
                      "difference": 100 * (published - ours).mean(), "agree": sum(p["within"] for p in prompts), "of": 8,
                      "prompts": prompts, "source_of_number": ""})
    mean = {"metric": "hit", "unit": "mean hit", "n": 21605, "n_published": 21919, "published": 0.0915, "ours": 0.0921,
            "difference": 0.0006, "agree": 1, "of": 1, "prompts": []}
    return {"reference": "knockout-130m", "tolerance": {"probability": [1e-3, 0], "logit_difference": [1e-3, 0], "mean": [5e-3, 0]},
            "items": [*items, {**items[-2], **mean}]}


def write_run(folder: Path, summary: list[dict], model="tiny", dataset="facts", curve=None, effects=None, compared=None, classified=None,
              generation=None, prompts=None, tokens=None) -> Path:
    """A run's folder as `runs` leaves it; without effects and tokens unless given."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model": {"name": model}, "dataset": {"name": dataset, "n": 200, "only_correct": True},
              "method": {"name": "patching", "lr": 0.004}, "seed": 0, "device": "cpu", "dtype": "float32"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    manifest = {"status": "done", "run_id": "3f9c2a7e", "seed": 0, "git": "1e236f3", "backend": "chunked",
                "versions": {"torch": "2.13.0", "python": "3.11"}, "bit_reproducible": True}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    prompts = prompts or [{"prompt_id": str(i), "text": PROMPT, "kept": i < 3, "why": ""} for i in range(4)]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "artifacts").mkdir(exist_ok=True)
    if effects is not None:
        pq.write_table(effects, folder / "effects.parquet")
    if tokens is not None:
        (folder / "artifacts" / "tokens.json").write_text(json.dumps(tokens))
    if curve is not None:
        (folder / "artifacts" / "training_curve.json").write_text(json.dumps(curve))
        told = {"tokens": 2_457_600, "unigram": {"nats_per_token": 6.7}, "validation": {"documents": 183}, "speed": {"measured_peak": 5.1e10}}
        (folder / "artifacts" / "training_info.json").write_text(json.dumps(told))
    if generation is not None:
        (folder / "artifacts" / "generation.json").write_text(json.dumps(generation))
    if compared is not None:
        (folder / "artifacts" / "reproduce.json").write_text(json.dumps(compared))
    if classified is not None:
        (folder / "artifacts" / "classified.json").write_text(json.dumps(classified))
    return folder
