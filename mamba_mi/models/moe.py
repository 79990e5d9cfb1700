"""Mamba-MoE: layers of Mamba-1, of experts, or of both side by side (BlackMamba, Anthony et al. 2024; MoE-Mamba, Pióro et al. 2024).

A code says what a layer is: "r" Mamba, "1" an MLP, "8" eight experts of which each token has one; "r1" and "r8" are both
at once, h + mamba(norm(h)) + moe(norm_moe(h)).
Shape legend: B batch, L length, D width.
"""
from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from mamba_mi.config import UserError, did_you_mean
from mamba_mi.models import mamba1
from mamba_mi.models.experts import ACTIVATIONS, MLP, Experts, imbalance
from mamba_mi.models.mixer import Layer, LayerNorm, RMSNorm
from mamba_mi.models.state_spaces import check_flag, check_sizes
from mamba_mi.models.variants import Card, Published
from mamba_mi.trace import BLIND, Site


@dataclass(frozen=True)
class Config(mamba1.Config):
    """Mamba-1's sizes and those of the experts; `pattern` is a code a layer."""

    pattern: tuple[str, ...] = ()
    d_ff: int = 0
    gated: bool = True
    router_activation: str = "sigmoid"
    expert_activation: str = "gelu"
    variant: str = "moe"

    def floats(self, length: int, watched: bool) -> int:
        """The wider of a Mamba layer and one of experts; both where they stand side by side."""
        mamba, moe = super().floats(length, watched), 6 * self.d_model + (2 + self.gated) * self.d_ff
        return mamba + moe if any(len(code) > 1 for code in self.pattern) else max(mamba, moe)


CARD = Card("Mamba-MoE: layers of Mamba-1 and of experts (BlackMamba, Anthony et al. 2024; MoE-Mamba, Pióro et al. 2024)",
            "Apache-2.0", "BlackMamba's: config.json, pytorch_model.bin holding {\"model\": tensors}",
            "a token-by-token recurrence in numpy, every expert run on every token")
PUBLISHED = {"blackmamba-1.5b": Published("Zyphra/BlackMamba-1.5B", 1_458_462_072),
             "blackmamba-2.8b": Published("Zyphra/BlackMamba-2.8B", 2_783_213_584)}
OPTIONS = {"expert_activation": tuple(ACTIVATIONS)}
FinalNorm = LayerNorm
BALANCE = 0.01  # weight of the load-balancing loss in training (Switch, Fedus et al. 2022)


def ABOUT(config: Config) -> str:
    """What the published code does that its config does not say."""
    if not config.gated or config.router_activation != "sigmoid":
        return ""
    gate = {"gelu": "as the published code does, though its config says SwiGLU", "silu": "as its config says; the published "
            "code gates them by GELU"}[config.expert_activation]
    return f"The experts are gated by {config.expert_activation.upper()}, {gate} (model.expert_activation)."


class Feed(Layer):
    """A layer that mixes no tokens: RMSNorm, an MLP or experts, and the residual connection."""

    STEADY = True

    def __init__(self, config: Config, layer: int, backend):
        super().__init__(config, layer, backend)
        self.norm, self.moe = RMSNorm(config.d_model, config.eps), _fed(config, config.pattern[layer])
        self.SITES = ("resid", "normed", *self.moe.SITES, "out", "resid_out")
        self.INERT = self.moe.INERT
        self.BALANCED = ("router",) if isinstance(self.moe, Experts) else ()
        self.float32_parameters = ("norm.weight", *(f"moe.{name}" for name in self.moe.float32_parameters))

    def forward(self, resid_BLD: Tensor, trace=BLIND, past: None = None, keep: bool = True):
        """The residual stream after this layer; nothing is carried from token to token."""
        at = self.sites(trace)
        resid_BLD = at("resid", resid_BLD)  # an edit here reaches the skip connection too
        n_BLD = at("normed", self.norm(resid_BLD, self.backend).to(self.moe.dtype))
        return at("resid_out", resid_BLD + at("out", self.moe.seen(self, trace, n_BLD))), None

    def reader(self, name: str) -> Tensor | None:
        return self.norm.read(self.moe.reader("normed")) if name == "resid" else self.moe.reader(name)

    def auxiliary_loss(self, trace) -> Tensor:
        return BALANCE * imbalance(trace.kept(Site(self.layer, "router")))

    @torch.no_grad()
    def initialise(self, generator) -> None:
        self.norm.weight.fill_(1.0)
        self.moe.initialise(generator, self.config.n_layer)


class Parallel(mamba1.Block):
    """Mamba and an MLP or experts side by side: each has a norm of the residual stream and both are added to it."""

    def __init__(self, config: Config, layer: int, backend):
        super().__init__(config, layer, backend)
        self.norm_moe, self.moe = RMSNorm(config.d_model, config.eps), _fed(config, config.pattern[layer][1:])
        self.SITES = (*mamba1.Block.SITES[:-2], "normed_moe", *self.moe.SITES, "out", "resid_out")
        self.INERT = self.moe.INERT
        self.BALANCED = ("router",) if isinstance(self.moe, Experts) else ()
        self.float32_parameters = (*mamba1.Block.float32_parameters, "norm_moe.weight",
                                   *(f"moe.{name}" for name in self.moe.float32_parameters))

    def joined(self, out_BLD: Tensor, resid_BLD: Tensor, trace) -> Tensor:
        n_BLD = self.norm_moe(resid_BLD, self.backend).to(self.in_proj.weight.dtype)
        return out_BLD + self.moe.seen(self, trace, trace(Site(self.layer, "normed_moe"), n_BLD))

    def reader(self, name: str) -> Tensor | None:
        if name == "resid":  # both read it
            return torch.cat([super().reader(name), self.norm_moe.read(self.moe.reader("normed"))])
        if name == "normed_moe":
            return self.moe.reader("normed")
        return super().reader(name) if name in mamba1.Block.SITES else self.moe.reader(name)

    def auxiliary_loss(self, trace) -> Tensor:
        return BALANCE * imbalance(trace.kept(Site(self.layer, "router")))

    @torch.no_grad()
    def initialise(self, generator) -> None:
        super().initialise(generator)
        self.norm_moe.weight.fill_(1.0)
        self.moe.initialise(generator, self.config.n_layer)


def Block(config: Config, layer: int, backend) -> Layer:
    """The layer that its code says."""
    code = config.pattern[layer]
    kind = mamba1.Block if code == "r" else Parallel if code.startswith("r") else Feed
    return kind(config, layer, backend)


def _fed(config: Config, experts: str) -> MLP | Experts:
    return MLP(config) if experts == "1" else Experts(config, int(experts))


# The layout of BlackMamba: config.json, and pytorch_model.bin that holds {"model": tensors by name}

SIZES = {"d_model": "hidden_size", "n_layer": "num_layers", "vocab_size": "vocab_size", "d_state": "state_size",
         "d_conv": "conv_dimension", "expand": "expansion_factor", "d_ff": "ffn_hidden_size"}
ROUTING = {"sinkhorn": "sigmoid", "top1": "softmax"}  # what is done outside training
UNBUILT = {"bias": False, "add_bias_linear": False, "conv_bias": True, "rms_norm": True, "fused_add_norm": False,
           "layernorm_epsilon": 1e-5}  # what other values would mean is not built
OUTER = {"embedding.weight": "embedding.word_embeddings.weight", "norm_f.weight": "decoder.final_layernorm.weight",
         "norm_f.bias": "decoder.final_layernorm.bias"}
KNOWN_BY = "mamba_moe_layers (BlackMamba)"


def recognises(raw: Mapping | None, names) -> bool:
    return raw is not None and "mamba_moe_layers" in raw


def parse(raw: Mapping, where: str, weights=None) -> tuple[ModuleType, Config]:
    """This module and the Config; what is not built raises."""
    for key, plain in UNBUILT.items():
        if raw.get(key, plain) != plain:
            raise UserError(f"{where}: {key}={raw[key]!r} is not built (only {plain!r}, as published)")
    if absent := [theirs for theirs in SIZES.values() if theirs not in raw]:
        raise UserError(f"{where}: no {', '.join(absent)}; a config with mamba_moe_layers needs {', '.join(SIZES.values())}")
    check_sizes({theirs: raw[theirs] for theirs in SIZES.values()} | {"dt_rank": raw.get("dt_rank", "auto")}, where)
    gated, pattern = raw.get("swiglu", False), _pattern(raw, where)
    check_flag("swiglu", gated, where)
    said = {"routing_mode": ("sinkhorn", ROUTING), "expert_activation": ("gelu", ACTIVATIONS)}
    routing, activation = (_one_of(raw, key, *how, where) for key, how in said.items())
    sizes = {ours: raw[theirs] for ours, theirs in SIZES.items()}
    rank = raw.get("dt_rank", "auto")
    config = Config(**sizes, padded_vocab=raw["vocab_size"], pattern=pattern, gated=gated, router_activation=ROUTING[routing],
                    expert_activation=activation, dt_rank=_auto(sizes["d_model"]) if rank == "auto" else rank)
    return sys.modules[__name__], config


def _pattern(raw: Mapping, where: str) -> tuple[str, ...]:
    codes = raw["mamba_moe_layers"]
    if not isinstance(codes, list) or len(codes) != raw["num_layers"]:
        raise UserError(f"{where}: mamba_moe_layers must be a list of {raw['num_layers']} codes (num_layers), one a layer")
    for layer, code in enumerate(codes):
        if not isinstance(code, str) or not re.fullmatch("r|r?[1-9]", code):
            raise UserError(f"{where}: layer {layer} is {code!r} in mamba_moe_layers: there are \"r\" (Mamba), \"1\" (MLP), \"2\" to "
                            "\"9\" (so many experts), and \"r1\" to \"r9\" (both side by side)")
    return tuple(codes)


def _one_of(raw: Mapping, key: str, default: str, known: Mapping, where: str) -> str:
    value = raw.get(key, default)
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{where}: {key}={value!r} is not built; there are {', '.join(known)}{did_you_mean(str(value), known)}")
    return value


def _auto(width: int) -> int:
    return math.ceil(width / 16)


def their_name(name: str, config: Config) -> str:
    """`layers.1.moe.router.weight` is `decoder.layers.1.mixer.router.weight`, unless Mamba stands beside it."""
    if name in OUTER:
        return OUTER[name]
    _, layer, inner = name.split(".", 2)
    part, _, rest = inner.partition(".")
    if part in ("norm", "norm_moe") or (part == "moe" and len(config.pattern[int(layer)]) > 1):
        return f"decoder.layers.{layer}.{inner}"
    return f"decoder.layers.{layer}.mixer.{rest if part == 'moe' else inner}"


def published_config(config: Config) -> dict:
    """The config.json of BlackMamba's layout; what it has no key for is added under its name in the published code."""
    sizes = {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}
    routing = next(mode for mode, activation in ROUTING.items() if activation == config.router_activation)
    rank = {} if config.dt_rank == _auto(config.d_model) else {"dt_rank": config.dt_rank}
    return sizes | rank | {"mamba_moe_layers": list(config.pattern), "swiglu": config.gated, "bias": False,
                           "add_bias_linear": False, "routing_mode": routing, "expert_activation": config.expert_activation}
