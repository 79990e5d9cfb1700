"""Hyena: a gated convolution as long as the text, its filter made by a small net of the lag (Poli et al. 2023).

    u = in_proj(LN1 r); x0, x1, v = short conv of u; w = x1 v; y = k * w + bias w; r += out_proj(x0 y); r += MLP(LN2 r)
    k = W6 sin(f (W4 sin(f (W2 sin(f (W0 z)))))), z the position's features; modulate: k_t *= exp(-t |delta|)
The long convolution is linear in w, M[t, s] = k_{t-s}, so a knockout takes k_{t-s} w_s away; the bias term stays, as D does.
Shape legend: B batch, L length, P tokens before a pass, T = P + L, D width, C = 3D channels of the short conv, K its width.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_mi.backends.long_conv import toeplitz
from mamba_mi.backends.reference import spread
from mamba_mi.config import UserError
from mamba_mi.models.hyena_knockouts import Hidden, knocked
from mamba_mi.models.mixer import Layer, LayerNorm, kaiming
from mamba_mi.models.safari import KNOWN_BY, parse, published_config, recognises, settle, their_name
from mamba_mi.models.variants import Card, Published
from mamba_mi.trace import BLIND, Site

__all__ = ["ABOUT", "CARD", "KNOWN_BY", "OPTIONS", "PUBLISHED", "Block", "Config", "FinalNorm", "parse", "published_config",
           "recognises", "settle", "their_name"]
PUBLISHED = {"hyena-small-150b": Published("Zymrael/hyena-small-150b-tok", 153_752_832)}
CARD = Card("Hyena, long convolutions with filters made by a net (Poli et al. 2023)", "BSD-3-Clause",
            "safari's: one flat .ckpt, no config.json", "a token-by-token sum in numpy")
OPTIONS = {"modulate": (True, False)}
FinalNorm = LayerNorm


@dataclass(frozen=True)
class Config:
    """Sizes; `max_length` is the filters' (l_max), `modulate` whether they decay, which no checkpoint says."""

    d_model: int
    n_layer: int
    vocab_size: int
    padded_vocab: int
    d_ff: int
    max_length: int
    d_conv: int = 3
    emb_dim: int = 33
    filter_order: int = 64
    modulate: bool = False
    frequency: float = 14.0
    tie_embeddings: bool = True
    eps: float = 1e-5
    variant: str = "hyena"

    @property
    def mixes_by(self) -> tuple[str, int]:
        """What a mixing matrix is had for, and how many there are: a channel has its own."""
        return "channels", self.d_model

    def floats(self, length: int, watched: bool) -> int:
        """Numbers a token of a pass takes within a layer: projections, short conv, the FFT's, the MLP."""
        return 20 * self.d_model + 2 * self.d_ff


def ABOUT(config: Config) -> str:
    """Which of two models with the same weights this is."""
    said = "with their exponential decay (model.modulate=true)" if config.modulate else "without a decay (model.modulate=false)"
    return f"The filters are taken {said}: the weights do not say which, and the other is another model."


class State(NamedTuple):
    """What one layer carries: of every token so far what the short conv and the long one took in."""

    u_BPC: Tensor
    w_BPD: Tensor


class Filter(nn.Module):
    """The taps k_TD of the long convolution."""

    def __init__(self, config: Config):
        super().__init__()
        D, O = config.d_model, config.filter_order
        self.modulate, self._made = config.modulate, (None, None)
        self.bias = nn.Parameter(torch.empty(D))
        # not trained here: their published rates are 1e-5 and 0
        self.z, self.t, self.deltas = (nn.Parameter(torch.empty(1, *shape), requires_grad=False) for shape in (
            (config.max_length, config.emb_dim), (config.max_length, 1), (1, D)))
        self.freq = nn.Parameter(torch.empty(1, O))
        self.inner = nn.ModuleList([nn.Linear(config.emb_dim, O), nn.Linear(O, O), nn.Linear(O, O)])
        self.outer = nn.Linear(O, D, bias=False)

    def forward(self, taps: int) -> Tensor:
        """Made once while no weight changes, and then of all lags: a tap's bits do not depend on a prompt's length."""
        if torch.is_grad_enabled() and any(x.requires_grad for x in self.parameters()):
            return self._taps(taps)
        key = [(x.data_ptr(), x._version, x.dtype) for x in self.parameters()]
        if self._made[0] != key:
            with torch.no_grad():
                self._made = key, self._taps(self.z.shape[1])
        return self._made[1][:taps]

    def _taps(self, taps: int) -> Tensor:
        # in float64: the sines are of numbers up to a hundred, whose float32 puts the logits off by 1e-5
        x_TO = self.z[0, :taps].double()
        for linear in self.inner:
            x_TO = torch.sin(self.freq.double() * F.linear(x_TO, linear.weight.double(), linear.bias.double()))
        k_TD = F.linear(x_TO, self.outer.weight.double())
        if self.modulate:
            k_TD = k_TD * torch.exp(-self.t[0, :taps].double() * self.deltas[0].double().abs())
        return k_TD.to(self.bias.dtype)

    def initialise(self, generator, frequency: float) -> None:
        """As published: features of the position by cosines and sines, a decay a channel, a random bias."""
        length, bands = self.z.shape[1], (self.z.shape[2] - 1) // 2
        t_L, turn_L = torch.linspace(0, 1, length), 2 * math.pi * torch.arange(length) / length
        phase_LF = turn_L[:, None] * torch.linspace(1e-4, bands - 1, bands)
        self.z.copy_(torch.cat([t_L[:, None], phase_LF.cos(), -phase_LF.sin()], dim=1)[None])
        self.t.copy_(t_L[None, :, None])
        self.deltas.copy_(torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, self.deltas.shape[2]))
        self.bias.normal_(generator=generator)
        self.freq.fill_(frequency)
        for linear in self.inner:
            kaiming(linear.weight, generator, linear.bias)
        kaiming(self.outer.weight, generator)


class Block(Layer):
    """One layer: the Hyena operator and an MLP, each after a LayerNorm and added to the residual stream."""

    SITES = ("resid", "normed", "in_proj", "conv", "x0", "x1", "v", "x1v", "filter", "long_conv", "gated", "out", "resid_mid",
             "mlp_normed", "mlp_hidden", "mlp_out", "resid_out")
    MIXED = "long_conv"
    INERT = {"filter": "the filters are the same whatever the prompt"}
    MATRIX = ("x0", "x1", "filter")

    def __init__(self, config: Config, layer: int, backend):
        super().__init__(config, layer, backend)
        D, K = config.d_model, config.d_conv
        self.norm1, self.norm2 = LayerNorm(D, config.eps), LayerNorm(D, config.eps)
        self.in_proj, self.out_proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.short_filter = nn.Conv1d(3 * D, 3 * D, K, groups=3 * D)
        self.filter_fn = Filter(config)
        self.fc1, self.fc2 = nn.Linear(D, config.d_ff), nn.Linear(config.d_ff, D)
        self.float32_parameters = tuple(name for name, _ in self.named_parameters() if name.startswith(("norm", "filter_fn")))

    def forward(self, resid_BLD: Tensor, trace=BLIND, past: State | None = None, keep: bool = True):
        """The residual stream after this layer, and the state to go on from (None unless `keep`)."""
        at, kind = self.sites(trace), self.in_proj.weight.dtype
        resid_BLD = at("resid", resid_BLD)
        u_BLC = at("in_proj", self.in_proj(at("normed", self.norm1(resid_BLD).to(kind))))
        seen = self.split(at, self.short(u_BLC, past))
        k_TD = self._filter(trace, u_BLC, past)
        y_BLD = self.backend.long_conv(seen.w_BLD, k_TD, past_bPD=None if past is None else past.w_BPD)
        y_BLD = y_BLD + (seen.w_BLD * self.filter_fn.bias).to(kind)
        y_BLD, x0_BLD = knocked(self, trace, y_BLD, u_BLC, seen, k_TD, past)
        out_BLD = at("out", self.out_proj(at("gated", at("long_conv", y_BLD) * x0_BLD)))
        resid_BLD = at("resid_mid", resid_BLD + out_BLD)
        hidden_BLF = at("mlp_hidden", F.gelu(self.fc1(at("mlp_normed", self.norm2(resid_BLD).to(kind))), approximate="tanh"))
        resid_BLD = at("resid_out", resid_BLD + at("mlp_out", self.fc2(hidden_BLF)))
        return resid_BLD, self._state(u_BLC, seen.w_BLD, past) if keep else None

    def short(self, u_BLC: Tensor, past: State | None, own_BLC: Tensor | None = None) -> Tensor:
        """The short conv, no activation; `own_BLC` comes in by the current token's tap alone."""
        weight_CK = self.short_filter.weight[:, 0]
        tail = None if past is None else F.pad(past.u_BPC, (0, 0, self.config.d_conv - 1, 0))[:, past.u_BPC.shape[1]:]
        c_BLC, _ = self.backend.conv(u_BLC, weight_CK, self.short_filter.bias, tail=tail, keep_tail=False)
        return c_BLC if own_BLC is None else torch.addcmul(c_BLC, own_BLC, weight_CK[:, -1])

    def split(self, at, c_BLC: Tensor) -> Hidden:
        """x0 that gates, and w = x1 v that the long convolution takes in."""
        x0_BLD, x1_BLD, v_BLD = at("conv", c_BLC).chunk(3, dim=-1)
        x0_BLD, x1_BLD, v_BLD = at("x0", x0_BLD), at("x1", x1_BLD), at("v", v_BLD)
        return Hidden(x0_BLD, at("x1v", x1_BLD * v_BLD))

    def _filter(self, trace, u_BLC: Tensor, past: State | None) -> Tensor:
        """The taps for every token so far; a row's own where somebody watches."""
        before, site = 0 if past is None else past.u_BPC.shape[1], Site(self.layer, "filter")
        taps, most = before + u_BLC.shape[1], self.config.max_length
        if taps > most:  # here, for every pass comes by: the cone's do not come in through `LM.through`
            raise UserError(f"{taps} tokens: filters of {most} (l_max) cannot go beyond; give shorter prompts")
        k_TD = self.filter_fn(taps)
        if not trace.wants(site):
            return k_TD
        if before and site in trace.keep:
            raise UserError(f"{site}: its position is a lag, and this pass goes on from another; keep it in one pass over the text")
        return trace(site, k_TD.expand(len(u_BLC), -1, -1), at=0)

    def _state(self, u_BLC, w_BLD, past: State | None) -> State:
        if past is None:
            return State(u_BLC, w_BLD)
        return State(*(torch.cat([spread(before, len(x)), x], dim=1) for before, x in zip(past, (u_BLC, w_BLD))))

    def matrix(self, values, rows=None, parts=None) -> Tensor:
        """M_BHTS of gated_t = Σ_s M[t, s] v_s + …: x0_t k_{t-s} x1_s, of these query rows and channels."""
        x0_BTD, x1_BTD, k_BTD = (values[name][..., slice(None) if parts is None else list(parts)] for name in self.MATRIX)
        at = torch.arange(x0_BTD.shape[1])[slice(None) if rows is None else list(rows)]
        M_BQTD = x0_BTD[:, at][:, :, None] * toeplitz(k_BTD, at, x0_BTD.shape[1]) * x1_BTD[:, None]
        return M_BQTD.permute(0, 3, 1, 2)

    def reader(self, name: str) -> Tensor | None:
        found = {"gated": self.out_proj, "normed": self.in_proj, "mlp_normed": self.fc1, "mlp_hidden": self.fc2}
        if name in found:
            return found[name].weight
        if name == "resid":
            return self.norm1.read(self.in_proj.weight)
        return self.norm2.read(self.fc1.weight) if name in ("out", "resid_mid") else None

    @torch.no_grad()
    def initialise(self, generator) -> None:
        """Uniform within 1/√fan_in, what is added to the stream over √(2 n_layer); the filter as published."""
        for norm in (self.norm1, self.norm2):
            norm.weight.fill_(1.0)
            norm.bias.zero_()
        for part in (self.in_proj, self.out_proj, self.short_filter, self.fc1, self.fc2):
            kaiming(part.weight, generator, part.bias)
        for part in (self.out_proj, self.fc2):
            part.weight /= math.sqrt(2 * self.config.n_layer)
        self.filter_fn.initialise(generator, self.config.frequency)
