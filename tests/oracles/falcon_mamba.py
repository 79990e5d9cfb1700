"""Falcon-Mamba, one token after another in numpy and float64, and random checkpoints in the layout it is published in.

[low B C] = W_x v, each of the three over the root of its mean square; dt = softplus(W_dt low + b); then Mamba-1's scan.
L length, E inner, R rank of dt, N state.
"""
from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from .checkpoints import _drawn
from .knockout import Knock, Made, _conv, _mixed, _scaled, _width
from .recurrence import Inner, _below, scan, silu, softplus

# the published config.json, smaller: it says expand 16 of an inner width of twice the model's, and no mixer_rms_eps
FALCON = {"architectures": ["FalconMambaForCausalLM"], "model_type": "falcon_mamba", "hidden_size": 32, "num_hidden_layers": 3,
          "vocab_size": 45, "expand": 16, "intermediate_size": 64, "state_size": 16, "conv_kernel": 4, "time_step_rank": 8,
          "layer_norm_epsilon": 1e-5, "hidden_act": "silu", "use_bias": False, "use_conv_bias": True, "residual_in_fp32": True,
          "rescale_prenorm_residual": False, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 11,
          "pad_token_id": 11, "torch_dtype": "bfloat16", "transformers_version": "4.43.0.dev0", "use_cache": True}
CONFIGS = {"published": FALCON, "sizes": {**FALCON, "hidden_size": 24, "intermediate_size": 72, "state_size": 5, "conv_kernel": 3,
           "time_step_rank": 3, "layer_norm_epsilon": 1e-3, "mixer_rms_eps": 1e-2, "tie_word_embeddings": True}}
SHARDS = 3


def shapes(config: Mapping) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published files."""
    D, E, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    N, K, R = config["state_size"], config["conv_kernel"], config["time_step_rank"]
    mixer = {"A_log": (E, N), "D": (E,), "in_proj.weight": (2 * E, D), "conv1d.weight": (E, 1, K), "conv1d.bias": (E,),
             "x_proj.weight": (R + 2 * N, E), "dt_proj.weight": (E, R), "dt_proj.bias": (E,), "out_proj.weight": (D, E)}
    named = {"backbone.embeddings.weight": (V, D)}
    for i in range(config["num_hidden_layers"]):
        named |= {f"backbone.layers.{i}.mixer.{key}": shape for key, shape in mixer.items()}
        named[f"backbone.layers.{i}.norm.weight"] = (D,)
    head = {} if config["tie_word_embeddings"] else {"lm_head.weight": (V, D)}
    return named | {"backbone.norm_f.weight": (D,)} | head


def falcon_checkpoint(folder: Path, config: Mapping, seed: int = 0, *, calm: bool = True) -> dict[str, torch.Tensor]:
    """Write `config` and random bfloat16 tensors in shards, with their index, into `folder`; returns the tensors."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for key, shape in shapes(config).items():
        ending = key.replace("embeddings", "embedding")
        weights[key] = _drawn(ending, shape, config["num_hidden_layers"], calm, generator).bfloat16()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names, of = list(weights), {}
    for i in range(SHARDS):
        file = f"model-{i + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = names[i * len(names) // SHARDS:(i + 1) * len(names) // SHARDS]
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        of |= dict.fromkeys(part, file)
    size = sum(2 * math.prod(x.shape) for x in weights.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": of}))
    return weights


def rms(x, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def falcon(config: Mapping, weights: Mapping, tokens: Sequence[int], knocks: Sequence[Knock] = (),
           scales: Mapping[tuple[int, str, int], float] | None = None) -> Inner:
    """Logits and what every site holds. `scales[layer, site, position]` multiplies what is there, wherever it is made;
    with it, or with knocks, the scan is the matrix written out, and `write` and `state` are those without."""
    weights = {key: np.asarray(x.double() if hasattr(x, "double") else x, dtype=np.float64) for key, x in weights.items()}
    embedding_VD, eps = weights["backbone.embeddings.weight"], config["layer_norm_epsilon"]
    h_LD = embedding_VD[list(tokens)]
    values = {(-1, "embed"): h_LD}
    for i in range(config["num_hidden_layers"]):
        w = _below(f"backbone.layers.{i}.", weights)
        block = {"resid": h_LD, "normed": rms(h_LD, eps) * w["norm.weight"]}
        mine = {(site, p): factor for (layer, site, p), factor in (scales or {}).items() if layer == i}
        block |= _mixer(_below("mixer.", w), config, block["normed"], [k for k in knocks if i in k.layers], mine)
        h_LD = h_LD + block["out"]
        values |= {(i, name): value for name, value in {**block, "resid_out": h_LD}.items()}
    values[-1, "final_norm"] = rms(h_LD, eps) * weights["backbone.norm_f.weight"]
    head_VD = embedding_VD if config["tie_word_embeddings"] else weights["lm_head.weight"]
    return Inner(values[-1, "final_norm"] @ head_VD.T, values)


def _mixer(w, config, normed_LD, knocks, scales):
    R, N, eps = w["dt_proj.weight"].shape[1], config["state_size"], config.get("mixer_rms_eps", 1e-6)
    x_LE, z_LE = np.split(normed_LD @ w["in_proj.weight"].T, 2, axis=1)
    x_LE = _scaled(x_LE, "in_proj", scales)

    def made(tokens, sides):
        u_LE = _scaled(silu(_conv(w, x_LE, tokens, sides)), "conv", scales)
        low_LR, B_LN, C_LN = (rms(part, eps) for part in np.split(u_LE @ w["x_proj.weight"].T, [R, R + N], axis=1))
        dt_LE = _scaled(softplus(low_LR @ w["dt_proj.weight"].T + w["dt_proj.bias"]), "dt", scales)
        return Made(u_LE[:, :, None], dt_LE, _scaled(B_LN[:, None], "B", scales), _scaled(C_LN[:, None], "C", scales))

    (u_LEP, dt_LE, B_LGN, C_LGN), A_EN = made(frozenset(), frozenset()), -np.exp(w["A_log"])
    y_LEP, write, state = scan(u_LEP, dt_LE, A_EN, B_LGN, C_LGN)
    y_LE = y_LEP[:, :, 0] + w["D"] * u_LEP[:, :, 0]
    if knocks or scales:
        y_LE = _mixed(made, A_EN, w["D"], knocks, scales, _width(w))
    gated_LE = y_LE * silu(z_LE)
    return {"in_proj": x_LE, "gate": z_LE, "conv": u_LEP[:, :, 0], "dt": dt_LE, "B": B_LGN, "C": C_LGN, "write": write,
            "state": state, "scan_out": y_LE, "gated": gated_LE, "out": gated_LE @ w["out_proj.weight"].T}
