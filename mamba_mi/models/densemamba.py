"""DenseMamba on Mamba-1: a layer's output reads its own state and those of the layers before it (He et al. 2024).

A reconstruction: no checkpoint of the paper's DenseMamba is public, and neither is what its projection is. Here, for
layer l with m = min(dense_layers, l) earlier neighbours, n the layer's normed input and h the state of each layer:
    fused_t^l = h_t^l + Σ_{i=1..m} gate_i(n_t) ⊙ proj_i(h_t^{l-i}),    y_t = C_t · fused_t + D v_t
    gate_i(n) = silu(fc2_i(silu(fc1_i n)))   one number a channel E, through a small bottleneck
    proj_i(h) = P_i h                        N by N, shared by the channels, the identity at first
h carries the recurrence, `fused` only feeds the output. P_i acts on N and the gate on E, so what a route adds to y is
gate_i ⊙ (C_t P_i) · h_t^{l-i}: the earlier layer's writes scanned again and read with C_t P_i. No state is ever made,
memory stays linear, and every backend serves. For this the residual stream handed from layer to layer is wider than D:
[D | for each of the last m layers, the latest first: v (E), dt (E), B (N), and where an edit acts within a scan what it
changed there (E by N)]; the last layer hands on D alone. So the routes read the earlier states as they are, edits and all.
A knockout takes out the layer's own writes; with `dense=True` the routes lose the sources' slots too (what an edit made of
an earlier state counts as written at its slot). A knockout in an earlier layer changes its output, not the state routes read.

Shape legend: B batch, L length, D width, E inner, N state, I earlier layers, H = I·E, P = 1, X the wide stream or a part.
Sites: Mamba-1's, and `dense_gate_1` … (gate_i, BLE), `fused` (BLEPN, made only when watched), `dense` (what all routes add
to y, BLE). `state` and `write` are the layer's own.
"""
from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_mi.backends import reference
from mamba_mi.config import UserError
from mamba_mi.models import mamba1, state_spaces
from mamba_mi.models.knocking import knock_out
from mamba_mi.models.mixer import kaiming
from mamba_mi.models.state_spaces import KNOWN_BY, their_name
from mamba_mi.models.variants import Card, Published
from mamba_mi.trace import BLIND, Site

__all__ = ["ABOUT", "KNOWN_BY", "Block", "Config", "parse", "published_config", "recognises", "their_name"]
ABOUT = ("DenseMamba rebuilt from the paper (He et al. 2024) on Mamba-1: no checkpoint of it is public, and its gate and "
         "projection are defined in mamba_mi/models/densemamba.py.")
CARD = Card("DenseMamba: Mamba-1 that reads earlier layers' states (He et al. 2024), a reconstruction", "none published",
            "state-spaces', with a layer of our own name", "a token-by-token recurrence in numpy that holds every state")
PUBLISHED: dict[str, Published] = {}
SSM_KEYS = mamba1.SSM_KEYS | {"dense_layers", "dense_rank"}


@dataclass(frozen=True)
class Config(mamba1.Config):
    """Mamba-1's sizes, how many earlier layers a layer reads, and the width of the gates' bottleneck."""

    dense_layers: int = 2
    dense_rank: int = 0
    variant: str = "densemamba"
    cuts_dense = True  # a knockout may take the routes from earlier layers too

    def floats(self, length: int, watched: bool) -> int:
        """Mamba-1's, and the routes': what they read, gates, scans."""
        mixing_ = 3 * self.d_inner * self.d_state // length + 1
        route = 6 * self.d_inner + 2 * self.d_state + mixing_ + (5 * self.d_inner * self.d_state if watched else 0)
        return super().floats(length, watched) + self.dense_layers * route

    @classmethod
    def of(cls, common: Mapping, ssm: Mapping) -> Config:
        rank = ssm.get("dense_rank", "auto")
        return super().of(common, {**ssm, "dense_rank": math.ceil(common["d_model"] / 16) if rank == "auto" else rank})


class State(NamedTuple):
    """Mamba-1's conv inputs and state, and the states of the earlier layers as this layer scans them again."""

    tail_BKC: Tensor
    h_BHPN: Tensor
    dense_BHPN: Tensor


class Fusing(NamedTuple):
    """What a layer's scan is made of, then its routes: gates, and what the earlier layers wrote, the latest first."""

    v_BLHP: Tensor
    dt_BLH: Tensor
    B_BLGN: Tensor
    C_BLGN: Tensor
    gate_BLIE: Tensor
    v_BLIE: Tensor
    dt_BLIE: Tensor
    B_BLIN: Tensor
    more_BLIX: Tensor  # what edits within their scans changed, E by N; nothing wide where there are none


class Seen:
    """A layer's trace that remembers the states its scan went on with, and what edits changed in it."""

    def __init__(self, trace):
        self.trace, self.grad, self.offset = trace, trace.grad, trace.offset
        self.states, self.changes = [], []

    def wants(self, site) -> bool:
        return True

    def edits(self, site) -> bool:
        return self.trace.edits(site)

    def __call__(self, site: Site, x: Tensor, at: int | None = None) -> Tensor:
        after = self.trace(site, x.view_as(x), at)  # a view, so that gradients tell it from what it was made as
        self.changes.append(after - x)
        if site.name == "state":
            self.states.append(after)
        return after

    def changed(self) -> Tensor:
        """What was written beside dt B v: a changed state at t is as much written at t. BLX, E by N."""
        write_BLEPN, *state_B1EPN = self.changes
        return (write_BLEPN + torch.cat(state_B1EPN, dim=1)).flatten(2)


class Route(nn.Module):
    """The way from one earlier layer: its gate by channel, and its projection of the state."""

    def __init__(self, config: Config):
        super().__init__()
        D, E, N, R = config.d_model, config.d_inner, config.d_state, config.dense_rank
        self.fc1, self.fc2 = nn.Linear(D, R, bias=False), nn.Linear(R, E, bias=False)
        self.proj = nn.Linear(N, N, bias=False)

    def gate(self, n_BLD: Tensor) -> Tensor:
        """How much of each channel's earlier state is let in."""
        return F.silu(self.fc2(F.silu(self.fc1(n_BLD))))


class Block(mamba1.Block):
    """One layer: Mamba-1's, whose scan is read together with those of the layers before it."""

    SCANNED = ("write", "state", "fused")
    ROUTED = ("dense",)

    def __init__(self, config: Config, layer: int, backend):
        super().__init__(config, layer, backend)
        self.dense = nn.ModuleList(Route(config) for _ in range(min(config.dense_layers, layer)))
        self.earlier: tuple[Block, ...] = ()

    @property
    def SITES(self) -> tuple[str, ...]:
        if not self.dense:
            return mamba1.Block.SITES
        gates = (f"dense_gate_{i + 1}" for i in range(len(self.dense)))
        head, tail = mamba1.Block.SITES[:8], mamba1.Block.SITES[8:]
        return (*head, *gates, *tail[:2], "fused", "dense", *tail[2:])

    def meet(self, layers) -> None:
        """Keep the earlier layers, whose A this one scans with; a tuple, so that they are no parts of it."""
        self.earlier = tuple(layers[self.layer - i] for i in range(1, len(self.dense) + 1))

    def forward(self, wide_BLX: Tensor, trace=BLIND, past: State | None = None, keep: bool = True):
        """The wide stream after this layer, and the state to go on from (None unless `keep`)."""
        at = self.sites(trace)
        resid_BLD, written_BLIX = self._opened(wide_BLX)
        resid_BLD = at("resid", resid_BLD)
        n_BLD, uz_BLW = self.enter(at, resid_BLD)
        u_BLE, z_BLE = self.parts(at, uz_BLW)
        v_BLE, tail = self.convolve(u_BLE, past, keep=keep)
        selected = self.select(at, at("conv", v_BLE))
        fusing, A_HN = Fusing(*selected, *self._routes(at, n_BLD, written_BLIX)), -self.A_log.exp()
        edits_fused, changes = trace.edits(Site(self.layer, "fused")), self._changes(trace)
        seen = Seen(trace) if changes or trace.wants(Site(self.layer, "fused")) else None
        y_BLEP, h = self._scan(seen or trace, fusing, A_HN, past, keep)
        dense_BLE, ends = self._dense(fusing, past, keep=keep)
        states = seen.states if trace.wants(Site(self.layer, "fused")) else None
        y_BLEP = self._fused(at, y_BLEP, fusing, dense_BLE, past, states, by_state=trace.grad or edits_fused)
        y_BLEP = knock_out(self, trace, y_BLEP, u_BLE, fusing, A_HN, past)
        out_BLD = self.leave(trace, resid_BLD, z_BLE, y_BLEP)
        out_BLX = self._widened(out_BLD, fusing, written_BLIX, seen.changed() if changes else None)
        return out_BLX, State(tail, h, ends) if keep else None

    def output(self, again, y_BLHP, selected: Fusing, past, states, dense_BL) -> Tensor:
        gone_BL11 = dense_BL[..., None, None]
        selected = selected._replace(v_BLIE=selected.v_BLIE.masked_fill(gone_BL11, 0),
                                     more_BLIX=selected.more_BLIX.masked_fill(gone_BL11, 0))
        dense_BLE, _ = self._dense(selected, past)
        return self._fused(again, y_BLHP, selected, dense_BLE, past, states or None, by_state=True)

    def _changes(self, trace) -> bool:
        """Whether what the scan writes is not all that later layers must be told: an edit in it, or a gradient."""
        sites = [Site(self.layer, name) for name in ("write", "state")]
        return any(trace.edits(site) or trace.grad and trace.wants(site) for site in sites)

    def _opened(self, wide_BLX) -> tuple[Tensor, Tensor]:
        """The residual stream, and what the earlier layers wrote, side by side."""
        D, E, N, routes = self.config.d_model, self.config.d_inner, self.config.d_state, len(self.dense)
        each, width = 2 * E + N, wide_BLX.shape[-1]
        if width not in (D + routes * each, D + routes * (each + E * N)):
            raise UserError(f"layer {self.layer} of a densemamba reads what the {routes} layers before it wrote, and takes a "
                            f"stream {D + routes * each} wide, not {width}: start at layer 0, or from what `through` returned")
        return wide_BLX[..., :D], wide_BLX[..., D:].unflatten(-1, (routes, (width - D) // routes if routes else each))

    def _widened(self, out_BLD, fusing, written_BLIX, changed_BLX) -> Tensor:
        """The stream with what later layers read of this one and of those before it, in the stream's type: dt needs it."""
        onward = min(self.config.dense_layers, self.layer + 1) if self.layer + 1 < self.config.n_layer else 0
        if not onward:
            return out_BLD
        own_BLX = torch.cat([x.to(out_BLD.dtype) for x in (fusing.v_BLHP[..., 0], fusing.dt_BLH, fusing.B_BLGN[:, :, 0])]
                            + ([] if changed_BLX is None else [changed_BLX]), dim=-1)
        parts = own_BLX, *written_BLIX[:, :, :onward - 1].unbind(2)
        width = max(x.shape[-1] for x in parts)
        return torch.cat([out_BLD, *(F.pad(x, (0, width - x.shape[-1])) for x in parts)], dim=-1)

    def _routes(self, at, n_BLD, written_BLIX) -> tuple[Tensor, ...]:
        """Of every earlier layer the gate, v, dt, B and what edits changed of its writes."""
        E, N, kind = self.config.d_inner, self.config.d_state, n_BLD.dtype
        v_BLIE, dt_BLIE, B_BLIN, more_BLIX = written_BLIX.split([E, E, N, written_BLIX.shape[-1] - 2 * E - N], dim=-1)
        gates = [at(f"dense_gate_{i + 1}", route.gate(n_BLD)) for i, route in enumerate(self.dense)]
        gate_BLIE = torch.stack(gates, dim=2) if gates else n_BLD.new_zeros(v_BLIE.shape)
        return gate_BLIE, v_BLIE.to(kind), dt_BLIE.to(self.A_log.dtype), B_BLIN.to(kind), more_BLIX

    def _dense(self, fusing: Fusing, past, *, keep: bool = False) -> tuple[Tensor, Tensor | None]:
        """What the routes add to y, and the earlier layers' last states."""
        if not self.dense:
            start = fusing.v_BLIE
            return torch.zeros_like(fusing.v_BLHP[..., 0]), start.new_zeros(len(start), 0, 1, self.config.d_state)
        y_BLHP, h = self._scan_earlier(fusing, past, keep)
        return (fusing.gate_BLIE * y_BLHP[..., 0].unflatten(2, (len(self.dense), -1))).sum(dim=2), h

    def _scan_earlier(self, fusing: Fusing, past, keep: bool, on_state=None) -> tuple[Tensor, Tensor | None]:
        """What the earlier layers wrote, read with C P_i: one scan of I·E channels in I groups."""
        A_HN = torch.cat([-layer.A_log.to(self.A_log.dtype).exp() for layer in self.earlier])
        C_BLIN = torch.stack([fusing.C_BLGN[:, :, 0] @ route.proj.weight for route in self.dense], dim=2)
        args = fusing.v_BLIE.flatten(2)[..., None], fusing.dt_BLIE.flatten(2), A_HN, fusing.B_BLIN, C_BLIN
        h0 = None if past is None else past.dense_BHPN
        if not (on_state or fusing.more_BLIX.shape[-1]):
            return self.backend.scan(*args, h0=h0, keep_h=keep)
        more_BLHPN = fusing.more_BLIX.flatten(2).unflatten(2, (-1, 1, self.config.d_state)) if fusing.more_BLIX.numel() else 0
        return reference.watched_scan(*args, h0=h0, on_write=lambda w_BLHPN: w_BLHPN + more_BLHPN, on_state=on_state)

    def _fused(self, at, y_BLEP, fusing, dense_BLE, past, states, *, by_state: bool) -> Tensor:
        """y with the routes and the D-skip. Where `states` are there the fused state is made; `by_state`: y is read off it."""
        if not self.dense:
            return self.skip(y_BLEP, fusing.v_BLHP)
        fused_BLEPN = None if states is None else at("fused", self._fused_states(fusing, past, states))
        edited_BLE = at("dense", dense_BLE)
        if fused_BLEPN is None or not by_state:
            return self.skip(y_BLEP + edited_BLE[..., None], fusing.v_BLHP)
        read_BLEP = fused_BLEPN.flatten(2, 3) @ fusing.C_BLGN[:, :, 0, :, None].to(fused_BLEPN.dtype)
        return self.skip(read_BLEP.to(y_BLEP.dtype) + (edited_BLE - dense_BLE)[..., None], fusing.v_BLHP)

    def _fused_states(self, fusing: Fusing, past, states: list[Tensor]) -> Tensor:
        """h + Σ gate_i ⊙ P_i h_i of every position, BLEPN."""
        earlier, fused_BLEPN = [], torch.cat(states, dim=1)
        self._scan_earlier(fusing, past, False, on_state=lambda t, h: earlier.append(h) or h)
        h_BLIEPN = torch.cat(earlier, dim=1).unflatten(2, (len(self.dense), -1))
        for i, route in enumerate(self.dense):
            proj_NN, gate_BLE = route.proj.weight.to(h_BLIEPN.dtype), fusing.gate_BLIE[:, :, i]
            fused_BLEPN = fused_BLEPN + gate_BLE[..., None, None] * (h_BLIEPN[:, :, i] @ proj_NN.T)
        return fused_BLEPN

    @torch.no_grad()
    def initialise(self, generator) -> None:
        """Mamba-1's; gates as linear layers start, projections at the identity."""
        super().initialise(generator)
        for route in self.dense:
            kaiming(route.fc1.weight, generator)
            kaiming(route.fc2.weight, generator)
            nn.init.eye_(route.proj.weight)


LAYERS = {"DenseMamba1": sys.modules[__name__]}


def recognises(raw: Mapping | None, names) -> bool:
    """state-spaces' config.json with a layer of our own name."""
    ssm = raw.get("ssm_cfg") if raw is not None and state_spaces.recognises(raw, names) else None
    return isinstance(ssm, Mapping) and ssm.get("layer") in list(LAYERS)  # a list, for a layer may be anything


def parse(raw: Mapping, where: str, weights=None):
    """This module and the Config; what is not built raises."""
    return state_spaces.parse(raw, where, weights, LAYERS)


def published_config(config: Config) -> dict:
    """state-spaces' config.json, with `dense_layers` and `dense_rank` beside Mamba-1's sizes."""
    return state_spaces.published_config(config, LAYERS)
