"""How much memory the published Mambas take, reckoned from their sizes: weights, state, activations, a patching run.

Bytes. A model's weights may be short, its state and residual stream never are; activations are reckoned in float32, which
bounds shorter types. No weights are read.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch

from mamba_mi.backends import Choice, reference
from mamba_mi.models import checkpoints, state_spaces
from mamba_mi.models.lm import LM

SHAPES = {  # d_model, n_layer
    "mamba-130m": (768, 24), "mamba-370m": (1024, 48), "mamba-790m": (1536, 48), "mamba-1.4b": (2048, 48), "mamba-2.8b": (2560, 64),
    "mamba2-130m": (768, 24), "mamba2-370m": (1024, 48), "mamba2-780m": (1536, 48), "mamba2-1.3b": (2048, 48),
    "mamba2-2.7b": (2560, 64)}
VOCABULARY = {"mamba1": 50280, "mamba2": 50288}  # with the rows that pad it
SHORT, LONG = (64, 32), (1, 2048)  # rows, length of the passes told
BATCH, LENGTH, CONE = 32, 32, 1 << 30  # of the patching run: pairs and cone.memory as they come, and a long prompt of CounterFact
READ = 3 * 4 * (1 << 22)  # of the logits the cone reads at once, and what the metrics make of them


class Footprint(NamedTuple):
    """Bytes; `state` is one row's, after all layers; `run` what patching takes beyond the weights."""

    parameters: int
    float32: int
    bfloat16: int
    state: int
    short: int
    long: int
    logits_short: int
    logits_long: int
    run: int


def config_json(name: str) -> dict:
    """The config.json of a published Mamba."""
    variant = "mamba2" if name.startswith("mamba2-") else "mamba1"
    width, depth = SHAPES[name]
    return state_spaces.of_sizes(variant, {"d_model": width, "n_layer": depth}, VOCABULARY[variant])


def footprint(name: str) -> Footprint:
    """What a published Mamba takes."""
    module, config = checkpoints.parse_config(config_json(name))
    with torch.device("meta"):
        lm = LM(config, module, reference, Choice("", "", ""), name=name)
    counts = {kind: sum(x.numel() for x in _cast(lm, kind) if x.dtype == torch.float32) for kind in (torch.float32, torch.bfloat16)}
    parameters = counts[torch.float32]
    row = state(config)
    passes = [4 * rows * length * config.floats(length, False) for rows, length in (SHORT, LONG)]
    logits = [4 * rows * length * config.padded_vocab for rows, length in (SHORT, LONG)]
    return Footprint(parameters, 4 * parameters, 2 * parameters + 2 * counts[torch.bfloat16], row, *passes, *logits, run(config, row))


def _cast(lm: LM, kind: torch.dtype) -> list[torch.Tensor]:
    checkpoints.cast(lm, kind, "meta")
    return list(lm.parameters())


def state(config) -> int:
    """One row's conv tails and SSM states."""
    through = config.d_inner + (2 * config.ngroups * config.d_state if config.variant == "mamba2" else 0)
    return 4 * config.n_layer * ((config.d_conv - 1) * through + config.d_inner * config.d_state)


def run(config, row: int) -> int:
    """The cone's jobs; the other run's values at resid, out and scan_out, as many as fit into as much; the clean state of
    every prompt, of one layer twice while it goes on; the logits that are read."""
    values = 4 * BATCH * LENGTH * config.n_layer * (2 * config.d_model + config.d_inner)
    return CONE + min(CONE, values) + BATCH * row * (config.n_layer + 1) // config.n_layer + READ


def measured() -> dict[str, int]:
    """What a patching run took beyond its weights, by name, as `benchmarks/footprint_worker.py` last measured it: float32, on a CPU."""
    return json.loads((Path(__file__).parent / "footprints.json").read_text(encoding="utf-8"))
