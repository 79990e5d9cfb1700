"""The attention map hidden in a layer: how much the token at s counts in what the scan gives at t.

The scan is linear in v: y_t = Σ_s M[t, s] v_s, M[t, s] = Σ_n C_t[n] exp(A[n] Σ_{s+1..t} dt) dt_s B_s[n] (Ali et al. 2024,
Dao & Gu 2024). The conv before it, D, the gate and the norm are not in it.
Shape legend: B batch, L length, T query rows, S source positions, H heads (or channels).
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mamba_mi.backends.mixing import OVER, picked
from mamba_mi.config import UserError
from mamba_mi.data import Prompt
from mamba_mi.trace import Site, Trace


@torch.no_grad()
def attention(lm, prompt: str | Prompt | Tensor, layer: int, rows: Sequence[int] | None = None,
              heads: Sequence[int] | None = None, *, channels: Sequence[int] | None = None,
              over_channels: str = "mean", interventions=()) -> Tensor:
    """M_BHTS of one layer for a text, a Prompt or tokens_BL; `rows` are the query positions, all by default.

    Mamba-2 has a map a head. Mamba-1 has one a channel: without `channels` they are taken together, H = 1, by their
    signed mean or by their root mean square ("norm"), never all held at once. Only the layers up to this one are run.
    """
    tokens_BL = tokens_of(lm, prompt)
    layer = int(picked([layer], lm.config.n_layer, "layer"))
    _check(lm, layer, heads, channels, over_channels)
    parts, count = lm.config.mixes_by
    rows = None if rows is None else picked(rows, tokens_BL.shape[1], "rows").tolist()
    heads = None if heads is None else picked(heads, count, "heads").tolist()
    channels = None if channels is None else picked(channels, count, "channels").tolist()
    block = lm.layers[layer]
    with Trace(keep=[Site(layer, name) for name in block.MATRIX], interventions=interventions) as trace:
        lm.through(lm.embed(tokens_BL, trace), trace=trace, last=layer + 1, keep=False)
    values = {name: trace.values[Site(layer, name)] for name in block.MATRIX}
    if parts == "heads" or channels is not None:
        return block.matrix(values, rows, heads or channels)
    return block.matrices_together(values, rows, over_channels)


def tokens_of(lm, prompt: str | Prompt | Tensor) -> Tensor:
    """tokens_BL of a text, a Prompt, or of themselves."""
    if isinstance(prompt, Tensor):
        return prompt
    if isinstance(prompt, Prompt):
        return torch.tensor([prompt.token_ids])
    if lm.tokenizer is None:
        raise UserError(f"{lm.name} has no tokenizer: give tokens_BL, or load it with tokenizer=FILE")
    if not (ids := lm.tokenizer(prompt, add_special_tokens=False).input_ids):
        raise UserError(f"attention of {prompt!r}: the text has no tokens")
    return torch.tensor([ids])


def _check(lm, layer: int, heads, channels, over_channels) -> None:
    parts, count = lm.config.mixes_by
    if layer not in lm.mixing:
        raise UserError(f"layer={layer}: it mixes no tokens in {lm.name}; layers {', '.join(map(str, lm.mixing))} do")
    if parts == "heads" and channels is not None:
        raise UserError(f"channels={list(channels)}: the channels of a head share their map in {lm.name}, a {lm.config.variant}; "
                        "give heads=")
    if parts == "channels" and heads is not None:
        raise UserError(f"heads={list(heads)}: {lm.name} has no heads but {count} channels; give channels=")
    if over_channels not in OVER:
        raise UserError(f"over_channels={over_channels}: there are {', '.join(OVER)}")
