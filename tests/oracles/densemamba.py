"""DenseMamba by its definition: every state of every layer made, token after token; numpy, float64. And its checkpoints.

fused_t^l = h_t^l + sum_i gate_i(n_t) * (P_i h_t^(l-i)),  y_t = C_t fused_t + D v_t,  gate = silu(W2 silu(W1 n)).
L length, D width, E inner, N state.
"""
from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from .checkpoints import MAMBA1, _drawn, shapes, with_ssm
from .knockout import Knock, Made, _conv, _scaled, _wide, _width
from .recurrence import Inner, _forward, silu, softplus

DENSE = with_ssm({**MAMBA1, "n_layer": 4}, layer="DenseMamba1")
CONFIGS = {"plain": DENSE, "sizes": with_ssm(DENSE, d_state=5, d_conv=3, expand=3, dt_rank=3, dense_layers=3, dense_rank=5),
           "one": with_ssm(DENSE, d_state=4, dense_layers=1)}


def random_checkpoint(folder: Path, config: Mapping, seed: int, *, calm: bool = True) -> dict[str, torch.Tensor]:
    """Write `config` and random tensors for it as config.json and model.safetensors; returns the tensors."""
    generator = torch.Generator().manual_seed(seed)
    named = shapes(config) | _routes(config)
    if config.get("tie_embeddings", True):
        del named["lm_head.weight"]
    weights = {key: _drawn(key, shape, config["n_layer"], calm, generator) for key, shape in named.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return weights


def _routes(config) -> dict[str, tuple[int, ...]]:
    ssm, D = config["ssm_cfg"], config["d_model"]
    E, N, R = ssm.get("expand", 2) * D, ssm.get("d_state", 16), ssm.get("dense_rank", math.ceil(D / 16))
    return {f"backbone.layers.{layer}.mixer.dense.{i}.{name}.weight": shape
            for layer in range(config["n_layer"]) for i in range(min(layer, ssm.get("dense_layers", 2)))
            for name, shape in (("fc1", (R, D)), ("fc2", (E, R)), ("proj", (N, N)))}


def run(config: Mapping, weights: Mapping, tokens: Sequence[int], knocks: Sequence[Knock] = (),
        scales: Mapping[tuple[int, str, int], float] | None = None) -> Inner:
    """Logits and what every site holds. `scales[layer, site, position]` multiplies what is there, wherever it is made."""
    layer, before, scales = count(), [], scales or {}

    def mixer(w, ssm, normed_LD):
        i = next(layer)
        mine = {(site, p): f for (at, site, p), f in scales.items() if at == i}
        made = _Layer(w, ssm, normed_LD, mine, before[::-1][:ssm.get("dense_layers", 2)])
        before.append(made)
        return made.values([k for k in knocks if i in k.layers])

    return _forward(config, weights, tokens, mixer)


class _Layer:
    """One layer over a prompt; `earlier` are the layers its routes read, the latest first."""

    def __init__(self, w, ssm, n_LD, scales, earlier):
        self.w, self.scales, self.earlier, self.A_EN = w, scales, earlier, -np.exp(w["A_log"])
        self.N, self.R = ssm.get("d_state", 16), w["dt_proj.weight"].shape[1]
        u_LE, z_LE = np.split(n_LD @ w["in_proj.weight"].T, 2, axis=1)
        self.u_LE, self.z_LE = _scaled(u_LE, "in_proj", scales), z_LE
        self.gates = [_scaled(silu(silu(n_LD @ w[f"dense.{i}.fc1.weight"].T) @ w[f"dense.{i}.fc2.weight"].T),
                              f"dense_gate_{i + 1}", scales) for i in range(len(earlier))]
        self.clean, self.C_LN = self.made(frozenset(), frozenset())

    def made(self, tokens, sides):
        """v, dt, B and C with tokens taken out of the conv."""
        w = self.w
        v_LE = _scaled(silu(_conv(w, self.u_LE, tokens, sides)), "conv", self.scales)
        low_LR, B_LN, C_LN = np.split(v_LE @ w["x_proj.weight"].T, [self.R, self.R + self.N], axis=1)
        dt_LE = _scaled(softplus(low_LR @ w["dt_proj.weight"].T + w["dt_proj.bias"]), "dt", self.scales)
        return Made(v_LE, dt_LE, _scaled(B_LN, "B", self.scales), None), _scaled(C_LN, "C", self.scales)

    def state(self, t, gone=frozenset(), made=None, keep=None):
        """h_t in a world where the slots `gone` wrote nothing; what decays is the clean dt."""
        made, h_EN = made or self.clean, np.zeros_like(self.A_EN)
        for s in range(t + 1):
            write_EN = (made.dt_LH[s] * made.v_LHP[s])[:, None] * made.B_LGN[s] * self.scales.get(("write", s), 1)
            h_EN = np.exp(self.clean.dt_LH[s][:, None] * self.A_EN) * h_EN + (s not in gone) * write_EN
            h_EN = h_EN * self.scales.get(("state", s), 1)
            if keep is not None:
                keep.append((write_EN, h_EN))
        return h_EN

    def far_state(self, t, gone):
        """h_t as later layers read it without the slots `gone`: what an edit made of a state counts as written at its slot."""
        seen, h_EN, before_EN = [], np.zeros_like(self.A_EN), np.zeros_like(self.A_EN)
        self.state(t, keep=seen)
        for s, (_, after_EN) in enumerate(seen):
            decay_EN = np.exp(self.clean.dt_LH[s][:, None] * self.A_EN)
            h_EN = decay_EN * h_EN + (s not in gone) * (after_EN - decay_EN * before_EN)
            before_EN = after_EN
        return h_EN

    def read(self, t, gone=frozenset(), made=None, C_LN=None, v_LE=None, far=frozenset()):
        """y_t, the fused state and what the routes add; `far` slots are gone from the earlier layers too."""
        C_LN, v_LE = self.C_LN if C_LN is None else C_LN, self.clean.v_LHP if v_LE is None else v_LE
        routes_EN = sum((g_LE[t][:, None] * ((layer.far_state(t, far) if far else layer.state(t)) @ self.w[f"dense.{i}.proj.weight"].T)
                         for i, (g_LE, layer) in enumerate(zip(self.gates, self.earlier, strict=True))), 0 * self.A_EN)
        fused_EN = (self.state(t, gone, made) + routes_EN) * self.scales.get(("fused", t), 1)
        dense_E, more = routes_EN @ C_LN[t], self.scales.get(("dense", t), 1) - 1
        return fused_EN @ C_LN[t] + self.w["D"] * v_LE[t] + more * dense_E, fused_EN, (1 + more) * dense_E

    def values(self, knocks):
        """What every site holds; knocked queries read what is left for them."""
        length, seen = len(self.u_LE), []
        self.state(length - 1, keep=seen)
        y_LE, fused, dense_LE = (np.stack(x) for x in zip(*(self.read(t) for t in range(length)), strict=True))
        for t in range(length):
            for e in (range(len(self.A_EN)) if any(k.heads for k in knocks) else [slice(None)]):
                acting = [k for k in knocks if t in k.queries and (k.heads is None or e in k.heads)]
                if acting:
                    y_LE[t, e] = self.knocked(t, acting)[e]
        gated_LE = y_LE * silu(self.z_LE)
        out = {"in_proj": self.u_LE, "gate": self.z_LE, "conv": self.clean.v_LHP, "dt": self.clean.dt_LH,
               "B": self.clean.B_LGN[:, None], "C": self.C_LN[:, None], "scan_out": y_LE, "gated": gated_LE,
               "write": np.stack([w for w, _ in seen])[:, :, None], "state": np.stack([h for _, h in seen])[:, :, None],
               "out": gated_LE @ self.w["out_proj.weight"].T}
        if self.earlier:
            out |= {"fused": fused[:, :, None], "dense": dense_LE}
            out |= {f"dense_gate_{i + 1}": g_LE for i, g_LE in enumerate(self.gates)}
        return out

    def knocked(self, t, acting):
        width = _width(self.w)
        gone = {conv: frozenset().union(*(_wide(k, width) for k in acting if k.conv == conv)) for conv in ("scan", "both", "conv")}
        made, C_LN = self.made(gone["both"], gone["conv"] - gone["both"])
        own = (C_LN, made.v_LHP) if any(k.query_conv for k in acting) else (None, None)
        far = frozenset().union(*(_wide(k, width) for k in acting if k.dense))
        return self.read(t, gone["scan"], made, *own, far)[0]
