"""Knockouts as the definition says: every row of M written out, its entries zeroed or its columns rebuilt. numpy, float64.

L length, H heads (Mamba-1: channels), P head width, N state, G groups, K kernel, C channels of the convolution.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np

from .recurrence import _forward, rms_normed, silu, softplus


class Knock(NamedTuple):
    """M[queries, sources] := 0 at these layers, of one prompt: absolute positions."""

    layers: tuple[int, ...]
    queries: frozenset[int]
    sources: frozenset[int]
    conv: str = "scan"
    span: str = "token"
    heads: tuple[int, ...] | None = None
    query_conv: bool = False
    dense: bool = False


def knocks_of(knockouts: Sequence, row: int, length: int) -> list[Knock]:
    """The product's knockouts as they are of one prompt of the batch: positions absolute, a mask's row its own."""
    return [Knock(k.layers, _positions(k.queries, row, length), _positions(k.sources, row, length), k.conv, k.span,
                  k.heads or k.channels, k.query_conv, k.dense) for k in knockouts]


def _positions(asked, row: int, length: int) -> frozenset[int]:
    if hasattr(asked, "nonzero"):
        return frozenset(asked[row % len(asked)].nonzero()[:, 0].tolist())
    if asked == "all":
        return frozenset(range(length))
    return frozenset(p % length for p in ((asked,) if isinstance(asked, int) else asked))


class Made(NamedTuple):
    """What a layer's scan takes in."""

    v_LHP: np.ndarray
    dt_LH: np.ndarray
    B_LGN: np.ndarray
    C_LGN: np.ndarray


def knocked(config: Mapping, weights: Mapping, tokens: Sequence[int], knocks: Sequence[Knock],
            scales: Mapping[tuple[int, str, int], float] | None = None) -> np.ndarray:
    """The logits. `scales[layer, site, position]` multiplies what is there, wherever and however often it is made."""
    layer, scales = count(), scales or {}
    made_by = _made2 if config["ssm_cfg"].get("layer") == "Mamba2" else _made1

    def mixer(w, ssm, normed_LD):
        i = next(layer)
        mine = {(site, p): f for (at, site, p), f in scales.items() if at == i}
        return {"out": made_by(w, ssm, normed_LD, [k for k in knocks if i in k.layers], mine) @ w["out_proj.weight"].T}

    return _forward(config, weights, tokens, mixer).logits


def _made1(w, ssm, normed_LD, knocks, scales):
    R, N = w["dt_proj.weight"].shape[1], ssm.get("d_state", 16)
    a_LC, z_LE = np.split(normed_LD @ w["in_proj.weight"].T, 2, axis=1)
    a_LC = _scaled(a_LC, "in_proj", scales)

    def make(tokens, sides):
        u_LE = _scaled(silu(_conv(w, a_LC, tokens, sides)), "conv", scales)
        low_LR, B_LN, C_LN = np.split(u_LE @ w["x_proj.weight"].T, [R, R + N], axis=1)
        dt_LE = softplus(low_LR @ w["dt_proj.weight"].T + w["dt_proj.bias"])
        return Made(u_LE[:, :, None], _scaled(dt_LE, "dt", scales), _scaled(B_LN[:, None], "B", scales),
                    _scaled(C_LN[:, None], "C", scales))

    return _mixed(make, -np.exp(w["A_log"]), w["D"], knocks, scales, _width(w)) * silu(z_LE)


def _made2(w, ssm, normed_LD, knocks, scales):
    H, E = len(w["A_log"]), w["norm.weight"].size
    G, N = ssm.get("ngroups", 1), ssm.get("d_state", 128)
    z_LE, a_LC, raw_LH = np.split(normed_LD @ w["in_proj.weight"].T, [E, 2 * E + 2 * G * N], axis=1)
    a_LC = _scaled(a_LC, "in_proj", scales)
    dt_LH = _scaled(np.clip(softplus(raw_LH + w["dt_bias"]), *ssm.get("dt_limit", (0, np.inf))), "dt", scales)

    def make(tokens, sides):
        x_LE, B, C = np.split(_scaled(silu(_conv(w, a_LC, tokens, sides)), "conv", scales), [E, E + G * N], axis=1)
        return Made(x_LE.reshape(-1, H, E // H), dt_LH, _scaled(B.reshape(-1, G, N), "B", scales),
                    _scaled(C.reshape(-1, G, N), "C", scales))

    y_LE = _mixed(make, -np.exp(w["A_log"])[:, None], w["D"], knocks, scales, _width(w))
    return rms_normed(y_LE * silu(z_LE), w["norm.weight"], groups=G)


def _conv(w, a_LC, tokens, sides):
    """Tap by tap; a token taken out is read by no tap, one of `sides` by its own slot's alone."""
    K, c_LC = _width(w), np.tile(w["conv1d.bias"], (len(a_LC), 1))
    for t in range(len(a_LC)):
        for s in range(max(0, t - K + 1), t + 1):
            if s not in tokens and (s == t or s not in sides):
                c_LC[t] += w["conv1d.weight"][:, 0, K - 1 - (t - s)] * a_LC[s]
    return c_LC


def _mixed(make, A_HN, D_H, knocks, scales, width):
    """y_t = sum_s M[t, s] v_s + D v_t, head by head and query by query, flattened to L E."""
    clean = make(frozenset(), frozenset())
    L, H, P = clean.v_LHP.shape
    y_LHP = np.zeros((L, H, P))
    for t in range(L):
        for h in (range(H) if any(k.heads for k in knocks) else [slice(None)]):  # all heads at once where all are alike
            acting = [k for k in knocks if t in k.queries and (k.heads is None or h in k.heads)]
            gone = {conv: frozenset().union(*(_wide(k, width) for k in acting if k.conv == conv))
                    for conv in ("scan", "both", "conv")}
            made = make(gone["both"], gone["conv"]) if gone["both"] | gone["conv"] else clean
            own = made if any(k.query_conv for k in acting) else clean
            M_SH = _row(t, clean.dt_LH, A_HN, made, own.C_LGN, scales)
            M_SH[sorted(s for s in gone["scan"] if s <= t)] = 0
            y_HP = (M_SH[:, :, None] * made.v_LHP[:t + 1]).sum(0) + D_H[:, None] * own.v_LHP[t]
            y_LHP[t, h] = y_HP[h]
    return y_LHP.reshape(L, -1)


def _row(t, dt_LH, A_HN, made, C_LGN, scales):
    """M[t, :t+1] of every head: decays by the clean dt, columns from what `made` writes."""
    group_H = np.arange(len(A_HN)) // (len(A_HN) // made.B_LGN.shape[1])
    M_SH = np.empty((t + 1, len(A_HN)))
    for s in range(t + 1):
        decay_HN = np.exp(A_HN * dt_LH[s + 1:t + 1].sum(0)[:, None])
        M_SH[s] = (C_LGN[t, group_H] * decay_HN * made.B_LGN[s, group_H]).sum(1) * made.dt_LH[s]
        M_SH[s] *= scales.get(("write", s), 1)
        for p in range(s, t + 1):
            M_SH[s] *= scales.get(("state", p), 1)
    return M_SH


def _wide(knock, width):
    more = width if knock.span == "token+conv" else 1
    return {s + lag for s in knock.sources for lag in range(more)}


def _width(w):
    return w["conv1d.weight"].shape[2]


def _scaled(x, site, scales):
    factor_L = np.array([scales.get((site, t), 1.0) for t in range(len(x))])
    return x * factor_L.reshape(-1, *[1] * (x.ndim - 1))
