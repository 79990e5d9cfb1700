"""Mamba-1 and Mamba-2 by their papers' recurrences: numpy, float64, one token after another, no batch.

Input is a checkpoint in the state-spaces layout: its config.json, and its tensors by their published names.
L length, D width, E inner, H heads, P head width, N state, G groups, R rank of dt, K kernel, V vocabulary;
C = E + 2GN is what Mamba-2's convolution covers.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

EPS = 1e-5  # of every RMS norm in the published models; no config holds it


class Inner(NamedTuple):
    """A pass: logits, padded vocabulary at -inf, and `values[layer, site]`; embed and final_norm at -1."""

    logits: np.ndarray
    values: dict[tuple[int, str], np.ndarray]


def silu(x):
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(0, x)


def rms_normed(x, weight, groups: int = 1):
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    grouped = grouped / np.sqrt((grouped**2).mean(-1, keepdims=True) + EPS)
    return grouped.reshape(x.shape) * weight


def causal_conv(x_LE, weight_EK, bias_E, before_JE=None):
    """c_t = b + sum_k w[K-1-k] x_{t-k}, each channel alone; before x: the J rows `before_JE`, then zeros."""
    K = weight_EK.shape[1]
    past_JE = np.zeros((0, x_LE.shape[1])) if before_JE is None else before_JE
    seen_LE = np.concatenate([np.zeros((K, x_LE.shape[1])), past_JE, x_LE])
    first = K + len(past_JE)
    return np.stack([bias_E + sum(weight_EK[:, K - 1 - k] * seen_LE[first + t - k] for k in range(K))
                     for t in range(len(x_LE))])


def scan(v_LHP, dt_LH, A_HN, B_LGN, C_LGN, h0_HPN=None, w_LH=None):
    """h_t = exp(dt_t A) h_{t-1} + w_t B_t v_t, y_t = C_t h_t, w = dt unless given: y_LHP, then all writes and states as LHPN."""
    heads, groups = v_LHP.shape[1], B_LGN.shape[1]
    group_of = np.arange(heads) // (heads // groups)
    h = np.zeros((*v_LHP.shape[1:], B_LGN.shape[2])) if h0_HPN is None else h0_HPN
    ys, writes, states = [], [], []
    for v_HP, dt_H, w_H, B_GN, C_GN in zip(v_LHP, dt_LH, dt_LH if w_LH is None else w_LH, B_LGN, C_LGN, strict=True):
        B_HN, C_HN = B_GN[group_of], C_GN[group_of]
        writes.append((w_H[:, None] * v_HP)[:, :, None] * B_HN[:, None, :])
        h = np.exp(dt_H[:, None] * A_HN)[:, None, :] * h + writes[-1]
        ys.append((h * C_HN[:, None, :]).sum(-1))
        states.append(h)
    return np.stack(ys), np.stack(writes), np.stack(states)


def inner(config: Mapping, weights: Mapping, tokens: Sequence[int]) -> Inner:
    """Whichever of the two the config names."""
    return (mamba2 if config["ssm_cfg"].get("layer") == "Mamba2" else mamba1)(config, weights, tokens)


def mamba1(config: Mapping, weights: Mapping, tokens: Sequence[int]) -> Inner:
    """h_t = exp(dt A) h + (dt x) B, y = C h + D x, out = W_o (y silu(z)); the gate z skips the conv."""
    return _forward(config, weights, tokens, _mixer1)


def mamba2(config: Mapping, weights: Mapping, tokens: Sequence[int]) -> Inner:
    """One decay a head; x, B, C share the convolution; out = W_o RMS_group((y + D x) silu(z))."""
    return _forward(config, weights, tokens, _mixer2)


def _forward(config, weights, tokens, mixer) -> Inner:
    weights = {key: np.asarray(value, dtype=np.float64) for key, value in weights.items()}
    embedding_VD = weights["backbone.embedding.weight"]
    h_LD = embedding_VD[list(tokens)]
    values = {(-1, "embed"): h_LD}
    for i in range(config["n_layer"]):
        prefix = f"backbone.layers.{i}."
        normed_LD = rms_normed(h_LD, weights[prefix + "norm.weight"])
        block = mixer(_below(prefix + "mixer.", weights), config["ssm_cfg"], normed_LD)
        block |= {"resid": h_LD, "normed": normed_LD, "resid_out": h_LD + block["out"]}
        values |= {(i, name): value for name, value in block.items()}
        h_LD = block["resid_out"]
    values[-1, "final_norm"] = rms_normed(h_LD, weights["backbone.norm_f.weight"])
    head_VD = embedding_VD if config.get("tie_embeddings", True) else weights["lm_head.weight"]
    logits_LV = values[-1, "final_norm"] @ head_VD.T
    logits_LV[:, config["vocab_size"]:] = -np.inf
    return Inner(logits_LV, values)


def _below(prefix, weights):
    return {key.removeprefix(prefix): weight for key, weight in weights.items() if key.startswith(prefix)}


def _mixer1(w, ssm, normed_LD):
    x_LE, z_LE = np.split(normed_LD @ w["in_proj.weight"].T, 2, axis=1)
    u_LE = silu(causal_conv(x_LE, w["conv1d.weight"][:, 0], w["conv1d.bias"]))
    R, N = w["dt_proj.weight"].shape[1], ssm.get("d_state", 16)
    low_LR, B_LN, C_LN = np.split(u_LE @ w["x_proj.weight"].T, [R, R + N], axis=1)
    dt_LE = softplus(low_LR @ w["dt_proj.weight"].T + w["dt_proj.bias"])
    B_LGN, C_LGN = B_LN[:, None], C_LN[:, None]
    y_LEP, write, state = scan(u_LE[:, :, None], dt_LE, -np.exp(w["A_log"]), B_LGN, C_LGN)
    y_LE = y_LEP[:, :, 0] + w["D"] * u_LE
    gated_LE = y_LE * silu(z_LE)
    return {"in_proj": x_LE, "gate": z_LE, "conv": u_LE, "dt": dt_LE, "B": B_LGN, "C": C_LGN,
            "state": state, "write": write, "scan_out": y_LE, "gated": gated_LE,
            "out": gated_LE @ w["out_proj.weight"].T}


def _mixer2(w, ssm, normed_LD):
    H, E = len(w["A_log"]), w["norm.weight"].size
    G, N = ssm.get("ngroups", 1), ssm.get("d_state", 128)
    z_LE, xBC_LC, raw_LH = np.split(normed_LD @ w["in_proj.weight"].T, [E, 2 * E + 2 * G * N], axis=1)
    conv_LC = silu(causal_conv(xBC_LC, w["conv1d.weight"][:, 0], w["conv1d.bias"]))
    x_LE, B, C = np.split(conv_LC, [E, E + G * N], axis=1)
    x_LHP, B_LGN, C_LGN = x_LE.reshape(-1, H, E // H), B.reshape(-1, G, N), C.reshape(-1, G, N)
    dt_LH = np.clip(softplus(raw_LH + w["dt_bias"]), *ssm.get("dt_limit", (0, np.inf)))
    y_LHP, write, state = scan(x_LHP, dt_LH, -np.exp(w["A_log"])[:, None], B_LGN, C_LGN)
    y_LE = (y_LHP + w["D"][:, None] * x_LHP).reshape(-1, E)
    gated_LE = rms_normed(y_LE * silu(z_LE), w["norm.weight"], groups=G)
    return {"in_proj": xBC_LC, "gate": z_LE, "conv": conv_LC, "dt": dt_LH, "B": B_LGN, "C": C_LGN,
            "state": state, "write": write, "scan_out": y_LE, "gated": gated_LE,
            "out": gated_LE @ w["out_proj.weight"].T}
