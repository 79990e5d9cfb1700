"""A checkpoint's weights on disk: one file or several, safetensors or torch's, read without executing anything.

Sharded weights are an index.json whose `weight_map` says which file holds which tensor.
"""
from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mamba_mi.config import UserError

INDEX = ".index.json"
FLAT = ".ckpt"  # of a format that is one file, whatever its name
WHOLE = ("model.safetensors", "pytorch_model.bin")
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")


class Unsaid(UserError):
    """A config leaves to its tensors what is asked of it."""


def weights_file(folder: Path) -> Path:
    """The folder's weights, or the index of its shards; safetensors first."""
    held = sorted(path.name for path in folder.iterdir())
    if name := lead(held, str(folder)):
        return folder / name
    raise UserError(f"{folder}: no weights; expected {' or '.join(WHOLE)}, the index of its shards, or one *{FLAT}, found "
                    f"{', '.join(held) or 'nothing'}")


def lead(names: Sequence[str], where: str) -> str:
    """Which of these files are the weights, or say where they are; empty if none. Several flat ones raise."""
    if known := [name for name in WEIGHTS if name in names]:
        return known[0]
    flat = [name for name in names if name.endswith(FLAT)]
    if len(flat) > 1:
        raise UserError(f"{where}: {some(flat)} are several checkpoints; give a folder with one of them as model.path")
    return flat[0] if flat else ""


def parts(path: Path) -> tuple[Path, ...]:
    """Every file these weights are in: the one given and, where it is an index, its shards."""
    if not path.name.endswith(INDEX):
        return (path,)
    return (path, *(path.parent / name for name in sorted(set(_weight_map(path).values()))))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors by their published names; never executes what a pickle asks for."""
    if not path.name.endswith(INDEX):
        return _read(path)
    _, *shards = parts(path)
    if lost := [shard.name for shard in shards if not shard.is_file()]:
        raise UserError(f"{path}: {some(lost)} not there, of the {len(shards)} files it names; download them again")
    weights, of = {}, _weight_map(path)
    for shard in shards:
        held = _read(shard)
        if absent := sorted(name for name in of if of[name] == shard.name and name not in held):
            raise UserError(f"{shard}: missing {some(absent)}, which {path.name} says it holds")
        if twice := sorted(set(held) & set(weights)):
            raise UserError(f"{shard}: {some(twice)} also in another shard")
        weights |= held
    return weights


def check_finite(weights: Mapping[str, torch.Tensor], where: Path) -> None:
    """Raise for the first tensor that holds NaN or infinity."""
    for name, x in weights.items():
        if not x.is_floating_point() or not x.numel():
            continue
        low, high = torch.aminmax(x)  # NaN if any is: one pass, and nothing is made
        if not torch.isfinite(low) or not torch.isfinite(high):
            raise UserError(f"{where}: {name} holds {'NaN' if low.isnan() else 'infinity'}; download it again")


def fingerprint(path: Path) -> str:
    """sha256 of the weights' bytes, over every shard."""
    digest = hashlib.sha256()
    for part in parts(path):
        with open(part, "rb") as f:
            while block := f.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def some(items, most: int = 4) -> str:
    """The first few of them, and how many more there are."""
    return (", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")) or "none"


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {Path(name).name == name for name in of.values()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{index}: not an index of shards ({type(e).__name__}: {_first_line(e)}); it needs a weight_map "
                        "from tensors to files") from None
    if names != {True}:
        raise UserError(f"{index}: its weight_map must name files of this folder, at least one")
    return of


def _read(path: Path) -> dict[str, torch.Tensor]:
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_torch(path):
    with open(path, "rb") as f:
        is_zip = f.read(4) == b"PK\x03\x04"
    if not is_zip:
        raise UserError(f"{path}: truncated or not a torch checkpoint (a zip archive since torch 1.6); download it again")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as e:
        why = "Weights only load failed" in str(e)
        raise UserError(f"{path}: refused, it holds more than tensors (weights_only=True), and loading it could run code"
                        if why else f"{path}: not a torch checkpoint ({_first_line(e)})") from None
    except Exception as e:  # a damaged file leads the reader into errors of any kind
        raise UserError(f"{path}: truncated or not a torch checkpoint{_clause(e)}; download it again") from None
    if isinstance(weights, dict) and list(weights) == ["model"] and isinstance(weights["model"], dict):
        weights = weights["model"]  # BlackMamba's
    if not isinstance(weights, dict) or not all(
            isinstance(name, str) and isinstance(x, torch.Tensor) for name, x in weights.items()):
        raise UserError(f"{path}: expected a mapping of names to tensors, found {type(weights).__name__}")
    return weights


def _read_safetensors(path):
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f"{path}: truncated or not a safetensors file{_clause(e)}; download it again") from None


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [""])[0][:160]


def _clause(e: Exception) -> str:
    """The first sentence of what a reader says, in brackets; nothing of an errno, which says "invalid argument" of a short file."""
    return "" if getattr(e, "errno", None) else f" ({_first_line(e).partition('. ')[0].rstrip('.')})"
