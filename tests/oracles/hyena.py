"""Hyena, one token after another in numpy and float64, and random checkpoints in the format it is published in.

L tokens, D width, C = 3D channels of the short conv, K its width, F width of the MLP, O width of the filter's net.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .knockout import Knock
from .recurrence import Inner


class Sizes(NamedTuple):
    """What a checkpoint's shapes say."""

    D: int = 24
    layers: int = 2
    rows: int = 45
    F: int = 40
    l_max: int = 160
    K: int = 3
    features: int = 7
    O: int = 16


SIZES = {"hyena": Sizes(), "hyena-sizes": Sizes(D=16, layers=3, rows=48, F=24, l_max=140, K=4, features=5, O=8)}


def shapes(size: Sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published file."""
    D, C, O = size.D, 3 * size.D, size.O
    named = {"backbone.embeddings.word_embeddings.weight": (size.rows, D)}
    filter_ = {"bias": (D,), "pos_emb.z": (1, size.l_max, size.features), "pos_emb.t": (1, size.l_max, 1),
               "implicit_filter.0.weight": (O, size.features), "implicit_filter.0.bias": (O,), "implicit_filter.1.freq": (1, O),
               "implicit_filter.2.weight": (O, O), "implicit_filter.2.bias": (O,), "implicit_filter.3.freq": (1, O),
               "implicit_filter.4.weight": (O, O), "implicit_filter.4.bias": (O,), "implicit_filter.5.freq": (1, O),
               "implicit_filter.6.weight": (D, O), "modulation.deltas": (1, 1, D)}
    for i in range(size.layers):
        at = f"backbone.layers.{i}."
        named |= {f"{at}mixer.in_proj.weight": (C, D), f"{at}mixer.in_proj.bias": (C,), f"{at}mixer.out_proj.weight": (D, D),
                  f"{at}mixer.out_proj.bias": (D,), f"{at}mixer.short_filter.weight": (C, 1, size.K),
                  f"{at}mixer.short_filter.bias": (C,)}
        named |= {f"{at}mixer.filter_fn.{key}": shape for key, shape in filter_.items()}
        named |= {f"{at}{norm}.{part}": (D,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        named |= {f"{at}mlp.fc1.weight": (size.F, D), f"{at}mlp.fc1.bias": (size.F,), f"{at}mlp.fc2.weight": (D, size.F),
                  f"{at}mlp.fc2.bias": (D,)}
    return named | {"backbone.ln_f.weight": (D,), "backbone.ln_f.bias": (D,), "lm_head.weight": (size.rows, D)}


def hyena_checkpoint(folder: Path, size: Sizes, seed: int = 0) -> dict[str, torch.Tensor]:
    """One flat .ckpt in float32, nothing beside it; returns the tensors as written."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for key, shape in shapes(size).items():
        x = torch.randn(shape, generator=generator)
        if key.endswith("pos_emb.t"):
            x = torch.linspace(0, 1, size.l_max)[None, :, None]
        elif "norm" in key or "ln_f" in key:
            x = (1.0 if key.endswith("weight") else 0.0) + 0.3 * x
        elif key.endswith("freq"):
            x = 10 + 4 * x
        elif key.endswith(("bias", "deltas", "z")):
            x = 0.5 * x
        else:
            x = x * shape[-1] ** -0.5
        weights[key] = x
    for i in range(size.layers):
        at = f"backbone.layers.{i}.mixer.filter_fn.implicit_filter."
        weights[f"{at}3.freq"] = weights[f"{at}5.freq"] = weights[f"{at}1.freq"]
    weights["lm_head.weight"] = weights["backbone.embeddings.word_embeddings.weight"]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / "hyena_small_150b_tok.ckpt")
    return weights


def hyena(weights: Mapping, tokens: Sequence[int], *, modulate: bool = False, knocks: Sequence[Knock] = ()) -> Inner:
    """Logits and inner values; `knocks` zero entries of M or rebuild its columns from a short conv without the sources."""
    w = {key: np.asarray(x, dtype=np.float64) for key, x in weights.items()}
    E = w["backbone.embeddings.word_embeddings.weight"]
    h = E[list(tokens)]
    values, layers = {(-1, "embed"): h}, 1 + max(int(key.split(".")[2]) for key in w if key.startswith("backbone.layers."))
    for i in range(layers):
        at = f"backbone.layers.{i}."
        mine = {key.removeprefix(at): x for key, x in w.items() if key.startswith(at)}
        block = _block(mine, h, modulate, [k for k in knocks if i in k.layers])
        values |= {(i, name): x for name, x in block.items()}
        h = block["resid_out"]
    values[-1, "final_norm"] = normed(h, w["backbone.ln_f.weight"], w["backbone.ln_f.bias"])
    return Inner(values[-1, "final_norm"] @ E.T, values)


def normed(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def taps(w, length, modulate):
    """k, a lag after another."""
    out = []
    for lag in range(length):
        x = w["mixer.filter_fn.pos_emb.z"][0, lag]
        for number in (0, 2, 4):
            at = f"mixer.filter_fn.implicit_filter.{number}."
            x = np.sin(w["mixer.filter_fn.implicit_filter.1.freq"][0] * (w[at + "weight"] @ x + w[at + "bias"]))
        k = w["mixer.filter_fn.implicit_filter.6.weight"] @ x
        if modulate:
            k = k * np.exp(-w["mixer.filter_fn.pos_emb.t"][0, lag, 0] * np.abs(w["mixer.filter_fn.modulation.deltas"][0, 0]))
        out.append(k)
    return np.array(out)


def _short(w, u, tokens=frozenset(), sides=frozenset()):
    """Tap by tap; a token taken out is read by no tap, one of `sides` by its own slot's alone."""
    weight = w["mixer.short_filter.weight"][:, 0]
    K, out = weight.shape[1], np.tile(w["mixer.short_filter.bias"], (len(u), 1))
    for t in range(len(u)):
        for s in range(max(0, t - K + 1), t + 1):
            if s not in tokens and (s == t or s not in sides):
                out[t] += weight[:, K - 1 - (t - s)] * u[s]
    return out


def _block(w, h, modulate, knocks):
    n = normed(h, w["norm1.weight"], w["norm1.bias"])
    u = n @ w["mixer.in_proj.weight"].T + w["mixer.in_proj.bias"]
    k, K = taps(w, len(h), modulate), w["mixer.short_filter.weight"].shape[2]
    conv = _short(w, u)
    x0, x1, v = np.split(conv, 3, axis=1)
    y, gate = np.zeros_like(x0), x0.copy()
    for t in range(len(h)):
        for d in range(x0.shape[1]) if any(k_.heads for k_ in knocks) else [slice(None)]:
            acting = [k_ for k_ in knocks if t in k_.queries and (k_.heads is None or d in k_.heads)]
            gone = {name: frozenset().union(*({s + lag for s in k_.sources for lag in range(K if k_.span == "token+conv" else 1)}
                                              for k_ in acting if k_.conv == name)) for name in ("scan", "both", "conv")}
            made = np.split(_short(w, u, gone["both"], gone["conv"]), 3, axis=1) if gone["both"] | gone["conv"] else (x0, x1, v)
            own = any(k_.query_conv for k_ in acting)
            skip = made[1] * made[2] if own else x1 * v
            row = sum((k[t - s] * made[1][s] * made[2][s] for s in range(t + 1) if s not in gone["scan"]), np.zeros(x0.shape[1]))
            y[t, d] = (row + w["mixer.filter_fn.bias"] * skip[t])[d]
            if own:
                gate[t, d] = made[0][t, d]
    gated = y * gate
    out = gated @ w["mixer.out_proj.weight"].T + w["mixer.out_proj.bias"]
    mid = h + out
    n2 = normed(mid, w["norm2.weight"], w["norm2.bias"])
    hidden = gelu(n2 @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"])
    mlp = hidden @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
    return {"resid": h, "normed": n, "in_proj": u, "conv": conv, "x0": x0, "x1": x1, "v": v, "x1v": x1 * v, "filter": k,
            "long_conv": y, "gated": gated, "out": out, "resid_mid": mid, "mlp_normed": n2, "mlp_hidden": hidden, "mlp_out": mlp,
            "resid_out": mid + mlp}
