"""Run folders and sweeps made up in the published contract: effects with a known truth, summarised as a run does it."""
from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import yaml

from mamba_mi.measure.effects import effects
from mamba_mi.measure.summary import summarise
from mamba_mi.runs import aggregate, identity
from mamba_mi.runs.files import write_json
from mamba_mi.runs.store import Store

CONDITIONS = ("direction", "site", "layer", "role")
NORMALISED = {"logit_difference": "normalised_logit_difference"}
ROLES = ("subject", "between", "last")


def settings(seed: int = 0, model: str = "tiny", logs: str = "logs", **method) -> dict:
    return {"seed": seed, "model": {"name": model, "path": None, "hub": None}, "dataset": {"name": "facts", "n": 12},
            "method": {"name": "patching", "sites": ["resid"], "tau": 0.5, "resamples": 200, **method},
            "cone": {"memory": 1 << 30}, "paths": {"logs": logs}}


def drawing(draw: int, model: str = "tiny", logs: str = "logs") -> dict:
    """The settings of the job of one draw, an own run for each."""
    return {**settings(0, model, logs), "draw": draw}


def truth(layer: int, role: str, layers: int, late: float) -> float:
    """The subject hands over to the last token, the later the larger `late`."""
    over = 1 / (1 + np.exp(-10 * (layer / max(1, layers - 1) - late)))
    return {"subject": 1 - over, "between": 0.0, "last": over}[role]


def columns(seed: int, layers: int = 4, late: float = 0.5, prompts: int = 12, shift: float = 0.0) -> dict:
    """Effects of one seed: `prompts` of 30 subjects, so that seeds share some of them."""
    subjects = np.random.default_rng([seed, 7]).choice(30, prompts, replace=False)
    random = np.random.default_rng([seed, int(100 * late)])  # every model has noise of its own
    by_subject, full = np.random.default_rng(3).normal(0, 0.1, 30), 4 + np.random.default_rng(5).normal(0, 0.3, 30)
    rows = [{"prompt_id": f"p{s}", "direction": direction, "site": "resid", "layer": layer, "role": role,
             "metric": "logit_difference", "baseline": 0.0, "full": full[s],
             "value": full[s] * (truth(layer, role, layers, late) + by_subject[s] + shift + random.normal(0, 0.05))}
            for s, direction, layer, role in product(subjects, ("denoising", "noising"), range(layers), ROLES)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def write_run(config: dict, data: dict, ended: str = "2030-01-01T00:00:00+00:00") -> Path:
    """A finished run's folder, where its configuration says."""
    folder, table = identity.folder(config), effects(data)
    clusters = {p: f"subject {p}" for p in data["prompt_id"]}
    with Store(folder) as store:
        store.write_text("config.yaml", yaml.safe_dump(config))
        store.write_json("prompts.json", [{"prompt_id": p, "cluster": c, "kept": True} for p, c in clusters.items()])
        store.write_effects(table)
        store.write_json("summary.json", summarise(table, clusters, CONDITIONS, normalised=NORMALISED, tau=0.5,
                                                   resamples=200, seed=config["seed"]))
        store.write_text("report.html", "<p>a run's report</p>")
        write_manifest(folder, "done", ended)
    return folder


def write_manifest(folder: Path, status: str, ended: str | None, **fields) -> None:
    write_json(folder / "manifest.json", {"status": status, "ended": ended, "error": None, **fields})


def write_drawn(config: dict, draw: int, observed: float = 0.9, noise: float = 0.1) -> Path:
    """A job of a sweep over draws: the observed effect, and one random draw of each family."""
    folder, random = identity.folder(config), np.random.default_rng([draw, 1])
    at = {"direction": "denoising", "site": "resid", "layer": 2, "role": "subject", "rank": 1}

    def row(mean, **more):
        return {"conditions": {**at, "subspace": None, "draw": None, **more}, "metric": "normalised_logit_difference",
                "n": 12, "n_clusters": 12, "mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1, "effect_size": 1.0,
                "p": 0.01, "p_adjusted": 0.02, "p_bh": 0.02, "control_p": None, "excluded": 0, "note": None}

    families = ("isotropic", "covariance", "rescaled", "orthogonal")
    rows = [row(observed, subspace="das"), *(row(float(random.normal(0, noise)), subspace=f, draw=draw) for f in families)]
    folder.mkdir(parents=True)
    write_json(folder / "summary.json", rows)
    write_json(folder / "prompts.json", [])
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_manifest(folder, "done", "2030-01-01T00:00:00+00:00")
    return folder


def planned(folder: Path, jobs: list[tuple[dict, dict]], experiment: str = "patching") -> Path:
    """A sweep's folder with its plan; a job is (its swept values, its settings)."""
    folder.mkdir(parents=True)
    aggregate.begin(folder, [{"label": " ".join(f"{k}={v}" for k, v in swept.items()), "overrides": [], "swept": swept,
                              "settings": config} for swept, config in jobs],
                    experiment=experiment, argv=["launch.py", "-m"], command="python launch.py -m <seed>")
    return folder


def record(folder: Path) -> dict:
    return json.loads((folder / "sweep.json").read_text())
