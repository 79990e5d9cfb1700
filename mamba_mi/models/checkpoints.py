"""Published checkpoints to our models and back, strictly: every tensor is accounted for, every shape checked.

Two layouts are read, told apart by config.json: state-spaces and Hugging Face's. Their tensors have the same names but
for the embedding's. One file may mix float16 and float32.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from mamba_mi.config import UserError
from mamba_mi.models import hugging_face, state_spaces
from mamba_mi.models.state_spaces import published_config
from mamba_mi.models.weights import WEIGHTS, WHOLE, fingerprint, parts, read_weights, some, weights_file

__all__ = ["WEIGHTS", "Published", "cast", "fill", "fingerprint", "parse_config", "parts", "published_config",
           "read_config", "read_weights", "save", "weights_file"]


class Published(NamedTuple):
    """What a config.json says: the variant's module, its Config, and what the layout calls the embedding."""

    module: ModuleType
    config: object
    embedding: str


def read_config(folder: Path) -> Published:
    """What the folder's config.json says."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json; a checkpoint is a folder with config.json and {' or '.join(WHOLE)}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid JSON ({e})") from None
    layout = _layout(raw, str(path))
    return Published(*layout.parse(raw, str(path)), layout.EMBEDDING)


def parse_config(raw: Mapping, where: str = "config") -> tuple[ModuleType, object]:
    """The variant's module and its Config from a published config mapping; what is not built raises."""
    return _layout(raw, where).parse(raw, where)


def _layout(raw, where):
    keys = set(raw) if isinstance(raw, Mapping) else set()
    kind = raw["model_type"] if "model_type" in keys else None
    known = isinstance(kind, str) and kind in hugging_face.MODULES
    # first, because converted checkpoints keep d_model, n_layer and ssm_cfg beside transformers' keys
    if known and "hidden_size" in keys:
        return hugging_face
    if {"d_model", "n_layer", "vocab_size"} <= keys:
        return state_spaces
    if known:
        return hugging_face
    said = "no d_model" if kind is None else f"model_type={kind!r}"
    raise UserError(f"{where}: the config of no model built here ({said}); it needs d_model, n_layer, vocab_size and "
                    f"ssm_cfg (state-spaces), or model_type {' or '.join(hugging_face.MODULES)} (Hugging Face)")


def fill(lm, weights: Mapping[str, torch.Tensor], where: Path, dtype: torch.dtype, device: str,
         embedding: str = state_spaces.EMBEDDING) -> None:
    """Give a model built on the meta device its weights; missing, unexpected and misshapen tensors raise, all named."""
    ours = {_their_name(name, embedding): x for name, x in lm.state_dict().items()}
    theirs = dict(weights)
    head = theirs.pop("lm_head.weight", None) if lm.config.tie_embeddings else None
    missing, unexpected = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    if missing or unexpected:
        raise UserError(f"{where}: tensors do not fit a {lm.config.variant} of {lm.config.n_layer} layers: "
                        f"missing {some(missing)}; unexpected {some(unexpected)}")
    wrong = [f"{name} is {tuple(theirs[name].shape)}, config says {tuple(x.shape)}"
             for name, x in ours.items() if theirs[name].shape != x.shape]
    if wrong:
        raise UserError(f"{where}: {some(wrong)}")
    if head is not None and not torch.equal(head, theirs[_their_name("embedding.weight", embedding)]):
        raise UserError(f"{where}: lm_head.weight differs from the embedding, but the config ties them (tie_embeddings)")
    precise = torch.promote_types(dtype, torch.float32)
    # one tensor at a time, so that a large checkpoint is never held twice
    lm.load_state_dict({n: theirs.pop(_their_name(n, embedding)).to(
        device, precise if _is_precise(lm, n) else dtype, copy=True) for n in lm.state_dict()}, assign=True)


def cast(lm, dtype: torch.dtype, device: str) -> None:
    """Move a model, its matrices in `dtype`; what is exponentiated or normalised stays in at least float32."""
    precise = torch.promote_types(dtype, torch.float32)
    for name, parameter in lm.named_parameters():
        parameter.data = parameter.data.to(device, precise if _is_precise(lm, name) else dtype)


def _is_precise(lm, name: str) -> bool:
    inner = name.split(".", 2)[2] if name.startswith("layers.") else name
    return inner in ("norm_f.weight", *lm.layers[0].float32_parameters)


def _their_name(name: str, embedding: str) -> str:
    if name == "lm_head.weight":
        return name
    parts = name.split(".", 2)
    if parts[0] == "embedding":
        name = f"{embedding}.{parts[1]}"
    elif parts[0] == "layers" and not parts[2].startswith("norm."):
        name = f"layers.{parts[1]}.mixer.{parts[2].replace('gated_norm.', 'norm.')}"
    return f"backbone.{name}"


def save(lm, folder: str | Path) -> None:
    """Write the model in the state-spaces layout, as config.json and model.safetensors, with its tokenizer.json."""
    from safetensors.torch import save_file

    folder, config = Path(folder), published_config(lm.config)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {_their_name(n, state_spaces.EMBEDDING): x.detach().cpu().contiguous()
               for n, x in lm.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if lm.tokenizer is not None:
        lm.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
