"""Feed-forward parts of a layer: one MLP for all tokens, or several (experts) and a router that sends each token to one.

    MLP      fc2(g(fc1 n)); gated: fc2(g(a) b), where a and b are the halves of fc1 n
    experts  out_t = p_t[e] expert_e(n_t), e = argmax p_t, p_t the sigmoid or the softmax of the router's logits (top-1)
Shape legend: B batch, L length, D width, E experts, T tokens of all rows.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_mi.config import UserError
from mamba_mi.models.mixer import Layer, kaiming
from mamba_mi.trace import Site

ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu}  # gelu by the error function, not by tanh
MARGIN = "it can only be read, the choice does not depend on it; router and choice can be edited"
ROUTERS = {"sigmoid": torch.sigmoid, "softmax": partial(torch.softmax, dim=-1)}


class MLP(nn.Module):
    """One feed-forward net."""

    SITES = ("mlp_hidden",)
    INERT: Mapping[str, str] = {}
    float32_parameters: tuple[str, ...] = ()

    def __init__(self, config):
        super().__init__()
        self.activation, self.gated = ACTIVATIONS[config.expert_activation], config.gated
        self.linear_fc1 = nn.Linear(config.d_model, (1 + config.gated) * config.d_ff, bias=False)
        self.linear_fc2 = nn.Linear(config.d_ff, config.d_model, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the matrices."""
        return self.linear_fc1.weight.dtype

    def forward(self, n: Tensor) -> Tensor:
        return self.linear_fc2(self.hidden(n))

    def seen(self, layer: Layer, trace, n_BLD: Tensor) -> Tensor:
        """What it gives, its sites met."""
        return self.linear_fc2(trace(Site(layer.layer, "mlp_hidden"), self.hidden(n_BLD)))

    def hidden(self, n: Tensor) -> Tensor:
        """What fc2 reads."""
        x = self.linear_fc1(n)
        if not self.gated:
            return self.activation(x)
        a, b = x.chunk(2, dim=-1)
        return self.activation(a) * b

    def reader(self, name: str) -> Tensor | None:
        """The linear map that reads what comes in (`normed`), or one of its sites."""
        return {"normed": self.linear_fc1.weight, "mlp_hidden": self.linear_fc2.weight}.get(name)

    def initialise(self, generator, depth: int) -> None:
        """As other projections of a block: the one that writes into the stream over √depth."""
        kaiming(self.linear_fc1.weight, generator)
        kaiming(self.linear_fc2.weight, generator)
        self.linear_fc2.weight /= math.sqrt(depth)


class Experts(nn.Module):
    """Several MLPs, each run on the tokens sent to it, and the router that sends them."""

    SITES = ("router", "choice", "margin", "expert_out")
    INERT = {"margin": MARGIN}
    float32_parameters = ("router.weight", "router.bias")  # where its logits are rounded, tokens change their expert

    def __init__(self, config, count: int):
        super().__init__()
        self.probabilities = ROUTERS[config.router_activation]
        self.router = nn.Linear(config.d_model, count)
        self.local_experts = nn.ModuleList(MLP(config) for _ in range(count))

    @property
    def dtype(self) -> torch.dtype:
        return self.local_experts[0].dtype

    def seen(self, layer: Layer, trace, n_BLD: Tensor) -> Tensor:
        """What they give, their sites met; a `choice` that is edited comes with that expert's own probability."""
        at = layer.sites(trace)
        p_BLE = self.probabilities(at("router", self.router(n_BLD.to(self.router.weight.dtype))))
        choice_BL1 = self._choice(layer.layer, trace, p_BLE)
        expert_BLD = at("expert_out", self._sent(n_BLD, choice_BL1))
        return p_BLE.gather(-1, choice_BL1) * expert_BLD

    def _choice(self, layer: int, trace, p_BLE: Tensor) -> Tensor:
        choice, margin = Site(layer, "choice"), Site(layer, "margin")
        choice_BL1 = trace(choice, p_BLE.argmax(dim=-1, keepdim=True))
        if trace.edits(choice) and not 0 <= int(choice_BL1.min()) <= int(choice_BL1.max()) < p_BLE.shape[-1]:
            wrong = int(choice_BL1.min()) if choice_BL1.min() < 0 else int(choice_BL1.max())
            raise UserError(f"edit at site {choice}: expert {wrong}; there are experts 0-{p_BLE.shape[-1] - 1}")
        if trace.edits(margin):
            raise UserError(f"edit at site {margin}: {MARGIN}")
        if trace.wants(margin):
            trace(margin, margins(p_BLE))
        trace.routed(layer, choice_BL1[..., 0], p_BLE)
        return choice_BL1

    def _sent(self, n_BLD: Tensor, choice_BL1: Tensor) -> Tensor:
        """Each token through its expert: tokens are brought together by expert, and each expert runs once."""
        choice_T = choice_BL1.flatten()
        order_T = choice_T.argsort(stable=True)
        counts = torch.bincount(choice_T, minlength=len(self.local_experts)).tolist()
        parts = n_BLD.flatten(0, 1)[order_T].split(counts)
        out_TD = torch.cat([expert(part) for expert, part in zip(self.local_experts, parts, strict=True) if len(part)])
        return out_TD[order_T.argsort()].view_as(n_BLD)

    def reader(self, name: str) -> Tensor | None:
        """The linear maps that read what comes in (`normed`): the router, and every expert a token may be sent to."""
        if name != "normed":
            return None
        rows = [self.router.weight, *(expert.linear_fc1.weight for expert in self.local_experts)]
        return torch.cat([row.to(self.router.weight.dtype) for row in rows])

    def initialise(self, generator, depth: int) -> None:
        """The router small, so that the experts start alike."""
        kaiming(self.router.weight, generator)
        self.router.weight *= 0.1
        self.router.bias.zero_()
        for expert in self.local_experts:
            expert.initialise(generator, depth)


def margins(p_BLE: Tensor) -> Tensor:
    """By how much the best expert's probability is above the second's, BL1."""
    best_BL2 = p_BLE.topk(2, dim=-1).values
    return best_BL2[..., :1] - best_BL2[..., 1:]


def imbalance(router_BLE: Tensor) -> Tensor:
    """E Σ_e f_e P_e: f_e the share of tokens sent to an expert, P_e its mean softmax; 1 when all are alike (Switch)."""
    experts, P_E = router_BLE.shape[-1], router_BLE.softmax(dim=-1).mean(dim=(0, 1))
    sent_E = torch.bincount(router_BLE.argmax(dim=-1).flatten(), minlength=experts).to(P_E)
    return experts * (sent_E / sent_E.sum() * P_E).sum()
