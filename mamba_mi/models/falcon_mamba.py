"""Falcon-Mamba: Mamba-1 that norms what it selects by (Zuo et al. 2024, as in transformers' FalconMambaForCausalLM).

[dt_low B C] = W_x v, each then divided by the root of its mean square, with no learned weight; the rest is Mamba-1's. The
sites B and C are what the scan reads, and dt is made of the normed: softplus(W_dt rms(dt_low) + b).
Shape legend: E inner, N state, R rank of dt.
"""
from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_mi.config import UserError
from mamba_mi.models import hugging_face, mamba1
from mamba_mi.models.state_spaces import check_eps, check_sizes
from mamba_mi.models.variants import Card, Published


@dataclass(frozen=True)
class Config(mamba1.Config):
    """Mamba-1's sizes, the head of its own that is published, and the epsilon of the norms within the mixer."""

    tie_embeddings: bool = False
    mixer_rms_eps: float = 1e-6
    variant: str = "falcon_mamba"

    def floats(self, length: int, watched: bool) -> int:
        """Mamba-1's, and dt's low-rank part, B and C before and after their norms."""
        return super().floats(length, watched) + 3 * (self.dt_rank + 2 * self.d_state)


CARD = Card("Falcon-Mamba: Mamba-1 with RMS norms without weights over dt's low-rank part, B and C (Zuo et al. 2024)",
            "TII Falcon-Mamba License 2.0", "Hugging Face's: config.json (model_type falcon_mamba), model.safetensors in shards",
            "transformers' FalconMambaForCausalLM; a token-by-token recurrence in numpy")
PUBLISHED = {name: Published(f"tiiuae/{name}", 7_272_665_088) for name in ("falcon-mamba-7b", "falcon-mamba-7b-instruct")}
SMALL = Config(d_model=64, n_layer=6, vocab_size=373, padded_vocab=373, dt_rank=4)


class Selection(nn.Linear):
    """W_x, and each of its parts (dt's low-rank one, B, C) over the root of its mean square."""

    def __init__(self, config: Config):
        self.parts, self.eps = [config.dt_rank, config.d_state, config.d_state], config.mixer_rms_eps
        super().__init__(config.d_inner, sum(self.parts), bias=False)

    def forward(self, v_BLE: Tensor) -> Tensor:
        return torch.cat([self.normed(x) for x in super().forward(v_BLE).split(self.parts, dim=-1)], dim=-1)

    def normed(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)  # which torch works out in at least float32


class Block(mamba1.Block):
    """Mamba-1's layer, selecting by what is normed."""

    def __init__(self, config: Config, layer: int, backend):
        super().__init__(config, layer, backend)
        self.x_proj = Selection(config)


# Hugging Face's layout, under a model_type of its own

KIND = "falcon_mamba"
KNOWN_BY = f"model_type {KIND} (Hugging Face)"
their_name = hugging_face.their_name


def recognises(raw: Mapping | None, names) -> bool:
    return raw is not None and raw.get("model_type") == KIND


def parse(raw: Mapping, where: str, weights=None) -> tuple[ModuleType, Config]:
    """This module and the Config; what is not built raises."""
    eps = raw.get("mixer_rms_eps", Config.mixer_rms_eps)
    check_eps("mixer_rms_eps", eps, where)
    _, plain = hugging_face.parse({**raw, "model_type": "mamba", "expand": _expand(raw, where)}, where)
    return sys.modules[__name__], Config(**{**vars(plain), "variant": KIND, "mixer_rms_eps": float(eps)})


def _expand(raw: Mapping, where: str) -> int:
    """Of the inner width where the config has it: the published one says 16 beside a width of twice the model's."""
    if "intermediate_size" not in raw:
        return raw.get("expand", Config.expand)
    width, inner = raw.get("hidden_size", hugging_face.DEFAULTS["mamba"]["hidden_size"]), raw["intermediate_size"]
    check_sizes({"hidden_size": width, "intermediate_size": inner}, where)
    if inner % width:
        raise UserError(f"{where}: intermediate_size={inner} is not built, only a multiple of hidden_size={width}")
    return inner // width


def published_config(config: Config) -> dict:
    """The config.json in transformers' names, nothing left to its defaults."""
    return hugging_face.published_config(replace(config, variant="mamba1")) | {
        "architectures": ["FalconMambaForCausalLM"], "model_type": KIND, "mixer_rms_eps": config.mixer_rms_eps}
