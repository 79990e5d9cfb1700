"""DenseGAU-RetNet: retention with keys and values of earlier layers added; published under the name DenseMamba.

No selective scan: no dt, A, B or C. q, k, v and a gate of each token; head h forgets by a fixed gamma_h = 1 - 2^(-5-h). From
layer 1 on a gate, made of the layer's own input, lets in the keys and values of the last m layers (`dense_layers`), as these
made them; that is what the stream carries from layer to layer beside the residual stream. See `backends.retain`.
Shape legend: B batch, L length, D width, E width of all values, Q of all queries, H heads, K = Q / H, V = E / H.
Sites of a block, in order: resid normed q k v gate k_gate v_gate k_dense v_dense decay retained gated out resid_out. q is before the
rotation by position; k and v are what later layers read, k_dense and v_dense what is retained; decay is what a token leaves of
what came before it, a head.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_mi.backends import retention
from mamba_mi.backends.reference import spread
from mamba_mi.config import UserError
from mamba_mi.models.dense_gau import KNOWN_BY, parse, published_config, recognises, settle, their_name
from mamba_mi.models.mixer import Layer, RMSNorm, kaiming
from mamba_mi.models.removals import gone
from mamba_mi.models.variants import Card, Published
from mamba_mi.trace import BLIND, Site

__all__ = ["ABOUT", "KNOWN_BY", "PUBLISHED", "Block", "Config", "parse", "published_config", "recognises", "settle", "their_name"]
CARD = Card("DenseGAU-RetNet, retention with dense keys and values (He et al. 2024; Sun et al. 2023)", "none shown",
            "DenseSSM's: config.json (model_type llama), pytorch_model.bin", "a token-by-token recurrence in numpy")
PUBLISHED = {"densemamba-350m": Published("jamesHD2001/DenseMamba-350M", 373_277_184),
             "densemamba-1.3b": Published("jamesHD2001/DenseMamba-1.3B", 1_387_783_680)}
ABOUT = ("Published under the name DenseMamba, but it is DenseGAU-RetNet: retention, no selective scan, and so no dt, A, B or C. "
         "What is found in it is found of retention, not of state space models.")


@dataclass(frozen=True)
class Config:
    """Sizes; `dense_layers` is m, `k_select` and `v_select` by how much narrower the middle of the gates is than D."""

    d_model: int
    n_layer: int
    vocab_size: int
    padded_vocab: int
    query_key_dim: int
    heads: int
    dense_layers: int
    k_select: int
    v_select: int
    v_factor: int = 2
    max_positions: int = 2048  # what it was trained on; nothing in it ends there
    tie_embeddings: bool = False
    eps: float = 1e-6
    variant: str = "retnet"
    max_length = None
    d_conv = 1  # there is none

    @property
    def d_values(self) -> int:
        return self.v_factor * self.d_model

    @property
    def mixes_by(self) -> tuple[str, int]:
        """What a mixing matrix is had for, and how many there are."""
        return "heads", self.heads

    def floats(self, length: int, watched: bool) -> int:
        """Numbers a token of a pass takes within a layer: what goes from layer to layer, projections, gates, some entries."""
        carried = self.d_model + self.dense_layers * (self.query_key_dim + self.d_values)
        return 2 * carried + 4 * self.d_model + 10 * self.d_values + 8 * self.query_key_dim + 4 * self.heads * max(length, 64)


class Retained(NamedTuple):
    """What one layer carries from token to token: every key (rotated) and value, and what is left of each."""

    k_BTHK: Tensor
    v_BTHV: Tensor
    left_BTH: Tensor


class Select(nn.Module):
    """silu(W_2 silu(W_1 n)): how much of the earlier layers' keys, or values, is let in."""

    def __init__(self, width: int, middle: int, out: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, middle, bias=False), nn.Linear(middle, out, bias=False)

    def forward(self, n_BLD: Tensor) -> Tensor:
        return F.silu(self.fc2(F.silu(self.fc1(n_BLD))))


class Block(Layer):
    """One layer: RMSNorm, retention of k and v, the gate, and the residual connection."""

    MIXED = "retained"
    BY_HEAD = ("q", "k", "v", "gate", "k_dense", "v_dense", "retained", "gated")
    INERT = {"decay": "a head's decay is the same whatever the prompt"}
    MATRIX = ("q", "k_dense", "decay")
    float32_parameters = ("norm.weight", "k_norm.weight", "v_norm.weight", "group_norm.weight")

    def __init__(self, config: Config, layer: int, backend):
        super().__init__(config, layer, backend)
        D, E, Q = config.d_model, config.d_values, config.query_key_dim
        self.norm = RMSNorm(D, config.eps)
        self.q_proj, self.k_proj = nn.Linear(D, Q, bias=False), nn.Linear(D, Q, bias=False)
        self.to_hidden = nn.Linear(D, 2 * E, bias=False)
        self.to_out = nn.Linear(E, D, bias=False)
        # layer 0 has these too, and no use for them
        self.k_select, self.v_select = Select(D, D // config.k_select, Q), Select(D, D // config.v_select, E)
        self.k_norm, self.v_norm = RMSNorm(Q, config.eps), RMSNorm(E, config.eps)
        self.group_norm = RMSNorm(E // config.heads, config.eps)
        gates = ("k_gate", "v_gate") if layer else ()
        self.SITES = ("resid", "normed", "q", "k", "v", "gate", *gates, "k_dense", "v_dense", "decay", "retained", "gated",
                      "out", "resid_out")

    def forward(self, resid_BLW: Tensor, trace=BLIND, past: Retained | None = None, keep: bool = True):
        """The residual stream and what later layers read after this layer, and the state to go on from (None unless `keep`)."""
        at, kind = self.sites(trace), self.to_out.weight.dtype
        resid_BLD, *earlier = self._parted(resid_BLW)
        resid_BLD = at("resid", resid_BLD)
        n_BLD = at("normed", self.norm(resid_BLD, self.backend).to(kind))
        q_BLQ = at("q", F.silu(self.q_proj(n_BLD)))
        k_BLQ = at("k", F.silu(self.k_proj(n_BLD)) * self._width ** -0.5)
        v_BLE, g_BLE = F.silu(self.to_hidden(n_BLD)).chunk(2, dim=-1)
        v_BLE, g_BLE = at("v", v_BLE), at("gate", g_BLE)
        dense = self._dense(at, n_BLD, k_BLQ, v_BLE, earlier)
        y_BLE, state = self._retained(trace, q_BLQ, *dense, past, keep)
        y_BLHV = self._by_head(at("retained", y_BLE))
        gated_BLE = at("gated", (self.group_norm(y_BLHV).flatten(-2) * g_BLE).to(kind))
        resid_BLD = at("resid_out", resid_BLD + at("out", self.to_out(gated_BLE)))
        return self._joined(resid_BLD, k_BLQ, v_BLE, earlier), state

    def _parted(self, resid_BLW: Tensor) -> list[Tensor]:
        """The residual stream, and k, v of each of the last m layers, the nearest first."""
        D, Q, E = self.config.d_model, self.config.query_key_dim, self.config.d_values
        sizes = [D, *[Q, E] * min(self.layer, self.config.dense_layers)]
        if resid_BLW.shape[-1] != sum(sizes):
            raise UserError(f"layer {self.layer} was given a stream {resid_BLW.shape[-1]} wide and needs {sum(sizes)}: beside the "
                            "residual stream it reads keys and values of earlier layers; start at layer 0, or from what "
                            "`through` returned for the layers before")
        return list(resid_BLW.split(sizes, dim=-1))

    def _joined(self, resid_BLD, k_BLQ, v_BLE, earlier) -> Tensor:
        if self.layer == self.config.n_layer - 1:
            return resid_BLD
        carried = [k_BLQ, v_BLE, *earlier][:2 * self.config.dense_layers]
        return torch.cat([resid_BLD, *(x.to(resid_BLD.dtype) for x in carried)], dim=-1)

    def _dense(self, at, n_BLD, k_BLQ, v_BLE, earlier) -> tuple[Tensor, Tensor]:
        """k and v with those of earlier layers let in; the first layer's own."""
        if self.layer:
            k_gate, v_gate = at("k_gate", self.k_select(n_BLD)), at("v_gate", self.v_select(n_BLD))
            k_BLQ, v_BLE = (norm(own + gate * sum(past)).to(own.dtype) for norm, own, gate, past in (
                (self.k_norm, k_BLQ, k_gate, earlier[::2]), (self.v_norm, v_BLE, v_gate, earlier[1::2])))
        return at("k_dense", k_BLQ), at("v_dense", v_BLE)

    def _retained(self, trace, q_BLQ, k_BLQ, v_BLE, past: Retained | None, keep: bool):
        """Retention and this layer's knockouts; the state after it."""
        offset = 0 if past is None else past.k_BTHK.shape[1]
        q_BLHK, k_BLHK = (self.rotate(self._by_head(x), offset) for x in (q_BLQ, k_BLQ))
        given = q_BLHK, k_BLHK, self._by_head(v_BLE), self._decay(trace, v_BLE)
        y_BLHV = self._knocked(trace, self.backend.retain(*given, past=past), *given, past)
        return y_BLHV.flatten(-2), self._state(*given[1:], past) if keep else None

    def _decay(self, trace, v_BLE) -> Tensor:
        """gamma_h of each token, one row for all unless somebody watches."""
        B, L, _ = v_BLE.shape
        gamma_H = 1 - 2.0 ** (-5 - torch.arange(self.config.heads, device=v_BLE.device).double())
        decay_1LH = gamma_H.to(self.norm.weight.dtype).expand(1, L, -1)
        site = Site(self.layer, "decay")
        return trace(site, decay_1LH.repeat(B, 1, 1)) if trace.wants(site) else decay_1LH

    def _knocked(self, trace, y_BLHV, q_BLHK, k_BLHK, v_BLHV, decay_BLH, past) -> Tensor:
        """y with the queries of knockouts retained again, their sources' entries of the matrix at 0."""
        found = gone(trace, self.layer, len(y_BLHV), y_BLHV.shape[1], self.config)
        if not found:
            return y_BLHV
        device, size = y_BLHV.device, len(found[0][1].queries_BLH)
        row_R = torch.cat([block * size + torch.arange(size) for block, _ in found]).to(device)
        heads = max(each.queries_BLH.shape[2] for _, each in found)
        queries_RLH = torch.cat([each.queries_BLH.expand(-1, -1, heads) for _, each in found]).to(device)
        at_Q = queries_RLH.any(2).any(0).nonzero()[:, 0]
        decay_RLH = decay_BLH if len(decay_BLH) == 1 else decay_BLH[row_R]
        y_RQHV = self.backend.retain(q_BLHK[row_R][:, at_Q], k_BLHK[row_R], v_BLHV[row_R], decay_RLH, past=past, at=at_Q,
                                     gone_BT=torch.cat([each.slots_BT for _, each in found]).to(device))
        row, at, *head = queries_RLH[:, at_Q].nonzero(as_tuple=True)
        head = head if heads > 1 else []
        return y_BLHV.index_put((row_R[row], at_Q[at], *head), y_RQHV[row, at, *head])

    def _state(self, k_BLHK, v_BLHV, decay_BLH, past: Retained | None) -> Retained:
        last = torch.tensor([k_BLHK.shape[1] - 1], device=k_BLHK.device)
        left_BH1L, before_BH1 = (x.to(decay_BLH.dtype) for x in retention.left(decay_BLH, last))
        left_BLH = spread(left_BH1L[:, :, 0].transpose(1, 2), len(k_BLHK))
        if past is None:
            return Retained(k_BLHK, v_BLHV, left_BLH)
        past = Retained(*(spread(x, len(k_BLHK)) for x in past))
        past = past._replace(left_BTH=past.left_BTH * before_BH1.transpose(1, 2))
        return Retained(*(torch.cat(both, dim=1) for both in zip(past, (k_BLHK, v_BLHV, left_BLH))))

    def rotate(self, x_BLHK: Tensor, offset: int = 0) -> Tensor:
        """Each pair of numbers turned by position times its angle, in at least float32; angles are taken in float64."""
        angle_I = 10000.0 ** -torch.linspace(0, 1, self._width // 2, dtype=torch.float64, device=x_BLHK.device)
        at_L = torch.arange(offset, offset + x_BLHK.shape[1], dtype=torch.float64, device=x_BLHK.device)
        turn_L1I = (at_L[:, None] * angle_I)[:, None]
        x_BLHK = x_BLHK.to(self.norm.weight.dtype)
        cos, sin, (even, odd) = turn_L1I.cos().to(x_BLHK), turn_L1I.sin().to(x_BLHK), x_BLHK.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)

    def matrix(self, values, rows=None, parts=None) -> Tensor:
        """M_BHTS of retained_t = Σ_s M[t, s] v_dense_s, of a whole prompt: these query rows and heads, all by default."""
        q_BLQ, k_BLQ, decay_BLH = (values[name] for name in self.MATRIX)
        q_BLHK, k_BLHK = self.rotate(self._by_head(q_BLQ)), self.rotate(self._by_head(k_BLQ))
        at = torch.arange(q_BLHK.shape[1])[slice(None) if rows is None else list(rows)].to(q_BLQ.device)
        heads = slice(None) if parts is None else list(parts)
        return retention.matrix(q_BLHK[:, at][:, :, heads], k_BLHK[:, :, heads], decay_BLH[..., heads], at)

    def reader(self, name: str) -> Tensor | None:
        if name == "gated":
            return self.to_out.weight
        if name not in ("normed", "resid"):
            return None
        gates = [self.k_select.fc1.weight, self.v_select.fc1.weight] if self.layer else []
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.to_hidden.weight, *gates])
        return weight if name == "normed" else self.norm.read(weight)

    @property
    def _width(self) -> int:
        return self.config.query_key_dim // self.config.heads

    def _by_head(self, x_BLI: Tensor) -> Tensor:
        return x_BLI.unflatten(-1, (self.config.heads, -1))

    @torch.no_grad()
    def initialise(self, generator) -> None:
        """Uniform within 1/√fan_in, to_out over √n_layer, as other variants start here; the published one is for wider models."""
        for x in self.parameters():
            if x.ndim == 1:
                x.fill_(1.0)
            else:
                kaiming(x, generator)
        self.to_out.weight /= math.sqrt(self.config.n_layer)
