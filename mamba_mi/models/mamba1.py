"""Mamba-1: every quantity the paper names has its name here (Gu & Dao 2023).

Shape legend: B batch, L length, D width, E inner, N state, R rank of dt, K conv width, V vocabulary.
Sites of a block, in order: resid normed in_proj gate conv dt B C write state scan_out gated out resid_out.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int = 0
    tie_embeddings: bool = True
    eps: float = 1e-5
    variant: str = "mamba1"
    max_length = None  # no position is too late for a recurrence

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def mixes_by(self) -> tuple[str, int]:
        """What a mixing matrix is had for, and how many there are: a channel has its own."""
        return "channels", self.d_inner

    def floats(self, length: int, watched: bool) -> int:
        """Numbers a token of a pass takes within a layer: projections, conv, gate, norm and their temporaries, the scan;
        `watched` where every write is held."""
        mixing = 2 * self.d_inner * self.d_state // length + 1  # each row's state, and a few rows' at work
        return 9 * self.d_inner + 3 * self.d_model + mixing + (5 * self.d_inner * self.d_state if watched else 0)

    @classmethod
    def of(cls, common: Mapping, ssm: Mapping) -> Config:
        """From a published config: the `common` sizes and what `ssm_cfg` overrides."""
        rank = ssm.get("dt_rank", "auto")
        rank = math.ceil(common["d_model"] / 16) if rank == "auto" else rank
        return cls(**common, **{k: v for k, v in ssm.items() if k != "dt_rank"}, dt_rank=rank)


CARD = Card("Mamba-1, selective state spaces (Gu & Dao 2023); MiniPLM is one", "Apache-2.0",
            "state-spaces' or Hugging Face's: config.json, pytorch_model.bin or model.safetensors",
            "transformers' MambaForCausalLM; a token-by-token recurrence in numpy")
PUBLISHED = {name: Published(f"state-spaces/{name}", size) for name, size in {
    "mamba-130m": 129_135_360, "mamba-370m": 371_516_416, "mamba-790m": 793_204_224, "mamba-1.4b": 1_372_178_432,
    "mamba-2.8b": 2_768_345_600, "mamba-2.8b-slimpj": 2_768_345_600}.items()}
PUBLISHED["miniplm-mamba-130m"] = Published("MiniLLM/MiniPLM-Mamba-130M", 140_458_752)
SSM_KEYS = {"d_state", "d_conv", "expand", "dt_rank"}  # what a published ssm_cfg may override here


class Block(Mixer):
    """One layer: RMSNorm, the selective state space, and the residual connection."""

    def __init__(self, config: Config, layer: int, backend):
        super().__init__(config, layer, backend)
        D, E, N, R = config.d_model, config.d_inner, config.d_state, config.dt_rank
        self.norm = RMSNorm(D, config.eps)
        self.in_proj = nn.Linear(D, 2 * E, bias=False)
        self.conv1d = nn.Conv1d(E, E, config.d_conv, groups=E)
        self.x_proj = nn.Linear(E, R + 2 * N, bias=False)
        self.dt_proj = nn.Linear(R, E)
        self.A_log = nn.Parameter(torch.empty(E, N))
        self.D = nn.Parameter(torch.empty(E))
        self.out_proj = nn.Linear(E, D, bias=False)

    float32_parameters = ("A_log", "D", "dt_proj.bias", "norm.weight")
    WHOLE = ("A_log", "D", "norm.weight", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias",
             "out_proj.weight")

    def forward(self, resid_BLD: Tensor, trace=BLIND, past: State | None = None, keep: bool = True):
        """The residual stream after this layer, and the state to go on from (None unless `keep`)."""
        at = self.sites(trace)
        resid_BLD = at("resid", resid_BLD)  # an edit here reaches the skip connection too
        _, uz_BLW = self.enter(at, resid_BLD)
        if not keep and (out_BLD := self.whole(uz_BLW, trace, past)) is not None:
            return resid_BLD + out_BLD, None
        u_BLE, z_BLE = self.parts(at, uz_BLW)
        v_BLE, tail = self.convolve(u_BLE, past, keep=keep)
        selected = self.select(at, at("conv", v_BLE))
        y_BLEP, h = self.mix(trace, u_BLE, selected, -self.A_log.exp(), past, keep)
        return self.leave(trace, resid_BLD, z_BLE, y_BLEP), State(tail, h) if keep else None

    def enter(self, at, resid_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """What the layer works on: the normed stream, and the conv's input and the gate side by side."""
        n_BLD = at("normed", self.norm(resid_BLD, self.backend).to(self.in_proj.weight.dtype))
        return n_BLD, self.in_proj(n_BLD)

    def parts(self, at, uz_BLW: Tensor) -> tuple[Tensor, Tensor]:
        """The conv's input and the gate."""
        u_BLE, z_BLE = uz_BLW.chunk(2, dim=-1)
        return at("in_proj", u_BLE), at("gate", z_BLE)

    def whole(self, uz_BLW: Tensor, trace, past: State | None) -> Tensor | None:
        """What the layer adds to the stream, in one call of the backend's; None where there is none for this layer."""
        if not in_one_call(self, Block, "whole_mamba1", uz_BLW, trace, past):
            return None
        return self.backend.whole_mamba1(uz_BLW, self.conv1d.weight[:, 0], self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight,
                                         self.dt_proj.bias, -self.A_log.exp(), self.D, self.out_proj.weight)

    def leave(self, trace, resid_BLD: Tensor, z_BLE: Tensor, y_BLEP: Tensor) -> Tensor:
        """What the scan gave, gated, and back in the stream."""
        at = self.sites(trace)
        y_BLE = at("scan_out", y_BLEP.squeeze(-1))
        out_BLD = self.out_proj(at("gated", self.backend.gate(y_BLE, z_BLE)))
        out_BLD = at("out", self.joined(out_BLD, resid_BLD, trace))
        return at("resid_out", resid_BLD + out_BLD)

    def joined(self, out_BLD: Tensor, resid_BLD: Tensor, trace) -> Tensor:
        """What the layer adds to the stream: what its state space gives, and whatever stands beside it."""
        return out_BLD

    def select(self, at, v_BLE: Tensor, _=None) -> Selected:
        """The scan's input and the dt, B and C it selects by, all made of the conv's output."""
        N = self.config.d_state
        dt_BLR, B_BLN, C_BLN = self.x_proj(v_BLE).split([self.config.dt_rank, N, N], dim=-1)
        # the bias once, and in the type A and the state live in
        dt_BLE = at("dt", self.backend.softplus(F.linear(dt_BLR, self.dt_proj.weight), self.dt_proj.bias))
        B_BLGN, C_BLGN = at("B", B_BLN[:, :, None]), at("C", C_BLN[:, :, None])
        return Selected(v_BLE[..., None], dt_BLE, B_BLGN, C_BLGN)

    @torch.no_grad()
    def initialise(self, generator) -> None:
        """The published initialisation: S4D-real A, dt log-uniform in [1e-3, 1e-1], out_proj over √n_layer."""
        E, N = self.A_log.shape
        self.A_log.copy_(torch.arange(1, N + 1).float().log().expand(E, N))
        self.D.fill_(1.0)
        self.norm.weight.fill_(1.0)
        for linear in (self.in_proj, self.x_proj, self.out_proj):
            kaiming(linear.weight, generator)
        kaiming(self.conv1d.weight, generator, self.conv1d.bias)
        self.out_proj.weight /= math.sqrt(self.config.n_layer)
        bound = self.config.dt_rank ** -0.5
        self.dt_proj.weight.uniform_(-bound, bound, generator=generator)
        self.dt_proj.bias.copy_(softplus_inverse(torch.empty(E), generator))
