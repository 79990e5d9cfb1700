"""The Hugging Face layout's config.json: `model_type` mamba or mamba2, under transformers' names and defaults.

`vocab_size` counts the embedding's rows, padding included. What transformers reads to initialise, to train or to run
faster (`time_step_min`, `initializer_range`, `chunk_size`, `use_cache` …) decides nothing here.
"""
from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from mamba_mi.config import UserError
from mamba_mi.models import mamba1, mamba2, state_spaces
from mamba_mi.models.state_spaces import check_eps, check_flag, check_heads, check_sizes

OURS = {"state_size": "d_state", "conv_kernel": "d_conv", "expand": "expand", "time_step_rank": "dt_rank",
        "head_dim": "headdim", "n_groups": "ngroups", "time_step_limit": "dt_limit"}
# what a config that leaves them out means to transformers; Mamba-2's are Codestral's sizes
DEFAULTS = {
    "mamba": {"hidden_size": 768, "num_hidden_layers": 32, "vocab_size": 50280, "state_size": 16, "conv_kernel": 4,
              "expand": 2, "time_step_rank": "auto"},
    "mamba2": {"hidden_size": 4096, "num_hidden_layers": 64, "vocab_size": 32768, "state_size": 128, "conv_kernel": 4,
               "expand": 2, "num_heads": 128, "head_dim": 64, "n_groups": 8,
               "time_step_limit": (0.0, float("inf"))},
}
TIED = {"mamba": True, "mamba2": False}
MODULES = {"mamba": mamba1, "mamba2": mamba2}
KNOWN_BY = f"model_type {' or '.join(MODULES)} (Hugging Face)"
# the values that are built; residual_in_fp32=false only lowers the precision of a stream that is float32 here
BUILT = {"use_bias": (False,), "use_conv_bias": (True,), "hidden_act": ("silu", "swish"), "rms_norm": (True,),
         "residual_in_fp32": (True, False), "quantization_config": (None,)}


def recognises(raw: Mapping | None, names) -> bool:
    kind = (raw or {}).get("model_type")
    known = isinstance(kind, str) and kind in MODULES
    return known and ("hidden_size" in raw or not state_spaces.recognises(raw, names))


def their_name(name: str, config) -> str:
    """As state-spaces', but for the embedding."""
    return state_spaces.their_name(name, config, "embeddings")


def parse(raw: Mapping, where: str, weights=None) -> tuple[ModuleType, object]:
    """The variant's module and its Config; what is not built raises."""
    kind = raw["model_type"]
    for key, built in BUILT.items():
        if key in raw and raw[key] not in built:
            raise UserError(f"{where}: {key}={raw[key]!r} is not built, only {' or '.join(map(repr, built))}")
    sizes = {key: raw.get(key, default) for key, default in DEFAULTS[kind].items()}
    if "time_step_limit" in sizes:
        sizes["time_step_limit"] = _numbers(sizes["time_step_limit"])
    check_sizes(sizes, where)
    tied, eps = raw.get("tie_word_embeddings", TIED[kind]), raw.get("layer_norm_epsilon", 1e-5)
    check_flag("tie_word_embeddings", tied, where)
    check_eps("layer_norm_epsilon", eps, where)
    _check_widths(raw, sizes, where)
    common = {"d_model": sizes["hidden_size"], "n_layer": sizes["num_hidden_layers"], "vocab_size": sizes["vocab_size"],
              "padded_vocab": sizes["vocab_size"], "tie_embeddings": tied, "eps": float(eps)}
    config = MODULES[kind].Config.of(common, {OURS[key]: sizes[key] for key in sizes if key in OURS})
    check_heads(config, where)
    return MODULES[kind], config


def _check_widths(raw, sizes, where):
    inner = sizes["expand"] * sizes["hidden_size"]
    if raw.get("intermediate_size", inner) != inner:
        raise UserError(f"{where}: intermediate_size={raw['intermediate_size']!r} is not expand * hidden_size = {inner}")
    if "num_heads" in sizes and sizes["num_heads"] * sizes["head_dim"] != inner:
        raise UserError(f"{where}: num_heads={sizes['num_heads']} of head_dim={sizes['head_dim']} do not make "
                        f"expand * hidden_size = {inner}")


def _numbers(limit):
    """transformers 5 writes infinity, which is no JSON, as {"__float__": "Infinity"}."""
    if not isinstance(limit, list):
        return limit
    return [x["__float__"] if isinstance(x, Mapping) and "__float__" in x else x for x in limit]


def unwritable(config) -> str:
    """Why a model is not written in this layout beside its own; empty where it is."""
    if config.variant not in ("mamba1", "mamba2"):
        return f"a {config.variant} is kept in its published layout alone"
    # its gated norm is over the whole width, whatever the groups
    return "transformers norms all groups of a Mamba-2 as one" if getattr(config, "ngroups", 1) > 1 else ""


def published_config(config) -> dict:
    """The config.json in transformers' names, nothing left to its defaults."""
    kind = {"mamba1": "mamba", "mamba2": "mamba2"}[config.variant]
    theirs = {key: getattr(config, ours) for key, ours in OURS.items() if hasattr(config, ours)}
    if kind == "mamba2":
        theirs |= {"num_heads": config.heads, "time_step_limit": [_json_number(x) for x in config.dt_limit], "rms_norm": True,
                   "chunk_size": 256}
    else:
        theirs |= {"intermediate_size": config.d_inner}
    return {"architectures": [f"{kind.capitalize()}ForCausalLM"], "model_type": kind, "hidden_size": config.d_model,
            "num_hidden_layers": config.n_layer, "vocab_size": config.padded_vocab, "layer_norm_epsilon": config.eps, **theirs,
            "hidden_act": "silu", "use_bias": False, "use_conv_bias": True, "residual_in_fp32": True,
            "tie_word_embeddings": config.tie_embeddings, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
            "torch_dtype": "float32"}


def _json_number(x: float):
    return x if x != float("inf") else {"__float__": "Infinity"}
