"""The variants there are: one module each, found by what it defines.

A variant is a module with `Config`, `Block(config, layer, backend)` (a `mixer.Layer`), and
    PUBLISHED     {name: Published} of its public checkpoints
    CARD          what experiment=models says of it
    SMALL         the Config of a small model in the embedded vocabulary, of a variant of which no embedded model ships
    FinalNorm     the norm before the head, if it is not RMSNorm
    OPTIONS       {name: values} that a checkpoint does not say and a user may (`model.modulate`), fields of its Config
    ABOUT         what a reader of results must know of what is published under its name
and, where its checkpoints have a format of their own, what `checkpoints` asks of a layout (see there).
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import NamedTuple

from mamba_mi.config import UserError, did_you_mean

HERE = Path(__file__).parent


@cache
def modules() -> dict[str, ModuleType]:
    """Each variant's module by the variant's name."""
    found = {info.name: import_module(f"mamba_mi.models.{info.name}") for info in iter_modules([str(HERE)]) if not info.ispkg}
    return {name: module for name, module in found.items() if hasattr(module, "Block")}


def published() -> dict[str, str]:
    """The hub id of every published checkpoint that has a name here."""
    return {name: each.repo for module in modules().values() for name, each in module.PUBLISHED.items()}


def embedded() -> dict[str, Path]:
    """The folders of the weights that ship with the package: `tiny_mamba1` is `tiny-mamba1`."""
    folders = sorted(path.parent for path in HERE.glob("*/model.safetensors"))
    return {folder.name.replace("_", "-"): folder for folder in folders}


def recipes() -> dict[str, Path]:
    """The folders of sizes and a vocabulary without weights, for models nobody published: `recipes/moe_mamba` is `moe-mamba`."""
    return {path.parent.name.replace("_", "-"): path.parent for path in sorted(HERE.glob("recipes/*/config.json"))}


def options(module: ModuleType) -> dict[str, tuple]:
    """What may be said of a variant's checkpoint besides its config, and with which values."""
    return getattr(module, "OPTIONS", {})


def check_options(variant: str, asked: Mapping) -> None:
    """Raise where a checkpoint of this variant is told what it cannot be told; None says nothing of it."""
    known = options(modules()[variant])
    for name, value in asked.items():
        if value is None:
            continue
        if name not in known:
            raise UserError(f"model.{name}: a {variant} has no such option; it has {', '.join(known) or 'none'}")
        # by type too: 1 is True, and would be another run of the same model
        if (type(value), value) not in [(type(x), x) for x in known[name]]:
            there = [str(x).lower() if isinstance(x, bool) else str(x) for x in known[name]]
            raise UserError(f"model.{name}={value}: there are {', '.join(there)}{did_you_mean(str(value), there)}")


class Meant(NamedTuple):
    """What the configuration says of a checkpoint: the model's name and variant, and the setting that says where it lies."""

    name: str
    variant: str
    source: str

    def check(self) -> None:
        """Raise for a variant that is none."""
        if self.variant not in modules():
            known = sorted(modules())
            raise UserError(f"model.variant={self.variant}: there are {', '.join(known)}{did_you_mean(str(self.variant), known)}")


def about(config) -> str:
    """What a reader of results must know of this model; empty where its name says it all."""
    said = getattr(modules()[config.variant], "ABOUT", "")
    return said(config) if callable(said) else said


class Published(NamedTuple):
    """A public checkpoint: its hub id, and how many numbers its published sizes make (rows that pad the vocabulary count)."""

    repo: str
    parameters: int


class Card(NamedTuple):
    """What a table of variants says of one: a module's CARD."""

    what: str
    licence: str
    format: str
    oracle: str


def numerics() -> dict[str, dict[str, float]]:
    """How far a random checkpoint's logits are from the independent implementation, over the largest |logit|, by variant
    and number type: as the tests last measured it."""
    return json.loads((HERE / "numerics.json").read_text(encoding="utf-8"))
