"""What blocks share: norms, a layer's contract; of Mamba's the conv, the scan with its costly sites, initial values.

Shape legend: B batch, L length, E inner, H heads, P head width, N state, G groups, C conv channels, K conv width.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_mi.backends import mixing, reference
from mamba_mi.config import UserError
from mamba_mi.models.knocking import Selected, knock_out
from mamba_mi.trace import Site


class State(NamedTuple):
    """What one layer carries from token to token: the conv's last inputs and the SSM state."""

    tail_BKC: Tensor
    h_BHPN: Tensor


class LayerNorm(nn.Module):
    """LayerNorm with a bias, in at least float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.bias, self.eps)

    def read(self, weight: Tensor) -> Tensor:
        """What a linear map reads before this norm, but for the scale of each token: the mean is taken off."""
        read = weight * self.weight
        return read - read.mean(dim=-1, keepdim=True)


class RMSNorm(nn.Module):
    """RMSNorm in at least float32, over each of `groups` equal parts of the width."""

    def __init__(self, width: int, eps: float, groups: int = 1):
        super().__init__()
        self.weight, self.eps, self.groups = nn.Parameter(torch.ones(width)), eps, groups

    def forward(self, x: Tensor, backend=reference, gate: Tensor | None = None) -> Tensor:
        """By that backend; with a `gate` z of x ∘ silu(z), in x's type."""
        if gate is None:
            return backend.norm(x, self.weight, self.eps, groups=self.groups)
        return backend.gated_norm(x, gate, self.weight, self.eps, groups=self.groups)

    def read(self, weight: Tensor) -> Tensor:
        """What a linear map reads before this norm, but for the scale of each token."""
        return weight * self.weight


class Layer(nn.Module):
    """One layer of any variant: `resid_BLD, state = layer(resid_BLD, trace, past, keep)`.

    What it takes and gives may be wider than D: past the residual stream it then carries what later layers read of this
    one. A layer that is given too little raises.
    """

    SITES: tuple[str, ...] = ()  # in the order they are met
    STEADY = False  # what the next tokens need of these is a state of one size, or nothing
    MIXED: str | None = None  # the site of what mixing the tokens gave; None where a layer mixes none
    BEFORE: tuple[str, ...] | None = ()  # sites of the tokens before a pass that its knockouts read; None: they need the sources in the pass
    BY_HEAD: tuple[str, ...] = ()  # sites whose first axis goes head after head
    INERT: Mapping[str, str] = {}  # sites where exchanging the values of two prompts can do nothing, and why
    MATRIX: tuple[str, ...] = ()  # sites that `matrix` is made of
    BALANCED: tuple[str, ...] = ()  # sites that training adds a loss for (`auxiliary_loss`)
    float32_parameters: tuple[str, ...] = ()  # exponentiated or normalised: never narrower

    def __init__(self, config, layer: int, backend):
        super().__init__()
        self.config, self.layer, self.backend = config, layer, backend

    def sites(self, trace):
        """`at("dt", x)`: this layer's way into the trace."""
        return lambda name, x: trace(Site(self.layer, name), x)

    def reader(self, name: str) -> Tensor | None:
        """The linear map that reads this site next, out by width; None where what follows is not linear."""

    def matrix(self, values: Mapping[str, Tensor], rows: Sequence[int] | None, parts: Sequence[int] | None) -> Tensor:
        """M_BHTS of y_t = Σ_s M[t, s] v_s for these query rows and heads or channels; None for all. `values` are those of
        MATRIX's sites over the whole prompt."""
        raise UserError(f"layer {self.layer} of a {self.config.variant} mixes no tokens: it has no mixing matrix")

    def matrices_together(self, values: Mapping[str, Tensor], rows: Sequence[int] | None, how: str) -> Tensor:
        """One M_B1TS for all heads or channels: their mean, or their root mean square ("norm")."""
        batch, length = values[self.MATRIX[0]].shape[:2]
        M_BTS = mixing.over_heads(lambda parts: self.matrix(values, rows, parts), self.config.mixes_by[1], batch * length**2, how)
        return M_BTS[:, None]

    def auxiliary_loss(self, trace) -> Tensor:
        """What it adds to a training's loss, made of its sites BALANCED."""
        raise NotImplementedError

    def meet(self, layers) -> None:
        """The model's layers are all there: one that reads others' weights takes them."""


class Mixer(Layer):
    """A block that mixes tokens by a causal conv and a scan. Subclasses write `forward` in the paper's symbols."""

    SITES = ("resid", "normed", "in_proj", "gate", "conv", "dt", "B", "C", "write", "state", "scan_out", "gated", "out",
             "resid_out")
    STEADY = True
    MIXED = "scan_out"
    BEFORE = ("in_proj", "dt")  # what the writes can be made from again
    MATRIX = ("dt", "B", "C")
    SCANNED = ("write", "state")  # sites within the scan: an edit there runs the token loop
    ROUTED = ()  # sites of what comes from earlier layers, made again with a scan

    def matrix(self, values, rows, parts):
        return self.backend.mixing(*self._mixed(values), rows=rows, heads=parts)

    def matrices_together(self, values, rows, how):
        return self.backend.mixing_over_heads(*self._mixed(values), how=how, rows=rows)[:, None]

    def _mixed(self, values) -> tuple[Tensor, ...]:
        dt_BLH, B_BLGN, C_BLGN = (values[name] for name in self.MATRIX)
        return dt_BLH, -self.A_log.exp().reshape(dt_BLH.shape[2], -1), B_BLGN, C_BLGN

    def reader(self, name: str) -> Tensor | None:
        """The linear map that reads this site next, out by width; None where what follows is not linear."""
        if name == "gated":
            return self.out_proj.weight
        if name == "normed":
            return self.in_proj.weight
        # the norm's scale is one number a token: it changes no direction
        return self.norm.read(self.in_proj.weight) if name == "resid" else None

    def convolve(self, u_BLC: Tensor, past: State | None, own_BLC: Tensor | None = None, keep: bool = False):
        """The conv after its SiLU, and its last inputs (None unless `keep`); `own_BLC` comes in by the current token's
        tap alone."""
        tail = None if past is None else past.tail_BKC
        c_BLC, tail = self.backend.conv(u_BLC, self.conv1d.weight[:, 0], self.conv1d.bias, tail=tail, keep_tail=keep,
                                        silu=own_BLC is None)
        return c_BLC if own_BLC is None else F.silu(torch.addcmul(c_BLC, own_BLC, self.conv1d.weight[:, 0, -1])), tail

    def mix(self, trace, u_BLC, selected: Selected, A_HN, past: State | None, keep: bool):
        """The scan, its D-skip and this layer's knockouts, for which it takes the conv's input `u_BLC`; the last state."""
        y_BLHP, h = self._scan(trace, selected, A_HN, past, keep)
        y_BLHP = self.skip(y_BLHP, selected.v_BLHP)
        return knock_out(self, trace, y_BLHP, u_BLC, selected, A_HN, past), h

    def skip(self, y_BLHP, v_BLHP) -> Tensor:
        """y_t + D v_t; y, which is nobody else's, is written over where no gradient is to be had."""
        given = y_BLHP, v_BLHP, self.D
        if len({x.dtype for x in given}) == 1 and not reference.needs_grad(given):
            return y_BLHP.addcmul_(v_BLHP, self.D[:, None])
        return torch.addcmul(y_BLHP, v_BLHP, self.D[:, None]).to(v_BLHP.dtype)

    def output(self, again, y_BLHP, selected: Selected, past, states, dense_BL) -> Tensor:
        """What a scan that a knockout made again gives; `dense_BL` are slots lost to routes from earlier layers too."""
        return self.skip(y_BLHP, selected.v_BLHP)

    def _scan(self, trace, selected, A_HN, past, keep):
        """The scan, with `write` (dt_t B_t v_t) and `state` (h_t), both BLHPN, made only when somebody watches.

        Watching leaves the backend's result as it is; an edit or a gradient runs the reference's token loop. States that
        are kept at a few positions alone are the backend's too, and no others are held.
        """
        write, state = Site(self.layer, "write"), Site(self.layer, "state")
        args, h0 = (*selected[:2], A_HN, *selected[2:4]), None if past is None else past.h_BHPN
        few = None if trace.wants(write) else trace.few(state)
        with reference.own_types(args[0]):  # autocast would sum in bfloat16 what backends widen
            if few is not None:
                self._show(trace, state, few, args[:4], h0)
            elif trace.wants(write) or trace.wants(state):
                watched = reference.watched_scan(
                    *args, h0=h0, on_write=lambda w: trace(write, w),
                    on_state=(lambda t, h: trace(state, h, at=trace.offset + t)) if trace.wants(state) else None)
                if trace.grad or trace.edits(write) or trace.edits(state):
                    return watched
            return self.backend.scan(*args, h0=h0, keep_h=keep)

    @torch.no_grad()
    def _show(self, trace, state: Site, few: Sequence[int], args, h0) -> None:
        """The states at a few positions of this pass, handed to the trace."""
        if few:
            h_BSHPN = self.backend.states_at(*args, few, h0=h0)
            for t, h_BHPN in zip(few, h_BSHPN.unbind(1), strict=True):
                trace(state, h_BHPN[:, None], at=trace.offset + t)


def kaiming(weight: Tensor, generator, bias: Tensor | None = None) -> None:
    """torch's default for Linear and Conv1d, drawn from `generator`: uniform within 1/√fan_in."""
    bound = 1 / math.sqrt(weight[0].numel())
    for x in (weight,) if bias is None else (weight, bias):
        x.uniform_(-bound, bound, generator=generator)


def softplus_inverse(like: Tensor, generator, low: float = 1e-3, high: float = 1e-1, floor: float = 1e-4) -> Tensor:
    """Biases whose softplus is log-uniform in [low, high]: the published start of dt."""
    u = torch.empty_like(like).uniform_(generator=generator)
    dt = torch.exp(u * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))
