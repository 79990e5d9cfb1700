"""The hook names of MambaLens and of TransformerLens 4's Mamba adapters, as names of our sites.

A name is in the table only where the quantity is the same and an edit of it reaches the same things. Shapes are ours:
B and C have an axis of groups, the state one of positions, and the position axis is always 1. MambaLens knows Mamba-1
alone; on Mamba-2 its names mean what stands at the same place there.
"""
from __future__ import annotations

import re
from typing import NamedTuple

from mamba_mi.config import UserError, did_you_mean

BLOCK = {  # after "blocks.3."
    "hook_resid_pre": "resid", "hook_in": "resid",
    "hook_normalized_input": "normed", "norm.hook_out": "normed", "hook_mixer_in": "normed", "mixer.hook_in": "normed",
    "mixer.in_proj.hook_in": "normed",
    "hook_in_proj": "in_proj", "mixer.conv1d.hook_in": "in_proj",
    "hook_skip": "gate", "mixer.inner_norm.hook_gate": "gate",
    "hook_ssm_input": "conv", "hook_delta": "dt", "hook_B": "B", "hook_C": "C", "hook_h": "state",
    "hook_ssm_output": "scan_out", "mixer.inner_norm.hook_in": "scan_out",
    "hook_after_skip": "gated", "mixer.inner_norm.hook_out": "gated", "mixer.hook_inner_norm": "gated",
    "mixer.out_proj.hook_in": "gated",
    "hook_out_proj": "out", "hook_mixer_out": "out", "mixer.hook_out": "out", "mixer.hook_ssm_out": "out",
    "mixer.out_proj.hook_out": "out",
    "hook_resid_post": "resid_out", "hook_out": "resid_out",
}
OUTER = {"hook_embed": "embed", "embed.hook_out": "embed", "hook_norm": "final_norm", "ln_final.hook_out": "final_norm",
         "unembed.hook_in": "final_norm"}
_COPY = "a copy that only the block reads; `resid` is the stream itself, `normed` what the block works on"
_PRE_SILU = "the conv before its SiLU; `conv` is after it"
_PRE_SOFTPLUS = "dt before its softplus; `dt` is after it"
_JOINED = "several quantities in one; `in_proj`, `gate` and `dt` are apart here"
_LOGITS = "the logits, which the model returns"
OTHER = {  # what these libraries have and we do not, and what there is instead
    "hook_layer_input": _COPY, "norm.hook_in": _COPY, "hook_conv": _PRE_SILU, "mixer.hook_conv": _PRE_SILU,
    "mixer.conv1d.hook_out": _PRE_SILU, "hook_delta_1": _PRE_SOFTPLUS, "hook_delta_2": _PRE_SOFTPLUS,
    "mixer.dt_proj.hook_in": _PRE_SOFTPLUS, "mixer.dt_proj.hook_out": _PRE_SOFTPLUS,
    "mixer.hook_dt_proj": _PRE_SOFTPLUS, "mixer.in_proj.hook_out": _JOINED, "mixer.hook_in_proj": _JOINED,
    "mixer.x_proj.hook_in": "what x_proj alone reads; `conv` feeds the scan as well",
    "mixer.x_proj.hook_out": "dt, B and C in one; `dt`, `B` and `C` are apart here",
    "mixer.hook_x_proj": "dt, B and C in one; `dt`, `B` and `C` are apart here",
    "hook_A": "a weight; it is `lm.layers[i].A_log`", "hook_A_bar": "exp(dt A); edit `dt`",
    "hook_B_bar": "dt B; `write` is dt B v", "hook_h_start": "the state before the prompt; it is the `past` of the pass",
    "hook_y": "the scan before D v is added; `scan_out` is after it",
    "ln_final.hook_in": "`resid_out` of the last layer", "hook_logits": _LOGITS, "unembed.hook_out": _LOGITS,
}


class Place(NamedTuple):
    """Where a name points: layer (None: not said), our name, and the position where the name has one."""

    layer: int | None
    name: str
    position: int | None = None


def site_name(asked: str) -> str:
    """Our name for a site named without its layer: `hook_resid_pre` is `resid`. Our own names come back as they are."""
    place = place_of(asked)
    if place.layer not in (None, -1) or place.position is not None:
        raise UserError(f"{asked}: the name of a site without layer or position is meant here, such as {place.name}")
    return place.name


def state_name(layer: int, position: int) -> str:
    """The name of a layer's state after one token."""
    return f"blocks.{layer}.hook_h.{position}"


def place_of(asked: str) -> Place:
    """Where any accepted name points: `blocks.3.hook_h.7`, `hook_embed`, `hook_h`, and our own `3.dt`, `dt`."""
    if ours := re.fullmatch(r"(?:(-?\d+)\.)?([A-Za-z_]\w*)", asked):
        layer, name = ours.groups()
        if "hook" not in name:
            outer = -1 if name in OUTER.values() else None
            return Place(outer if layer is None else int(layer), name)
    layer, rest = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.*)", asked, re.S).groups()
    rest, position = re.fullmatch(r"(.*?)(?:(?<=^hook_h)\.(\d+))?", rest, re.S).groups()
    if layer is None and rest in OUTER:
        return Place(-1, OUTER[rest])
    if rest in BLOCK:
        return Place(None if layer is None else int(layer), BLOCK[rest], None if position is None else int(position))
    if rest in OTHER:
        raise UserError(f"{asked}: no site here, it is {OTHER[rest]}")
    if rest.startswith("hook_h."):
        raise UserError(f"{asked}: a position in a name is counted from the prompt's first token, 0, as in blocks.3.hook_h.7")
    known = (*BLOCK, *OUTER)
    raise UserError(f"{asked}: no such site; there are {', '.join(dict.fromkeys((*OUTER.values(), *BLOCK.values())))}, write, and "
                    f"the names of MambaLens and TransformerLens for them, such as blocks.3.hook_resid_pre{did_you_mean(rest, known)}")
