"""Random checkpoints in exactly the published state-spaces layout: config.json and pytorch_model.bin.

What the published configs leave out is left out here (d_state, headdim, expand … keep their defaults), the
vocabulary is padded, the tied head is stored as an alias, and Mamba-2's tensors are a mix of fp16 and fp32.
"""
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch

MAMBA1 = {"d_model": 32, "n_layer": 2, "vocab_size": 45, "ssm_cfg": {}, "rms_norm": True,
          "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8}
MAMBA2 = {"d_model": 64, "d_intermediate": 0, "n_layer": 2, "vocab_size": 45, "ssm_cfg": {"layer": "Mamba2"},
          "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True,
          "fused_add_norm": True, "pad_vocab_size_multiple": 16, "tie_embeddings": True}

# by key ending, the longest that fits; the published Mamba-2 files mix the two types
FLOAT32 = {"": torch.float32}
MIXED = {"": torch.float16, "A_log": torch.float32, "D": torch.float32, "dt_bias": torch.float32,
         "norm.weight": torch.float32, "norm_f.weight": torch.float32}


def with_ssm(config: Mapping, **ssm) -> dict:
    """The config with these keys of its ssm_cfg set."""
    return {**config, "ssm_cfg": {**config["ssm_cfg"], **ssm}}


# the variants every model test runs on: as published, with groups, and with each size set otherwise
CONFIGS = {"mamba1": MAMBA1, "mamba1-sizes": with_ssm(MAMBA1, d_state=5, d_conv=3, expand=3, dt_rank=3),
           "mamba2": MAMBA2, "mamba2-groups": with_ssm(MAMBA2, ngroups=2, headdim=16, d_state=8),
           "mamba2-sizes": with_ssm(MAMBA2, d_conv=2, expand=1, headdim=32, d_state=9, dt_limit=[0.01, 0.05])}


def is_mamba2(config: Mapping) -> bool:
    return config["ssm_cfg"].get("layer") == "Mamba2"


def shapes(config: Mapping) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published file, in its order; sizes the config leaves out are the published."""
    d, step = config["d_model"], config["pad_vocab_size_multiple"]
    rows = math.ceil(config["vocab_size"] / step) * step
    mixer = _mixer2(config) if is_mamba2(config) else _mixer1(config)
    named = {"backbone.embedding.weight": (rows, d)}
    for i in range(config["n_layer"]):
        prefix = f"backbone.layers.{i}."
        named |= {f"{prefix}mixer.{key}": shape for key, shape in mixer.items()}
        named[f"{prefix}norm.weight"] = (d,)
    return named | {"backbone.norm_f.weight": (d,), "lm_head.weight": (rows, d)}


def random_checkpoint(folder: Path, config: Mapping, seed: int, *, calm: bool = True,
                      dtypes: Mapping[str, torch.dtype] | None = None) -> dict[str, torch.Tensor]:
    """Write `config` and random tensors for it into `folder`; returns the tensors as written.

    `calm` draws at the scales of a fresh initialisation, where no layer amplifies rounding; otherwise what
    training can leave: decays from none to tens of thousands, wide dt, loud blocks. `dtypes` go by ending.
    """
    dtypes = dtypes or (MIXED if is_mamba2(config) else FLOAT32)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in shapes(config).items():
        ending = max((e for e in dtypes if key.endswith(e)), key=len)
        weights[key] = _drawn(key, shape, config["n_layer"], calm, generator).to(dtypes[ending])
    if config.get("tie_embeddings", True):
        weights["lm_head.weight"] = weights["backbone.embedding.weight"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(weights, folder / "pytorch_model.bin")
    return weights


def _mixer1(config):
    ssm, d = config["ssm_cfg"], config["d_model"]
    E, N, K = ssm.get("expand", 2) * d, ssm.get("d_state", 16), ssm.get("d_conv", 4)
    R = ssm.get("dt_rank", math.ceil(d / 16))
    return {"A_log": (E, N), "D": (E,), "in_proj.weight": (2 * E, d), "conv1d.weight": (E, 1, K),
            "conv1d.bias": (E,), "x_proj.weight": (R + 2 * N, E), "dt_proj.weight": (E, R),
            "dt_proj.bias": (E,), "out_proj.weight": (d, E)}


def _mixer2(config):
    ssm, d = config["ssm_cfg"], config["d_model"]
    E, GN = ssm.get("expand", 2) * d, ssm.get("ngroups", 1) * ssm.get("d_state", 128)
    H, K, conv = E // ssm.get("headdim", 64), ssm.get("d_conv", 4), E + 2 * GN
    return {"dt_bias": (H,), "A_log": (H,), "D": (H,), "in_proj.weight": (2 * E + 2 * GN + H, d),
            "conv1d.weight": (conv, 1, K), "conv1d.bias": (conv,), "norm.weight": (E,),
            "out_proj.weight": (d, E)}


def _drawn(key, shape, layers, calm, generator):
    def uniform(low, high):
        return low + (high - low) * torch.rand(shape, generator=generator)

    normal = torch.randn(shape, generator=generator)
    if key.endswith("A_log"):
        return uniform(1, 16).log() if calm else 4 * normal
    if key.endswith(("dt_bias", "dt_proj.bias")):
        dt = uniform(math.log(1e-3), math.log(1e-1)).exp()
        return dt.expm1().log() if calm else 2 * normal  # the inverse of softplus
    if key.endswith("D"):
        return 1 + 0.3 * normal
    if key.endswith(("norm.weight", "norm_f.weight")):
        return uniform(0.5, 1.5)
    if key.endswith("conv1d.bias"):
        return uniform(-0.3, 0.3)
    if key.endswith(("embedding.weight", "lm_head.weight")):
        return 0.3 * normal
    scale = shape[-1] ** -0.5
    if key.endswith("out_proj.weight") and calm:
        scale /= (2 * layers) ** 0.5
    return scale * normal if calm else 1.5 * scale * normal
