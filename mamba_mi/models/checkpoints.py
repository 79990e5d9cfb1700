"""Published checkpoints to our models and back, strictly: every tensor is accounted for, every shape checked.

A layout is a module that says how a format is known and what its names mean:
    KNOWN_BY                               in words, by what its config.json is known
    recognises(raw, names) -> bool         by its config.json, or its tensors' names where it has none (raw is None)
    parse(raw, where, weights) -> module, Config; `weights()` say what no config does, None where they are not there
    their_name(name, config) -> str        what a tensor of ours is called there
    settle(theirs, config, where)          optional: take out of `theirs` what is known and held twice, or raise
    published_config(config) -> dict       the config.json to write
state-spaces' and Hugging Face's serve Mamba-1 and Mamba-2; other variants bring their own. One file may mix types.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from mamba_mi.config import UserError
from mamba_mi.models import hugging_face, state_spaces, variants
from mamba_mi.models.weights import (
    WEIGHTS,
    WHOLE,
    check_finite,
    fingerprint,
    parts,
    read_weights,
    some,
    weights_file,
)

__all__ = ["WEIGHTS", "Published", "cast", "fill", "fingerprint", "parse_config", "parts", "published_config",
           "read_config", "read_weights", "save", "weights_file"]


AGAIN = "download it again, from where the weights came"


class Published(NamedTuple):
    """What a checkpoint says of itself: the variant's module, its Config, and the layout it is in."""

    module: ModuleType
    config: object
    layout: ModuleType


def read_config(folder: Path, weights: Callable[[], Mapping] | None = None, options: Mapping | None = None,
                meant: variants.Meant | None = None) -> Published:
    """What the folder's config.json, or for a format without one its tensors (`weights()`), say; `options` as the user says.
    Another variant than the one that is `meant` raises."""
    path, raw = folder / "config.json", None
    if path.is_file():
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as e:
            raise UserError(f"{path}: not valid JSON ({e}); {AGAIN}") from None
        if not isinstance(raw, Mapping):
            raise UserError(f'{path}: not an object {{"name": value, …}}; {AGAIN}')
    elif weights is None:
        raise UserError(f"{folder}: no config.json; a checkpoint is a folder with config.json and {' or '.join(WHOLE)}")
    where = str(path if raw is not None else folder)
    layout = _layout(raw, where, weights)
    module, config = layout.parse(raw, where, weights)
    if meant and meant.variant != config.variant:
        raise UserError(_mixed_up(meant, config.variant))
    variants.check_options(config.variant, options or {})
    said = {name: value for name, value in (options or {}).items() if value is not None}
    return Published(module, replace(config, **said), layout)


def _mixed_up(meant: variants.Meant, found: str) -> str:
    if meant.source == f"model={meant.name}":
        return f"{meant.source} is a {found}, not model.variant={meant.variant}: leave model.variant out"
    known = {name: read_config(folder).config.variant for name, folder in (variants.embedded() | variants.recipes()).items()}
    known |= dict.fromkeys(variants.modules()[found].PUBLISHED, found)
    return (f"{meant.source} holds a {found}, but model={meant.name} is a {meant.variant}: give a model= of that family "
            f"({', '.join(name for name in known if known[name] == found)})")


def parse_config(raw: Mapping, where: str = "config") -> tuple[ModuleType, object]:
    """The variant's module and its Config from a published config mapping; what is not built raises."""
    return _layout(raw, where, None).parse(raw, where, None)


def _layouts() -> list[ModuleType]:
    own = [module for module in variants.modules().values() if hasattr(module, "recognises")]
    # Hugging Face's first, because converted checkpoints keep d_model, n_layer and ssm_cfg beside transformers' keys
    return [*own, hugging_face, state_spaces]


def _layout(raw, where, weights) -> ModuleType:
    names = set(weights() if raw is None else ())
    for layout in _layouts():
        if layout.recognises(raw, names):
            return layout
    if raw is None:
        raise UserError(f"{where}: no config.json, and its tensors alone do not say what they are ({some(sorted(names), 2)}); "
                        "download config.json too, from where they came")
    kind = raw.get("model_type")
    said = "no d_model" if kind is None else f"model_type={kind!r}"
    layouts = "; ".join(dict.fromkeys(layout.KNOWN_BY for layout in reversed(_layouts())))
    raise UserError(f"{where}: the config of no model built here ({said}); there are {layouts}")


def published_config(config) -> dict:
    """The config.json that this model is saved with."""
    return _writer(config).published_config(config)


def _writer(config) -> ModuleType:
    module = variants.modules()[config.variant]
    return module if hasattr(module, "published_config") else state_spaces


def fill(lm, weights: Mapping[str, torch.Tensor], where: Path, dtype: torch.dtype, device: str,
         layout: ModuleType = state_spaces) -> None:
    """Give a model built on the meta device its weights; missing, unexpected and misshapen tensors raise, all named."""
    check_finite(weights, where)
    their_name = {name: layout.their_name(name, lm.config) for name in lm.state_dict()}
    ours = {their_name[name]: x for name, x in lm.state_dict().items()}
    theirs = dict(weights)
    if hasattr(layout, "settle"):
        layout.settle(theirs, lm.config, where)
    head = theirs.pop("lm_head.weight", None) if lm.config.tie_embeddings else None
    missing, unexpected = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    if missing or unexpected:
        raise UserError(f"{where}: tensors do not fit a {lm.config.variant} of {lm.config.n_layer} layers: "
                        f"missing {some(missing)}; unexpected {some(unexpected)}")
    says = "config says" if (where.parent / "config.json").is_file() else "the other tensors say"
    wrong = [f"{name} is {tuple(theirs[name].shape)}, {says} {tuple(x.shape)}"
             for name, x in ours.items() if theirs[name].shape != x.shape]
    if wrong:
        raise UserError(f"{where}: {some(wrong)}")
    if head is not None and not torch.equal(head, theirs[their_name["embedding.weight"]]):
        raise UserError(f"{where}: lm_head.weight differs from the embedding, but the config ties them (tie_embeddings)")
    precise = torch.promote_types(dtype, torch.float32)
    # one tensor at a time, so that a large checkpoint is never held twice
    lm.load_state_dict({n: theirs.pop(their_name[n]).to(
        device, precise if _is_precise(lm, n) else dtype, copy=True) for n in lm.state_dict()}, assign=True)


def cast(lm, dtype: torch.dtype, device: str) -> None:
    """Move a model, its matrices in `dtype`; what is exponentiated or normalised stays in at least float32."""
    precise = torch.promote_types(dtype, torch.float32)
    for name, parameter in lm.named_parameters():
        parameter.data = parameter.data.to(device, precise if _is_precise(lm, name) else dtype)


def _is_precise(lm, name: str) -> bool:
    if not name.startswith("layers."):
        return name.startswith("norm_f.")
    _, layer, inner = name.split(".", 2)
    return inner in lm.layers[int(layer)].float32_parameters


def written(lm, layout: ModuleType | None = None) -> tuple[dict, dict[str, torch.Tensor]]:
    """The config.json and the tensors of the model in its published layout (Mamba: state-spaces'), or in `layout`."""
    layout = layout or _writer(lm.config)
    return layout.published_config(lm.config), {
        layout.their_name(n, lm.config): x.detach().cpu().contiguous() for n, x in lm.state_dict().items()}


def save(lm, folder: str | Path, layout: ModuleType | None = None, **said) -> None:
    """Write the model in its published layout, or in `layout`, as config.json and model.safetensors, with its tokenizer.json.
    What is `said` is in config.json, too."""
    from safetensors.torch import save_file

    folder, (config, weights) = Path(folder), written(lm, layout)
    folder.mkdir(parents=True, exist_ok=True)
    # transformers reads no file that does not say whose tensors these are
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | said, indent=1) + "\n")
    if lm.tokenizer is not None:
        lm.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
