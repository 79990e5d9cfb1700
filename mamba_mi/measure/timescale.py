"""How long each part of a layer remembers: its effective horizon, and slow, mid and fast thirds of a layer.

A state decays by exp(dt A) a token, so at the mean dt it is down to 1/e after 1 / (-A mean dt) tokens. Mamba-2 has one
decay a head. Mamba-1 has N a channel: the channel's horizon is their geometric mean, the horizon of its mean log decay.
Shape legend: B prompts, L tokens, H heads (Mamba-1: channels), N states.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mamba_mi.config import UserError
from mamba_mi.data import Prompt, batches
from mamba_mi.trace import Site, Trace

THIRDS = ("slow", "mid", "fast")  # the longest horizons first


def check(lm) -> None:
    """Raise where there is no step of time, hence no horizon."""
    if lacking := [layer for layer in lm.mixing if Site(layer, "dt") not in lm.sites]:
        raise UserError(f"timescales: {lm.name} is a {lm.config.variant} and has no dt at layer {lacking[0]}, hence no horizon; "
                        "method.timescales=[all] needs none")


@torch.no_grad()
def horizons(lm, prompts: Sequence[Prompt], size: int = 32) -> list[Tensor]:
    """The horizons in tokens of the heads of every layer that mixes tokens (Mamba-1: its channels), float64; dt is averaged over every token."""
    check(lm)
    sites = [Site(layer, "dt") for layer in lm.mixing]
    total, count = dict.fromkeys(sites, 0.0), 0
    for batch in batches(prompts, size):
        with Trace(keep=sites) as trace:
            lm.through(lm.embed(batch.tokens_BL), trace=trace, keep=False)
        count += batch.tokens_BL.numel()
        for site in sites:
            total[site] = total[site] + trace.values[site].double().sum(dim=(0, 1)).cpu()
    return [horizon(lm.layers[site.layer].A_log, total[site] / count) for site in sites]


def horizon(A_log: Tensor, dt_H: Tensor) -> Tensor:
    """1 / (-A mean dt), of `A_log` by head or by channel and state; the geometric mean over a channel's states."""
    A_log_HN = A_log.detach().double().cpu().reshape(len(dt_H), -1)
    return torch.exp(-A_log_HN.mean(dim=1)) / dt_H


def thirds(horizon_H: Tensor) -> dict[str, tuple[int, ...]]:
    """Which heads or channels are slow, mid and fast: thirds by horizon, the longest horizons are slow.

    What three does not divide goes to the slower thirds; of equal horizons the lower number is the slower.
    """
    if len(horizon_H) < len(THIRDS):
        raise UserError(f"timescales: {len(horizon_H)} heads cannot be split into slow, mid and fast")
    order = torch.argsort(horizon_H, descending=True, stable=True)
    return {name: tuple(sorted(part.tolist())) for name, part in zip(THIRDS, torch.tensor_split(order, len(THIRDS)), strict=True)}
