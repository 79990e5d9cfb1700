"""Mamba-MoE by its equations, token by token: numpy, float64; and random checkpoints in exactly BlackMamba's layout.

Input is a config.json of BlackMamba and its tensors by their published names. L length, D width, E experts, V vocabulary.
"""
from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from .checkpoints import _drawn
from .knockout import Knock, _made1
from .recurrence import EPS, Inner, _below, _mixer1, rms_normed, silu

PUBLISHED = {"num_layers": 4, "hidden_size": 32, "state_size": 16, "conv_dimension": 4, "vocab_size": 45,
             "expansion_factor": 2, "mamba_moe_layers": ["r", "8", "r", "8"], "ffn_hidden_size": 24, "bias": False,
             "add_bias_linear": False, "swiglu": True, "max_sequence_length": 2048}
CODES = {**PUBLISHED, "num_layers": 6, "mamba_moe_layers": ["r1", "r4", "1", "r", "3", "r2"], "state_size": 5}
MOE_CONFIGS = {"published": PUBLISHED, "codes": CODES,
               "softmax": {**CODES, "routing_mode": "top1", "swiglu": False, "conv_dimension": 3, "expansion_factor": 3}}


def moe_shapes(config: Mapping) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published file, in its order."""
    D = config["hidden_size"]
    named = {"embedding.word_embeddings.weight": (config["vocab_size"], D)}
    for i, code in enumerate(config["mamba_moe_layers"]):
        parts = {"norm.weight": (D,)}
        if code[0] == "r":
            parts |= _under("mixer.", _mamba(config))
        if code[0] == "r" and len(code) > 1:
            parts |= {"norm_moe.weight": (D,)}
        if code != "r":
            parts |= _under("moe." if code[0] == "r" else "mixer.", _fed(config, int(code[-1])))
        named |= _under(f"decoder.layers.{i}.", parts)
    return named | {"decoder.final_layernorm.weight": (D,), "decoder.final_layernorm.bias": (D,)}


def _under(prefix, shapes):
    return {prefix + key: shape for key, shape in shapes.items()}


def _mamba(config):
    D, N, K = config["hidden_size"], config["state_size"], config["conv_dimension"]
    E, R = config["expansion_factor"] * D, math.ceil(D / 16)
    return {"A_log": (E, N), "D": (E,), "in_proj.weight": (2 * E, D), "conv1d.weight": (E, 1, K), "conv1d.bias": (E,),
            "x_proj.weight": (R + 2 * N, E), "dt_proj.weight": (E, R), "dt_proj.bias": (E,), "out_proj.weight": (D, E)}


def _fed(config, experts):
    D, F = config["hidden_size"], config["ffn_hidden_size"]
    one = {"linear_fc1.weight": (2 * F if config["swiglu"] else F, D), "linear_fc2.weight": (D, F)}
    if experts == 1:
        return one
    named = {"router.weight": (experts, D), "router.bias": (experts,)}
    for e in range(experts):
        named |= _under(f"local_experts.{e}.", one)
    return named


LOUD = {"dt_proj.bias": (1, 2), "conv1d.weight": (3, 0), "x_proj.weight": (3, 0), "A_log": (1, -1), "out_proj.weight": (2, 0)}


def moe_checkpoint(folder: Path, config: Mapping, seed: int = 0, *, loud: bool = False) -> dict[str, torch.Tensor]:
    """Write `config` and random tensors for it into `folder`, as published: {"model": tensors}. Returns the tensors.

    In a `loud` one the scan and the conv matter: otherwise a knockout hardly moves the logits.
    """
    generator, weights = torch.Generator().manual_seed(seed), OrderedDict()
    for key, shape in moe_shapes(config).items():
        if key.endswith(("router.bias", "layernorm.bias")):
            weights[key] = 0.5 * torch.randn(shape, generator=generator)
        elif key.endswith("router.weight"):
            weights[key] = torch.randn(shape, generator=generator) / math.sqrt(shape[1] / 10)  # so that every expert is used
        elif key.endswith("layernorm.weight"):
            weights[key] = 0.5 + torch.rand(shape, generator=generator)
        else:
            weights[key] = _drawn(key, shape, config["num_layers"], True, generator)
        factor, shift = next((how for ending, how in LOUD.items() if loud and key.endswith(ending)), (1, 0))
        weights[key] = factor * weights[key] + shift
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({"model": weights}, folder / "pytorch_model.bin")
    return weights


def gelu(x):
    """x Φ(x), by the error function."""
    return x * 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))


def moe(config: Mapping, weights: Mapping, tokens: Sequence[int], *, activation=gelu, knocks: Sequence[Knock] = (),
        sent: Mapping[tuple[int, int], int] | None = None) -> Inner:
    """The pass. `sent[layer, position]` is the expert a token is sent to instead of its own."""
    weights = {key: np.asarray(value, dtype=np.float64) for key, value in weights.items()}
    h_LD = weights["embedding.word_embeddings.weight"][list(tokens)]
    values = {(-1, "embed"): h_LD}
    for i, code in enumerate(config["mamba_moe_layers"]):
        w = _below(f"decoder.layers.{i}.", weights)
        block, out_LD = {"resid": h_LD, "normed": rms_normed(h_LD, w["norm.weight"])}, 0
        if code[0] == "r":
            block |= _mamba_values(config, _below("mixer.", w), block["normed"], [k for k in knocks if i in k.layers])
            out_LD = out_LD + block["out"]
        if code != "r":
            beside = code[0] == "r"
            n_LD = rms_normed(h_LD, w["norm_moe.weight"]) if beside else block["normed"]
            block |= {"normed_moe": n_LD} if beside else {}
            mine = {p: e for (layer, p), e in (sent or {}).items() if layer == i}
            fed, fed_LD = _fed_values(_below("moe." if beside else "mixer.", w), int(code[-1]), n_LD, config, activation, mine)
            block |= fed
            out_LD = out_LD + fed_LD
        block |= {"out": out_LD, "resid_out": h_LD + out_LD}
        values |= {(i, name): value for name, value in block.items()}
        h_LD = block["resid_out"]
    centred_LD = h_LD - h_LD.mean(-1, keepdims=True)
    values[-1, "final_norm"] = (centred_LD / np.sqrt((centred_LD**2).mean(-1, keepdims=True) + EPS)
                                * weights["decoder.final_layernorm.weight"] + weights["decoder.final_layernorm.bias"])
    return Inner(values[-1, "final_norm"] @ weights["embedding.word_embeddings.weight"].T, values)


def _mamba_values(config, w, normed_LD, knocks):
    ssm = {"d_state": config["state_size"]}
    if knocks:
        return {"out": _made1(w, ssm, normed_LD, knocks, {}) @ w["out_proj.weight"].T}
    return _mixer1(w, ssm, normed_LD)


def _fed_values(w, experts, n_LD, config, activation, sent):
    """The sites of an MLP or of experts, and what it adds to the stream."""
    if experts == 1:
        hidden_LF = np.stack([_hidden(w, n_D, config, activation) for n_D in n_LD])
        return {"mlp_hidden": hidden_LF}, hidden_LF @ w["linear_fc2.weight"].T
    rows = []
    for t, n_D in enumerate(n_LD):
        logits_E = w["router.weight"] @ n_D + w["router.bias"]
        p_E = np.exp(logits_E) / np.exp(logits_E).sum() if config.get("routing_mode") == "top1" else 1 / (1 + np.exp(-logits_E))
        e = sent.get(t, int(p_E.argmax()))
        second, first = np.sort(p_E)[-2:]
        expert = _below(f"local_experts.{e}.", w)
        out_D = expert["linear_fc2.weight"] @ _hidden(expert, n_D, config, activation)
        rows.append((logits_E, [e], [first - second], out_D, p_E[e] * out_D))
    *sites, out_LD = (np.stack(column) for column in zip(*rows, strict=True))
    return dict(zip(("router", "choice", "margin", "expert_out"), sites, strict=True)), out_LD


def _hidden(w, n_D, config, activation):
    x = w["linear_fc1.weight"] @ n_D
    if not config["swiglu"]:
        return activation(x)
    a, b = np.split(x, 2)
    return activation(a) * b


def least_margin(inner: Inner) -> float:
    """The nearest any token of the pass came to being sent to another expert."""
    return min((float(x.min()) for (_, name), x in inner.values.items() if name == "margin"), default=math.inf)


__all__ = ["CODES", "MOE_CONFIGS", "PUBLISHED", "gelu", "least_margin", "moe", "moe_checkpoint", "moe_shapes", "silu"]
