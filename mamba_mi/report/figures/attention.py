"""The hidden attention of one layer, drawn in one call: a panel a head, tokens read along the bottom.

Shape legend: B prompts (one), H heads or channels, T query rows, L tokens.
"""
from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from torch import Tensor

from mamba_mi.config import UserError
from mamba_mi.data import Prompt
from mamba_mi.measure.attention import attention, tokens_of
from mamba_mi.report.figures import house_style, style
from mamba_mi.report.figures.knockout_heatmap_prompts import token_labels

FEW = 8  # panels large enough for every one to have its tokens beside it
TOP, GAP = 0.95, 0.32  # inches


def attention_map(lm, prompt: str | Prompt | Tensor, layer: int, *, rows: Sequence[int] | None = None,
                  heads: Sequence[int] | None = None, channels: Sequence[int] | None = None,
                  over_channels: str = "mean", interventions=()) -> style.Sheet:
    """A figure of `mamba_mi.attention`, asked for in its words: a panel a head (Mamba-2) or channel, or the channels' one.

    Every panel has its own scale, from minus to plus its largest entry, which stands above it.
    """
    tokens_BL = tokens_of(lm, prompt)
    if len(tokens_BL) != 1:
        raise UserError(f"attention_map of {len(tokens_BL)} prompts: give one, such as tokens_BL[:1]")
    M_BHTL = attention(lm, tokens_BL, layer, rows, heads, channels=channels, over_channels=over_channels,
                       interventions=interventions)
    ids = tokens_BL[0].tolist()
    tokens = token_labels([lm.tokenizer.decode([i]) if lm.tokenizer is not None else str(i) for i in ids])
    asked = list(range(len(ids))) if rows is None else [row % len(ids) for row in rows]
    names = _names(lm, M_BHTL.shape[1], heads, channels, over_channels)
    with house_style(), matplotlib.rc_context({"figure.dpi": style.STYLE["savefig.dpi"]}):
        return _figure(M_BHTL[0].double().cpu().numpy(), names, tokens, asked,
                       f"{lm.name} · layer {layer % lm.config.n_layer}")


def _names(lm, count: int, heads, channels, over_channels: str) -> list[str]:
    parts, number = lm.config.mixes_by
    if parts == "heads":
        return [f"head {head % number}" for head in (range(count) if heads is None else heads)]
    if channels is not None:
        return [f"channel {channel % number}" for channel in channels]
    how = {"mean": "mean", "norm": "root mean square"}[over_channels]
    return [f"{how} of {number} channels"]


def _figure(M_HTL: np.ndarray, names: list[str], tokens: list[str], rows: list[int], subtitle: str) -> style.Sheet:
    few = len(names) <= FEW
    columns = min(len(names), 4 if few else 8)
    lines = -(-len(names) // columns)
    pitch = 0.16 if len(names) <= 2 else 0.13 if few else 0.1
    wide, high = max(1.1, pitch * len(tokens)), max(0.35, pitch * len(rows))
    label = 0.15 + 0.5 * pitch * max(map(len, tokens))  # a token's name beside a panel, or turned beneath it
    left, down = 0.1 + label, high + GAP + (label if few else 0)
    figure = style.sheet(max(5.0, left + columns * (wide + GAP) + 0.35), TOP + (lines - 1) * down + high + label + 0.1)
    style.heading(figure, 0.15, "Hidden attention", f"{subtitle} · rows read, columns are read")
    for number, name in enumerate(names):
        line, column = divmod(number, columns)
        place = left + column * (wide + GAP), TOP + line * down, wide, high
        axes = style.place(figure, *place, name)
        most = _panel(axes, M_HTL[number], rows)
        axes.set_title(f"{name}  ±{most:.2g}", loc="left", fontsize=7, pad=3)
        last = number + columns >= len(names)
        _label(axes, tokens, rows, beside=column == 0, beneath=few or last, size=min(7, 44 * pitch))
    bar = style.place(figure, left + columns * (wide + GAP) - GAP + 0.12, TOP, 0.09, min(high, 1.6), "scale")
    figure.colorbar(ScalarMappable(Normalize(-1, 1), style.SUFFICIENCY_MAP), cax=bar).outline.set_visible(False)
    bar.set_yticks([-1, 0, 1], ["−", "0", "+"])
    bar.tick_params(length=2, pad=1.5, labelsize=7)
    return figure


def _panel(axes: Axes, M_TL: np.ndarray, rows: list[int]) -> float:
    """Draw it on its own scale, and return where that ends. What a row cannot read, the tokens after it, is grey."""
    most = float(np.abs(M_TL).max()) or 1.0
    later_TL = np.arange(M_TL.shape[1]) > np.array(rows)[:, None]
    axes.pcolormesh(np.ma.array(M_TL, mask=later_TL), cmap=style.SUFFICIENCY_MAP, norm=Normalize(-most, most))
    axes.set_facecolor("#f1f3f5")
    return most


def _label(axes: Axes, tokens: list[str], rows: list[int], beside: bool, beneath: bool, size: float) -> None:
    axes.set(xlim=(0, len(tokens)), ylim=(len(rows), 0))
    axes.set_xticks(np.arange(len(tokens)) + 0.5, tokens if beneath else [""] * len(tokens), rotation=90, fontsize=size)
    axes.set_yticks(np.arange(len(rows)) + 0.5, [tokens[row] if beside else "" for row in rows], fontsize=size)
    axes.tick_params(length=0, pad=2)
    for spine in axes.spines.values():
        spine.set(visible=True, color=style.FAINT)
