"""The keys of conf/method/patching.yaml, and everything that can be wrong with them for a model."""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mamba_mi import models
from mamba_mi.config import FITTED, UserError, did_you_mean
from mamba_mi.experiments import at_least
from mamba_mi.interventions import patches
from mamba_mi.measure.answers import METRICS
from mamba_mi.trace import site_name

DIRECTIONS = ("denoising", "noising")
CORRUPTIONS = ("pair", "resample", "noise")
MIXED = "mixed"  # of method.sites: what the mixing of tokens gave, whatever a variant calls it


@dataclass(frozen=True)
class Knobs:
    """`layers` and `roles` are "all" or a list, `heads` null, "all" or a list; `tau` is in logits."""

    sites: list[str] = field(default_factory=lambda: ["resid", "out", MIXED])
    layers: Any = "all"
    roles: Any = "all"
    directions: list[str] = field(default_factory=lambda: list(DIRECTIONS))
    metrics: list[str] = field(default_factory=lambda: ["logit_difference", "probability", "rank"])
    corruption: str = "pair"
    noise: float = 3.0
    samples: int = 10
    heads: Any = None
    dims: Any = None
    subspace: str | None = None
    rank: int = 8
    train: int = 200
    das_steps: int = 100
    draws: int = 0
    draw: int | None = None
    batch: int = 32
    tau: float = 0.5
    resamples: int = 2000


def check(knobs: Knobs, lm) -> None:
    """Raise a UserError, one line, for the first knob that does not fit the model or the others."""
    for key, known in (("sites", lm.sites.names), ("directions", DIRECTIONS), ("metrics", tuple(METRICS))):
        chosen = getattr(knobs, key)
        if not chosen:
            raise UserError(f"method.{key}=[]: give at least one of {', '.join(known)}")
        for name in chosen:
            _one_of(f"method.{key}={name}: there are", name, known)
    _one_of(f"method.corruption={knobs.corruption}: there are", knobs.corruption, CORRUPTIONS)
    if "logit_difference" not in knobs.metrics:
        raise UserError("method.metrics must hold logit_difference: the headline is its normalised form")
    if knobs.noise < 1e-9:
        raise UserError(f"method.noise={knobs.noise}: give more than 0")
    at_least(knobs, samples=1, rank=1, train=8, das_steps=1, batch=1, tau=0, resamples=20)
    if knobs.roles != "all" and not knobs.roles:
        raise UserError("method.roles=[]: give all or at least one role, such as last")
    chosen = layers(knobs, lm)
    for name in knobs.sites:
        if (-1, name) not in lm.sites and not any((layer, name) in lm.sites for layer in chosen):
            there = [i for i, layer in enumerate(lm.layers) if name in layer.SITES]
            raise UserError(f"method.layers={knobs.layers}: none of them has site {name}; layers {there} have")
        if why := next((layer.INERT[name] for layer in lm.layers if name in layer.INERT), ""):
            raise UserError(f"method.sites={name}: no exchange there can change anything in {lm.name}: {why}")
    _check_parts(knobs, lm)


def sites(knobs: Knobs, lm) -> list[str]:
    """Our names of the sites, each once; "mixed" is the variant's own: scan_out of Mamba. One that the model lacks raises."""
    return list(dict.fromkeys(own for asked in knobs.sites for own in _meant(asked, lm)))


def _meant(asked: str, lm) -> list[str]:
    """Our names of what is asked for; of a run read again no model is at hand."""
    if asked == MIXED:
        return [lm.layers[layer].MIXED for layer in lm.mixing] if lm else [MIXED]
    name = site_name(asked)
    if lm and name not in lm.sites:
        elsewhere = ", ".join(models.with_site(name))
        hint = f"; {name} is a site of {elsewhere}" if elsewhere else did_you_mean(name, lm.sites.names)
        said = asked if asked == name else f"{asked} ({name})"
        raise UserError(f"method.sites={said}: {lm.name} is a {lm.config.variant} and has {', '.join(lm.sites.names)}{hint}")
    return [name]


def layers(knobs: Knobs, lm) -> list[int]:
    """The layers patched, ascending."""
    return _numbers("method.layers", knobs.layers, lm.config.n_layer, lm.name, "layers")


def heads(knobs: Knobs, lm) -> list[int | None]:
    """The heads exchanged one at a time; [None] where an exchange is of all there is."""
    if knobs.heads is None:
        return [None]
    for name in knobs.sites:
        patches.head_dims(lm, name, 0)
    return _numbers("method.heads", knobs.heads, lm.config.mixes_by[1], lm.name, "heads")


def dims(knobs: Knobs, lm) -> tuple[int, ...] | None:
    """The coordinates exchanged together at every site; None for all there are."""
    if knobs.dims is None:
        return None
    axes = lm.widths
    narrow = min(knobs.sites, key=lambda name: math.prod(axes[name]))
    return tuple(_numbers("method.dims", knobs.dims, math.prod(axes[narrow]), f"{narrow} of {lm.name}", "coordinates"))


def _check_parts(knobs: Knobs, lm) -> None:
    if len(chosen := [key for key in ("heads", "dims", "subspace") if getattr(knobs, key) is not None]) > 1:
        raise UserError(f"method.{chosen[0]} and method.{chosen[1]}: an exchange is of heads, of dims or in a subspace; "
                        "give one of them")
    heads(knobs, lm)
    dims(knobs, lm)
    if knobs.draws < 0 or (knobs.draw or 0) < 0:
        raise UserError("method.draws and method.draw count from 0")
    if knobs.draws and knobs.draw is not None:
        raise UserError("method.draws has every draw in one run, method.draw one of a sweep's: give one of them")
    if knobs.subspace is not None:
        _check_subspace(knobs, lm.widths)
    elif knobs.draws or knobs.draw is not None:
        raise UserError("method.draws and method.draw are controls of a subspace: give method.subspace="
                        f"{'|'.join(FITTED)} as well")


def _check_subspace(knobs: Knobs, axes) -> None:
    _one_of(f"method.subspace={knobs.subspace}: there are", knobs.subspace, FITTED)
    if wide := [name for name in knobs.sites if len(axes[name]) != 1]:
        raise UserError(f"method.subspace at {wide[0]}: directions are of a site with one axis: "
                        f"{', '.join(name for name, axis in axes.items() if len(axis) == 1)}")
    width, name = min((axes[name][0], name) for name in knobs.sites)
    most = width // 2 if knobs.draws or knobs.draw is not None else width
    if knobs.rank > most:
        raise UserError(f"method.rank={knobs.rank}: {name} has {width} dimensions, so at most {most}"
                        + (" with controls orthogonal to the subspace" if most < width else ""))


def _one_of(said: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise UserError(f"{said} {', '.join(known)}{did_you_mean(name, known)}")


def _numbers(key: str, chosen: Any, count: int, owner: str, what: str) -> list[int]:
    """"all", a number or a list of numbers below `count`, ascending, each once."""
    if chosen == "all":
        return list(range(count))
    several = [chosen] if isinstance(chosen, int) else chosen
    if not isinstance(several, list) or not several or not all(type(i) is int for i in several):
        raise UserError(f"{key}={chosen}: give all or a list such as [0,3]")
    if wrong := [i for i in several if not 0 <= i < count]:
        raise UserError(f"{key}={wrong}: out of range; {owner} has {what} 0-{count - 1}")
    return sorted(set(several))
