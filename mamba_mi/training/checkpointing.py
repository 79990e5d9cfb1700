"""One checkpoint, there whole or not at all: written beside its place, flushed to disk and moved there."""
from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from mamba_mi.config import UserError

NAME = "checkpoint.pt"


def write(folder: Path, content: Mapping) -> None:
    """Replace the folder's checkpoint by `content`: tensors, numbers, text, and lists and dicts of them."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{NAME}.partial"  # one name, so that what a kill leaves behind is overwritten
    with open(partial, "wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / NAME)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # the move itself is safe from a power cut only now
    finally:
        os.close(handle)


def read(folder: Path, identity: str) -> dict | None:
    """The folder's checkpoint; None when there is none; a UserError when it belongs to another training."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as e:
        why = f"not a checkpoint ({type(e).__name__})"
        raise UserError(f"{path}: {why}; delete it to train from the start") from None
    if content["identity"] != identity:
        raise UserError(f"{path}: made by another recipe or another model; delete it to train from the start")
    return content


def weights_hash(module: nn.Module) -> str:
    """sha256 of every parameter's and buffer's name and bytes."""
    digest = hashlib.sha256()
    for name, x in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(x.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
