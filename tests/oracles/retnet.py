"""DenseGAU-RetNet by its equations: numpy, float64, one prompt, one query and one source after another.

`wrong` names one mistake to make, so that a test can show that the right reading is told apart from it. L length, D width,
Q queries' width, E values' width, H heads, V vocabulary.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from .knockout import Knock
from .recurrence import Inner, silu

# as published: nothing says how narrow the gates are; "wide" has other sizes everywhere
RETNET = {"architectures": ["LlamaForCausalLM"],
          "auto_map": {"AutoModelForCausalLM": "modeling_dense_gau_retnet.LlamaForCausalLM",
                       "AutoModelForSequenceClassification": "modeling_dense_gau_retnet.LlamaForSequenceClassification"},
          "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32000, "hidden_act": "silu", "initializer_range": 0.02,
          "hidden_size": 24, "query_key_dim": 16, "num_attention_heads": 2, "num_hidden_layers": 4, "vocab_size": 45,
          "max_position_embeddings": 2048, "model_type": "llama", "rms_norm_eps": 1e-6, "layernorm_eps": 1e-5,
          "retnorm": False, "tie_word_embeddings": False, "torch_dtype": "float32", "use_cache": False, "v_factor": 2,
          "dense_block_layers": 2, "dropout": 0.1, "deepnorm": False, "transformers_version": "4.29.1"}
CONFIGS = {"retnet": RETNET,
           "retnet-sizes": RETNET | {"query_key_dim": 24, "num_attention_heads": 3, "num_hidden_layers": 3, "v_factor": 1,
                                     "dense_block_layers": 3, "rms_norm_eps": 1e-3},
           "retnet-near": RETNET | {"num_hidden_layers": 3, "dense_block_layers": 1, "num_attention_heads": 4}}
SCALES = {"k": 4, "v": 8}  # how much narrower the middle of the gates is


def shapes(config: Mapping) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published file."""
    D, Q, H = config["hidden_size"], config["query_key_dim"], config["num_attention_heads"]
    E = config["v_factor"] * D
    named = {"model.embed_tokens.weight": (config["vocab_size"], D)}
    for i in range(config["num_hidden_layers"]):
        inner = {"q_proj.weight": (Q, D), "k_proj.weight": (Q, D), "group_norm.weight": (E // H,),
                 "to_hidden.0.weight": (2 * E, D), "to_out.0.weight": (D, E),
                 "k_select.fc1.weight": (D // SCALES["k"], D), "k_select.fc2.weight": (Q, D // SCALES["k"]),
                 "v_select.fc1.weight": (D // SCALES["v"], D), "v_select.fc2.weight": (E, D // SCALES["v"]),
                 "k_norm.weight": (Q,), "v_norm.weight": (E,)}
        named |= {f"model.layers.{i}.self_attn.{key}": shape for key, shape in inner.items()}
        named[f"model.layers.{i}.input_layernorm.weight"] = (D,)
    return named | {"model.norm.weight": (D,), "model.retnet_rel_pos.angle": (Q // H,), "model.retnet_rel_pos.decay": (H,),
                    "lm_head.weight": (config["vocab_size"], D)}


def random_checkpoint(folder: Path, config: Mapping, seed: int = 0, loud: float = 1.6) -> dict[str, torch.Tensor]:
    """Write `config` and random tensors for it, as pytorch_model.bin in float32; returns the tensors as written.

    Where `loud`, rows sum to less and to more than 1, and layers amplify rounding; 0.8 is about a fresh model.
    """
    generator, weights = torch.Generator().manual_seed(seed), {}
    for key, shape in shapes(config).items():
        x = torch.randn(shape, generator=generator)
        x = 1 + 0.3 * x if len(shape) == 1 else loud * x * shape[-1] ** -0.5
        weights[key] = 2 * x if "_proj" in key or "_select" in key else x
    H, K = config["num_attention_heads"], config["query_key_dim"] // config["num_attention_heads"]
    weights["model.retnet_rel_pos.angle"] = torch.tensor([10000.0 ** -(i // 2 / (K // 2 - 1)) for i in range(K)])
    weights["model.retnet_rel_pos.decay"] = torch.tensor([np.log(1 - 2.0 ** (-5 - h)) for h in range(H)], dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(weights, folder / "pytorch_model.bin")
    return weights


def rms(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def inner(config: Mapping, weights: Mapping, tokens: Sequence[int], knocks: Sequence[Knock] = (),
          scales: Mapping[tuple[int, str, int], float] | None = None, wrong: str = "") -> Inner:
    """Logits and every site's values. `scales[layer, site, position]` multiplies what is there."""
    weights = {key: np.asarray(value, dtype=np.float64) for key, value in weights.items()}
    values, eps, scales = {}, config["rms_norm_eps"], scales or {}

    def at(layer, site, x):
        factor_L = np.array([scales.get((layer, site, t), 1.0) for t in range(len(x))])
        values[layer, site] = x * factor_L.reshape(-1, *[1] * (x.ndim - 1))
        return values[layer, site]

    h_LD = at(-1, "embed", weights["model.embed_tokens.weight"][list(tokens)])
    made = []  # k and v of every layer so far
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        w = {key.removeprefix(prefix).removeprefix("self_attn."): x for key, x in weights.items() if key.startswith(prefix)}
        h_LD = _layer(config, w, h_LD, made, lambda site, x, i=i: at(i, site, x), [k for k in knocks if i in k.layers], wrong)
    values[-1, "final_norm"] = rms(h_LD, weights["model.norm.weight"], eps)
    return Inner(values[-1, "final_norm"] @ weights["lm_head.weight"].T, values)


def _layer(config, w, h_LD, made, at, knocks, wrong):
    H, Q, eps, m = config["num_attention_heads"], config["query_key_dim"], config["rms_norm_eps"], config["dense_block_layers"]
    h_LD = at("resid", h_LD)
    n_LD = at("normed", rms(h_LD, w["input_layernorm.weight"], eps))
    q_LQ = at("q", silu(n_LD @ w["q_proj.weight"].T))
    scale = 1 if wrong == "unscaled" else (Q if wrong == "scaled by Q" else Q // H) ** -0.5
    k_LQ = at("k", silu(n_LD @ w["k_proj.weight"].T) * scale)
    v_LE, g_LE = np.split(n_LD @ w["to_hidden.0.weight"].T, 2, axis=1)
    v_LE, g_LE = at("v", v_LE if wrong == "v plain" else silu(v_LE)), at("gate", g_LE if wrong == "gate plain" else silu(g_LE))
    dense = {"k": k_LQ, "v": v_LE}
    if made or wrong == "dense at layer 0":
        last = made if wrong == "all layers" else made[-1:] if wrong == "last layer" else made[-m:]
        for x in "kv":
            gate = w[f"{x}_select.fc2.weight"] @ silu(w[f"{x}_select.fc1.weight"] @ n_LD.T)
            gate_LI = at(f"{x}_gate", (gate if wrong == "gate linear" else silu(gate)).T)
            dense[x] = dense[x] + sum((gate_LI * each[x] for each in last), np.zeros_like(dense[x]))
            if wrong != "unnormed":
                dense[x] = rms(dense[x], w[f"{x}_norm.weight"], eps)
    made.append(dict(dense) if wrong == "pass on dense" else {"k": k_LQ, "v": v_LE})
    k_LQ, v_LE = at("k_dense", dense["k"]), at("v_dense", dense["v"])
    gamma_LH = at("decay", np.tile([1 - 2.0 ** (-5 - h) for h in range(H)], (len(h_LD), 1)))
    y_LE = at("retained", _retained(q_LQ, k_LQ, v_LE, gamma_LH, knocks, wrong))
    y_LHV = y_LE.reshape(len(y_LE), H, -1)
    normed_LE = rms(y_LHV, w["group_norm.weight"], eps).reshape(y_LE.shape)
    if wrong == "norm over all":
        normed_LE = rms(y_LE, np.tile(w["group_norm.weight"], H), eps)
    out_LD = at("out", at("gated", normed_LE * g_LE) @ w["to_out.0.weight"].T)
    return at("resid_out", h_LD + out_LD)


def _retained(q_LQ, k_LQ, v_LE, gamma_LH, knocks, wrong):
    """y_t = sum_s M[t, s] v_s, every entry by its definition."""
    H, L = gamma_LH.shape[1], len(q_LQ)
    q_HLK, k_HLK, v_HLV = (x.reshape(L, H, -1).transpose(1, 0, 2) for x in (q_LQ, k_LQ, v_LE))
    y_HLV = np.zeros_like(v_HLV)
    for h in range(H):
        M_LL = mixing(turned(q_HLK[h], wrong), turned(k_HLK[h], wrong), gamma_LH[:, h], wrong)
        for t in range(L):
            row_S = M_LL[t].copy()
            lost = {s for k in knocks if t in k.queries and (k.heads is None or h in k.heads) for s in k.sources}
            if wrong == "knocked before the clamp":
                row_S = scores(turned(q_HLK[h]), turned(k_HLK[h]), gamma_LH[:, h])[t]
            row_S[sorted(lost)] = 0
            if wrong == "knocked before the clamp":
                row_S /= np.clip(np.abs(row_S).sum(), 1, 5e4)
            y_HLV[h, t] = sum(row_S[s] * v_HLV[h, s] for s in range(t + 1))
    return y_HLV.transpose(1, 0, 2).reshape(L, -1)


def mixing(q_LK, k_LK, gamma_L, wrong=""):
    """M of one head."""
    S_LL = scores(q_LK, k_LK, gamma_L, wrong)
    low, high = (0, 5e4) if wrong == "no floor" else (1, 5e4)
    return S_LL if wrong == "unclamped" else S_LL / np.clip(np.abs(S_LL).sum(1, keepdims=True), low, high)


def scores(q_LK, k_LK, gamma_L, wrong=""):
    """S[t, s] = q_t . k_s Π_{s+1..t} gamma / sqrt(sum of these products over s)."""
    L = len(q_LK)
    S_LL = np.zeros((L, L))
    for t in range(L):
        left = [np.prod(gamma_L[s + 1:t + 1]) for s in range(t + 1)]
        total = 1 if wrong == "mask unsummed" else sum(left) if wrong == "mask not rooted" else np.sqrt(sum(left))
        for s in range(t + 1):
            S_LL[t, s] = q_LK[t] @ k_LK[s] * left[s] / total
    return S_LL


def turned(x_LK, wrong=""):
    """Pairs of neighbours as complex numbers, turned by position times angle; the last angle is 1/10000, not the one before."""
    K = x_LK.shape[1]
    angle_I = 10000.0 ** -(np.arange(K // 2) / (K / 2 - (0 if wrong == "rope angles" else 1)))
    if wrong == "halves":
        z = x_LK[:, :K // 2] + 1j * x_LK[:, K // 2:]
    else:
        z = x_LK[:, ::2] + 1j * x_LK[:, 1::2]
    z = z * np.exp(1j * np.arange(len(x_LK))[:, None] * angle_I)
    if wrong == "halves":
        return np.concatenate([z.real, z.imag], axis=1)
    return np.stack([z.real, z.imag], axis=-1).reshape(x_LK.shape)
