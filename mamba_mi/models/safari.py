"""safari's format, in which Hyena is published: one flat file of tensors, whose shapes are all its sizes.

What we save has a config.json beside it, under the names of safari's model configs.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from mamba_mi.config import UserError
from mamba_mi.models.state_spaces import check_flag, check_sizes
from mamba_mi.models.weights import some

FIRST = "backbone.layers.0.mixer.filter_fn."
GPT2 = {50264: 50257}  # rows of the embedding that pad the vocabulary to eights: tokens it stands for
SIZES = {"d_model": "d_model", "n_layer": "n_layer", "d_ff": "d_inner", "vocab_size": "vocab_size"}
FILTER = {"max_length": "l_max", "d_conv": "short_filter_order", "emb_dim": "emb_dim", "filter_order": "filter_order"}
BUILT = {"order": 2, "num_inner_mlps": 2, "shift": 0.0, "normalized": False, "bidirectional": False}  # nothing else is
KNOWN_BY = "layer._name_ hyena (safari)"
FREQS = (1, 3, 5)  # one tensor, held three times
OUTER = {"embedding.weight": "backbone.embeddings.word_embeddings.weight", "norm_f.weight": "backbone.ln_f.weight",
         "norm_f.bias": "backbone.ln_f.bias", "lm_head.weight": "lm_head.weight"}
INNER = {"filter_fn.z": "pos_emb.z", "filter_fn.t": "pos_emb.t", "filter_fn.deltas": "modulation.deltas",
         "filter_fn.freq": "implicit_filter.1.freq", "filter_fn.outer.weight": "implicit_filter.6.weight"}


def recognises(raw: Mapping | None, names) -> bool:
    if raw is None:
        return f"{FIRST}bias" in names
    return isinstance(raw.get("layer"), Mapping) and raw["layer"].get("_name_") == "hyena"


def parse(raw: Mapping | None, where: str, weights: Callable[[], Mapping] | None = None) -> tuple[ModuleType, object]:
    """The variant's module and its Config, from the config where there is one, else from the tensors' shapes."""
    module = import_module("mamba_mi.models.hyena")
    sizes, more = _sized(weights(), where) if raw is None else _said(raw, where)
    rows = more.pop("rows")
    return module, module.Config(**sizes, padded_vocab=rows, **more)


def _sized(tensors: Mapping[str, torch.Tensor], where: str) -> tuple[dict, dict]:
    """What the shapes say."""
    wanted = {"embedding": OUTER["embedding.weight"], "ff": "backbone.layers.0.mlp.fc1.weight", "z": f"{FIRST}pos_emb.z",
              "freq": f"{FIRST}implicit_filter.1.freq", "short": "backbone.layers.0.mixer.short_filter.weight"}
    if lacking := sorted(name for name in wanted.values() if name not in tensors):
        raise UserError(f"{where}: missing {some(lacking)}, which say how large this Hyena is")
    shape = {key: tuple(tensors[name].shape) for key, name in wanted.items()}
    if wrong := [wanted[key] for key, rank in {"embedding": 2, "ff": 2, "z": 3, "freq": 2, "short": 3}.items() if len(shape[key]) != rank]:
        raise UserError(f"{where}: {some(wrong)} of shape {tuple(tensors[wrong[0]].shape)} is none of a Hyena's")
    rows, width = shape["embedding"]
    layers = {int(name.split(".")[2]) for name in tensors if name.startswith("backbone.layers.")}
    sizes = {"d_model": width, "n_layer": max(layers) + 1, "vocab_size": GPT2.get(rows, rows), "d_ff": shape["ff"][0],
            "max_length": shape["z"][1], "emb_dim": shape["z"][2], "filter_order": shape["freq"][1],
            "d_conv": shape["short"][2]}
    check_sizes(sizes, where)
    return sizes, {"rows": rows}


def _said(raw: Mapping, where: str) -> tuple[dict, dict]:
    """What a config.json says."""
    layer, sizes = raw["layer"], {}
    for names, of in ((SIZES, raw), (FILTER, layer)):
        if lacking := [theirs for theirs in names.values() if theirs not in of]:
            raise UserError(f"{where}: no {', '.join(lacking)}; a Hyena's config needs {', '.join(SIZES.values())}, and in layer "
                            f"{', '.join(FILTER.values())}")
        sizes |= {ours: of[theirs] for ours, theirs in names.items()}
    for key, value in BUILT.items():
        if layer.get(key, value) != value:
            raise UserError(f"{where}: layer.{key}={layer[key]!r} is not built, only {value!r} as published")
    check_sizes({theirs: of[theirs] for names, of in ((SIZES, raw), (FILTER, layer)) for theirs in names.values()}, where)
    if layer["emb_dim"] < 3 or layer["emb_dim"] % 2 == 0:
        raise UserError(f"{where}: layer.emb_dim={layer['emb_dim']} must be odd and at least 3: the position, and waves in pairs")
    if type(layer.get("w", 14)) not in (int, float):
        raise UserError(f"{where}: layer.w={layer['w']!r} is not a number")
    modulate, multiple = layer.get("modulate", False), raw.get("pad_vocab_size_multiple", 1)
    check_flag("layer.modulate", modulate, where)
    check_sizes({"pad_vocab_size_multiple": multiple}, where)
    return sizes, {"rows": -(-sizes["vocab_size"] // multiple) * multiple, "modulate": modulate,
                   "frequency": float(layer.get("w", 14))}


def their_name(name: str, config) -> str:
    """`layers.0.filter_fn.inner.1.weight` is `backbone.layers.0.mixer.filter_fn.implicit_filter.2.weight`."""
    if name in OUTER:
        return OUTER[name]
    _, layer, inner = name.split(".", 2)
    if inner.startswith(("norm", "fc")):
        return f"backbone.layers.{layer}.{'mlp.' * inner.startswith('fc')}{inner}"
    if inner.startswith("filter_fn.inner."):
        _, _, number, part = inner.split(".")
        inner = f"filter_fn.implicit_filter.{2 * int(number)}.{part}"
    elif inner in INNER:
        inner = f"filter_fn.{INNER[inner]}"
    return f"backbone.layers.{layer}.mixer.{inner}"


def settle(theirs: dict[str, torch.Tensor], config, where: Path) -> None:
    """The sines' frequencies are one tensor, held three times: two go, if all are the same. What we save has one."""
    for i in range(config.n_layer):
        names = [f"backbone.layers.{i}.mixer.filter_fn.implicit_filter.{number}.freq" for number in FREQS]
        held = [theirs[name] for name in names if name in theirs]
        if any(not torch.equal(x, held[0]) for x in held[1:]):
            raise UserError(f"{where}: {', '.join(names)} differ; a Hyena's sines share their frequencies")
        for name in names[1:]:
            theirs.pop(name, None)


def published_config(config) -> dict:
    """The config.json beside a checkpoint of ours."""
    layer = {"_name_": "hyena", "order": 2} | {theirs: getattr(config, ours) for ours, theirs in FILTER.items()}
    rows, tokens = config.padded_vocab, config.vocab_size
    multiple = next(m for m in (16, 8, 1, rows) if -(-tokens // m) * m == rows)
    return {theirs: getattr(config, ours) for ours, theirs in SIZES.items()} | {
        "pad_vocab_size_multiple": multiple, "layer": layer | {"modulate": config.modulate, "w": config.frequency}}
