"""The layout DenseGAU-RetNet is published in: a config.json that calls itself a llama, and pytorch_model.bin.

Known by `query_key_dim`. By how much the gates that let in earlier layers are narrowed in the middle stands in no published
config: it is read off the tensors; configs written here say it as `k_select_scale` and `v_select_scale`.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch

from mamba_mi.config import UserError
from mamba_mi.models.state_spaces import check_eps, check_sizes
from mamba_mi.models.weights import Unsaid

SIZES = {"hidden_size": "d_model", "num_hidden_layers": "n_layer", "vocab_size": "vocab_size", "query_key_dim": "query_key_dim",
         "num_attention_heads": "heads", "dense_block_layers": "dense_layers", "v_factor": "v_factor"}
BUILT = {"hidden_act": "silu", "deepnorm": False, "retnorm": False, "tie_word_embeddings": False}
ANGLE, DECAY = "model.retnet_rel_pos.angle", "model.retnet_rel_pos.decay"
KNOWN_BY = "model_type llama with query_key_dim (DenseSSM)"
CLASS = "modeling_dense_gau_retnet.LlamaForCausalLM"


def recognises(raw: Mapping | None, names) -> bool:
    return raw is not None and raw.get("model_type") == "llama" and "query_key_dim" in raw


def parse(raw: Mapping, where: str, weights=None) -> tuple[ModuleType, object]:
    """The module and its Config; what is not built raises."""
    from mamba_mi.models import retnet

    for key, built in BUILT.items():
        if raw.get(key, built) != built:
            raise UserError(f"{where}: {key}={raw[key]!r} is not built, only {built!r}")
    if absent := [key for key in SIZES if key not in raw]:
        raise UserError(f"{where}: a DenseGAU-RetNet needs {', '.join(absent)}, which it does not say")
    longest = raw.get("max_position_embeddings", 2048)
    check_sizes({key: raw[key] for key in SIZES} | {"max_position_embeddings": longest}, where)
    sizes = {ours: raw[key] for key, ours in SIZES.items()}
    _check_splits(sizes, where)
    eps = raw.get("rms_norm_eps", 1e-6)
    check_eps("rms_norm_eps", eps, where)
    scales = {f"{which}_select": _scale(raw, which, sizes["d_model"], where, weights) for which in "kv"}
    return retnet, retnet.Config(**sizes, **scales, padded_vocab=sizes["vocab_size"], eps=float(eps), max_positions=longest)


def _check_splits(sizes, where) -> None:
    heads, keys, values = sizes["heads"], sizes["query_key_dim"], sizes["v_factor"] * sizes["d_model"]
    if keys % (2 * heads) or values % heads:
        raise UserError(f"{where}: {heads} heads do not split query_key_dim={keys} into even widths and "
                        f"v_factor * hidden_size = {values} into equal ones")


def _scale(raw, which: str, width: int, where: str, weights) -> int:
    """By how much the middle of the gate of keys or values is narrower than the stream."""
    if (key := f"{which}_select_scale") in raw:
        check_sizes({key: (scale := raw[key])}, where)
        if width % scale:
            raise UserError(f"{where}: {key}={scale} does not divide hidden_size={width}")
        return scale
    if weights is None:
        raise Unsaid(f"{where}: no {key}; a published config leaves it out, and there are no tensors here to read it off")
    name = f"model.layers.0.self_attn.{which}_select.fc1.weight"
    if name not in (tensors := weights()):
        raise UserError(f"{where}: no {key}, and no tensor {name} to read it off: the checkpoint is not whole, or no "
                        "DenseGAU-RetNet")
    rows = len(tensors[name])
    if not rows or width % rows:
        raise UserError(f"{where}: {name} is {tuple(tensors[name].shape)}, and {rows} rows do not divide hidden_size={width}")
    return width // rows


def their_name(name: str, config) -> str:
    """`layers.0.to_out.weight` is `model.layers.0.self_attn.to_out.0.weight`."""
    outside = {"embedding.weight": "model.embed_tokens.weight", "norm_f.weight": "model.norm.weight",
               "lm_head.weight": "lm_head.weight"}
    if name in outside:
        return outside[name]
    _, layer, inner = name.split(".", 2)
    if inner == "norm.weight":
        return f"model.layers.{layer}.input_layernorm.weight"
    inner = inner.replace("to_hidden.", "to_hidden.0.").replace("to_out.", "to_out.0.")
    return f"model.layers.{layer}.self_attn.{inner}"


def settle(theirs: dict[str, torch.Tensor], config, where: Path) -> None:
    """Take out the angles and decays, which the sizes say: they must be what is computed here."""
    width = config.query_key_dim // config.heads
    gamma_H = 1 - 2.0 ** (-5 - torch.arange(config.heads, dtype=torch.float64))
    angle_I = 10000.0 ** -torch.linspace(0, 1, width // 2, dtype=torch.float64)
    for name, want in ((ANGLE, angle_I.repeat_interleave(2)), (DECAY, gamma_H.log())):
        held = theirs.pop(name, want)
        if held.shape != want.shape or not torch.allclose(held.double(), want, rtol=5e-3, atol=1e-6):
            raise UserError(f"{where}: {name} is not what {config.heads} heads of width {width} have here: the checkpoint rotates "
                            "or forgets in another way, which is not built")


def published_config(config) -> dict:
    """The published keys, with the two that the gates' widths need."""
    sizes = {key: getattr(config, ours) for key, ours in SIZES.items()}
    scales = {"k_select_scale": config.k_select, "v_select_scale": config.v_select}
    return {"auto_map": {"AutoModelForCausalLM": CLASS}, "model_type": "llama", **sizes, **scales, **BUILT,
            "rms_norm_eps": config.eps, "max_position_embeddings": config.max_positions, "dropout": 0.0}
