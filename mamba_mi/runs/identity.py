"""Which run a configuration means: the same settings give the same id, hence one folder, swept or not."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..config import UserError

SCHEMA_VERSION = 1  # of the run folder; part of every run_id, so a changed contract never meets old files
NOT_IDENTITY = ("hydra", "logger", "paths", "launcher", "force", "dry_run", "hparams_search")


def canonical(cfg: Mapping) -> str:
    """The identity of a resolved configuration as JSON, less what is in NOT_IDENTITY.

    Key order does not count; a list and a tuple are the same; a whole float is its integer, because the
    command line makes an int of `alpha=1` where the YAML says `1.0`. `true`, `1` and `"1"` stay three things.
    """
    kept = {key: value for key, value in cfg.items() if key not in NOT_IDENTITY}
    return json.dumps(_plain(kept, "config"), sort_keys=True, separators=(",", ":"))


def run_id(cfg: Mapping) -> str:
    """Twelve hex digits that name the run of this configuration."""
    return hashlib.sha256(f"{SCHEMA_VERSION}:{canonical(cfg)}".encode()).hexdigest()[:12]


def folder(cfg: Mapping) -> Path:
    """Where the run of this configuration lives: `<paths.logs>/<method.name>/<model.name>/<run_id>`."""
    names = [_folder_name(cfg[group]["name"], f"{group}.name") for group in ("method", "model")]
    return Path(cfg["paths"]["logs"]).joinpath(*names, run_id(cfg))


def _plain(value: object, where: str) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}: a run's identity is made of plain values")


def _folder_name(name: str, key: str) -> str:
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise UserError(f"{key}={name!r} names a folder of the results, so it cannot be empty or a path: "
                        "give it a plain name (a checkpoint's place goes into model.path)")
    return name
