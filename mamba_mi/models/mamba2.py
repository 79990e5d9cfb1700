"""Mamba-2: one decay a head, B and C shared within a group, and a gated norm (Dao & Gu 2024).

Shape legend: B batch, L length, D width, E inner, H heads, P head width, N state, G groups, K conv width.
Sites of a block, in order: resid normed in_proj gate conv dt B C write state scan_out gated out resid_out.
`in_proj` and `conv` carry x, B and C together, as the conv does; dt does not pass through it.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mamba_mi.models.knocking import Selected
from mamba_mi.models.mixer import Mixer, RMSNorm, State, kaiming, softplus_inverse
from mamba_mi.models.variants import Card, Published
from mamba_mi.models.whole import in_one_call
from mamba_mi.trace import BLIND


@dataclass(frozen=True)
class Config:
    """Sizes under their published names; `vocab_size` is unpadded, `padded_vocab` counts the embedding's rows."""

    d_model: int
    n_layer: int
    vocab_size: int
    padded_vocab: int
    d_state: int = 128
    d_conv: int = 4
    expand: int = 2
    headdim: int = 64
    ngroups: int = 1
    dt_limit: tuple[float, float] = (0.0, math.inf)
    tie_embeddings: bool = True
    eps: float = 1e-5
    variant: str = "mamba2"
    max_length = None  # no position is too late for a recurrence

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def heads(self) -> int:
        return self.d_inner // self.headdim

    @property
    def mixes_by(self) -> tuple[str, int]:
        """What a mixing matrix is had for, and how many there are: the channels of a head share theirs."""
        return "heads", self.heads

    def floats(self, length: int, watched: bool) -> int:
        """Numbers a token of a pass takes within a layer: projections, conv, gate, norm and their temporaries, the scan;
        `watched` where every write is held."""
        mixing = self.heads * min(length, 64) + (self.d_inner * self.d_state // length if length > 64 else 0)  # of some rows
        return 9 * self.d_inner + 3 * self.d_model + mixing + (6 * self.d_inner * self.d_state if watched else 0)

    @classmethod
    def of(cls, common: Mapping, ssm: Mapping) -> Config:
        """From a published config: the `common` sizes and what `ssm_cfg` overrides."""
        limit = tuple(float(x) for x in ssm.get("dt_limit", (0.0, math.inf)))
        return cls(**common, **{k: v for k, v in ssm.items() if k not in ("dt_limit", "chunk_size")}, dt_limit=limit)


CARD = Card("Mamba-2, state space duality (Dao & Gu 2024)", "Apache-2.0 (-hf: MIT)",
            "state-spaces' or Hugging Face's: config.json, pytorch_model.bin or model.safetensors",
            "transformers' Mamba2ForCausalLM; a token-by-token recurrence in numpy")
PUBLISHED = {name: Published(f"state-spaces/{name}", size) for name, size in {
    "mamba2-130m": 128_989_632, "mamba2-370m": 368_346_624, "mamba2-780m": 780_161_280, "mamba2-1.3b": 1_343_757_312,
    "mamba2-2.7b": 2_702_599_680}.items()}
SSM_KEYS = {"d_state", "d_conv", "expand", "headdim", "ngroups", "dt_limit", "chunk_size"}


class Block(Mixer):
    """One layer: RMSNorm, the state space dual, the gated norm, and the residual connection."""

    def __init__(self, config: Config, layer: int, backend):
        super().__init__(config, layer, backend)
        D, E, H, GN = config.d_model, config.d_inner, config.heads, config.ngroups * config.d_state
        self.norm = RMSNorm(D, config.eps)
        self.in_proj = nn.Linear(D, 2 * E + 2 * GN + H, bias=False)
        self.conv1d = nn.Conv1d(E + 2 * GN, E + 2 * GN, config.d_conv, groups=E + 2 * GN)
        self.dt_bias = nn.Parameter(torch.empty(H))
        self.A_log = nn.Parameter(torch.empty(H))
        self.D = nn.Parameter(torch.empty(H))
        # per group: normalising the whole width is off by 1.8 logits
        self.gated_norm = RMSNorm(E, config.eps, groups=config.ngroups)
        self.out_proj = nn.Linear(E, D, bias=False)

    BY_HEAD = ("gate", "dt", "write", "state", "scan_out", "gated")
    float32_parameters = ("A_log", "D", "dt_bias", "norm.weight", "gated_norm.weight")
    WHOLE = ("dt_bias", "A_log", "D", "norm.weight", "in_proj.weight", "conv1d.weight", "conv1d.bias", "gated_norm.weight", "out_proj.weight")

    def forward(self, resid_BLD: Tensor, trace=BLIND, past: State | None = None, keep: bool = True):
        """The residual stream after this layer, and the state to go on from (None unless `keep`)."""
        at, config = self.sites(trace), self.config
        E, H, GN = config.d_inner, config.heads, config.ngroups * config.d_state
        resid_BLD = at("resid", resid_BLD)  # an edit here reaches the skip connection too
        n_BLD = at("normed", self.norm(resid_BLD, self.backend).to(self.in_proj.weight.dtype))
        all_BLW = self.in_proj(n_BLD)
        if (found := self.whole(all_BLW, trace, past, keep)) is not None:
            gated_BLE, tail, h = found
            return resid_BLD + self.out_proj(gated_BLE), State(tail, h) if keep else None
        z_BLE, xBC_BLC, dt_BLH = all_BLW.split([E, E + 2 * GN, H], dim=-1)
        xBC_BLC, z_BLE = at("in_proj", xBC_BLC), at("gate", z_BLE)
        conv_BLC, tail = self.convolve(xBC_BLC, past, keep=keep)
        conv_BLC = at("conv", conv_BLC)
        dt_BLH = self.backend.softplus(dt_BLH, self.dt_bias)
        dt_BLH = at("dt", dt_BLH.clamp(*config.dt_limit) if config.dt_limit != (0.0, math.inf) else dt_BLH)
        selected = self.select(at, conv_BLC, dt_BLH)
        y_BLHP, h = self.mix(trace, xBC_BLC, selected, -self.A_log.exp()[:, None], past, keep)
        y_BLE = at("scan_out", y_BLHP.flatten(2))
        gated_BLE = self.gated_norm(y_BLE, self.backend, z_BLE)  # gate before norm
        out_BLD = at("out", self.out_proj(at("gated", gated_BLE)))
        return at("resid_out", resid_BLD + out_BLD), State(tail, h) if keep else None

    def whole(self, all_BLW: Tensor, trace, past: State | None, keep: bool) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
        """What goes into the last projection, and what a State holds, in one call of the backend's; None where there is none
        for this layer."""
        if not in_one_call(self, Block, "whole_mamba2", all_BLW, trace, past):
            return None
        return self.backend.whole_mamba2(all_BLW, self.conv1d.weight[:, 0], self.conv1d.bias, self.dt_bias, -self.A_log.exp(), self.D,
                                         self.gated_norm.weight, self.gated_norm.eps, groups=self.gated_norm.groups,
                                         dt_limit=self.config.dt_limit, keep=keep)

    def select(self, at, conv_BLC: Tensor, dt_BLH: Tensor) -> Selected:
        """The scan's input, B and C, all made of the conv's output; dt did not pass through it."""
        E, G, GN = self.config.d_inner, self.config.ngroups, self.config.ngroups * self.config.d_state
        v_BLE, B_BLC, C_BLC = conv_BLC.split([E, GN, GN], dim=-1)
        B_BLGN, C_BLGN = at("B", B_BLC.unflatten(-1, (G, -1))), at("C", C_BLC.unflatten(-1, (G, -1)))
        return Selected(v_BLE.unflatten(-1, (self.config.heads, -1)), dt_BLH, B_BLGN, C_BLGN)

    @torch.no_grad()
    def initialise(self, generator) -> None:
        """The published initialisation: A uniform in [1, 16], dt log-uniform in [1e-3, 1e-1], out_proj over √n_layer."""
        self.A_log.copy_(torch.empty_like(self.A_log).uniform_(1, 16, generator=generator).log())
        self.dt_bias.copy_(softplus_inverse(torch.empty_like(self.dt_bias), generator))
        for weight in (self.D, self.norm.weight, self.gated_norm.weight):
            weight.fill_(1.0)
        for linear in (self.in_proj, self.out_proj):
            kaiming(linear.weight, generator)
        kaiming(self.conv1d.weight, generator, self.conv1d.bias)
        self.out_proj.weight /= math.sqrt(self.config.n_layer)
