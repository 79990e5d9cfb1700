"""Distributed alignment search: the subspace in which an exchange moves the answer the most (Geiger et al. 2023).

Shape legend: B prompts, L length, R rank, D width of the site.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_mi.data import Batch, roles
from mamba_mi.interventions.edits import Edit
from mamba_mi.interventions.ops import SwapSubspace
from mamba_mi.interventions.patches import watch
from mamba_mi.trace import Site

RATE = 1e-2  # Adam's, on orthonormal directions


def align(lm, batches: Sequence[Batch], site: Site, role: str, start_RD: Tensor, *, steps: int) -> Tensor:
    """The subspace after `steps` of gradient descent from `start_RD`, R by D, orthonormal.

    The loss is the cross entropy of the other prompt's answer after the exchange, clean into corrupt and corrupt
    into clean in turn. From a random start it needs hundreds of steps to reach what it starts from here.
    """
    directions_RD = start_RD.clone().double().requires_grad_(True)
    optimiser = torch.optim.Adam([directions_RD], lr=RATE)
    usable = [batch for batch in batches if role in roles(batch.length, batch.spans)]
    for step in range(steps):
        batch = usable[step // 2 % len(usable)]
        into, source = (batch.tokens_BL, batch.corrupt_BL) if step % 2 else (batch.corrupt_BL, batch.tokens_BL)
        answers = batch.corrupt if step % 2 else batch.prompts
        at = roles(batch.length, batch.spans)[role]
        with torch.no_grad():
            values, _ = watch(lm, lm.embed(source), [site])
        exchange = Edit(site, at, SwapSubspace(values[site][:, list(at)], directions_RD))
        with torch.enable_grad():
            _, logits_BKV = watch(lm, lm.embed(into), (), interventions=[exchange])
            target_B = torch.tensor([p.target_id for p in answers], device=logits_BKV.device)
            loss = F.cross_entropy(logits_BKV[:, -1].double(), target_B)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return torch.linalg.qr(directions_RD.detach().T)[0].T
