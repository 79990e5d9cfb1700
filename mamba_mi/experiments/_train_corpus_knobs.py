"""The settings of a training on running text, and which of them cannot be."""
from __future__ import annotations

from dataclasses import dataclass

import torch

from mamba_mi.config import UserError
from mamba_mi.experiments import at_least

PRECISE = ("mamba1", "mamba2")  # variants whose state is seen to stay float32 under autocast
STARTS, AUTOCASTS = ("scratch", "checkpoint"), ("none", "bf16")


@dataclass(frozen=True)
class Knobs:
    """Keys of conf/method/train.yaml as conf/method/of/train_pile.yaml has them."""

    steps: int | None = None
    batch: int = 32
    length: int = 1024
    lr: float = 6e-4
    weight_decay: float = 0.1
    warmup: int = 200
    checkpoint_every: int = 200
    eval_every: int = 500
    examined: int | None = 500
    resamples: int = 2000
    samples: int | None = 32000
    epochs: int = 1
    start: str = "scratch"
    boundaries: bool = True
    accumulate: int = 1
    clip: float = 1.0
    autocast: str = "none"
    checkpoint_activations: bool = False


def steps_of(knobs: Knobs) -> int:
    """As many as asked for, or as the samples make."""
    return knobs.steps or max(1, knobs.samples * knobs.epochs // knobs.batch)


def check(knobs: Knobs, lm, ranks) -> None:
    """Raise a UserError for what does not fit together, this model or so many processes."""
    at_least(knobs, steps=1, samples=1, epochs=1, batch=1, length=2, accumulate=1, checkpoint_every=1, eval_every=1, examined=2,
             warmup=0, weight_decay=0, resamples=1)
    if knobs.steps is None and knobs.samples is None:
        raise UserError("method.steps=null method.samples=null: nothing says how long to train; give one of them")
    if knobs.warmup > steps_of(knobs):
        raise UserError(f"method.warmup={knobs.warmup}: the rate would never get to method.lr, as there are {steps_of(knobs)} steps in all")
    for key in ("lr", "clip"):
        if not getattr(knobs, key) > 0:
            raise UserError(f"method.{key}={getattr(knobs, key)}: give more than 0, or nothing is learnt")
    if knobs.batch % (knobs.accumulate * ranks.count):
        raise UserError(f"method.batch={knobs.batch}: does not split into {ranks.count} processes times method.accumulate="
                        f"{knobs.accumulate} parts")
    if knobs.autocast not in AUTOCASTS:
        raise UserError(f"method.autocast={knobs.autocast}: there are {', '.join(AUTOCASTS)}")
    if knobs.autocast != "none" and (lm.config.variant not in PRECISE or lm.dtype != torch.float32):
        raise UserError(f"method.autocast={knobs.autocast}: only for {' and '.join(PRECISE)} with dtype=float32; give none")
    if lm.dtype not in (torch.float32, torch.float64):
        raise UserError(f"dtype={str(lm.dtype).removeprefix('torch.')}: most steps are lost in weights this short; give dtype=float32 "
                        "method.autocast=bf16")
    if lm.config.max_length is not None and knobs.length > lm.config.max_length:
        raise UserError(f"method.length={knobs.length}: {lm.name} takes at most {lm.config.max_length} tokens")
    if knobs.checkpoint_activations and any(layer.BALANCED for layer in lm.layers):
        raise UserError(f"method.checkpoint_activations=true: the routers of a {lm.config.variant} would be balanced twice")
