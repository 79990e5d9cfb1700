"""A language model: embedding, blocks, head; one forward for a prompt and for going on with it; start from any layer.

Shape legend: B batch, L length, D width, V padded vocabulary.
"""
from __future__ import annotations

from collections.abc import Iterable
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from mamba_mi.backends import Choice, choose, get, reference
from mamba_mi.config import UserError
from mamba_mi.models.mixer import RMSNorm, State
from mamba_mi.trace import BLIND, NeverReached, Site, Trace

PART = 1 << 10  # tokens: on a CPU, of what is made of more at once each piece comes in fresh pages, which cost as much as it does


@dataclass(frozen=True)
class Past:
    """Where a pass stopped: how many tokens it has seen, and the state after them of each layer from `first` on."""

    length: int
    layers: tuple[State, ...]
    first: int = 0

    def of(self, layer: int) -> State:
        """That layer's state; a past of other layers raises."""
        if not self.first <= layer < self.first + len(self.layers):
            raise UserError(f"this past holds layers {self.first}-{self.first + len(self.layers) - 1}, not {layer}: "
                            "go on through the layers it came from")
        return self.layers[layer - self.first]


class Sites(tuple):
    """Every Site of a model; `"dt" in lm.sites` asks for a name, `Site(3, "dt") in lm.sites` for one place."""

    def __init__(self, sites):
        self.names = tuple(dict.fromkeys(site.name for site in self))
        self._known = frozenset((*self, *self.names))

    def __contains__(self, item) -> bool:
        return item in self._known


class LM(nn.Module):
    """Any variant: `logits_BLV, past = lm(tokens_BL, trace=BLIND, past=None)`.

    Logits of rows that pad the vocabulary are -inf. `tokenizer` is None when the checkpoint came without one.
    """

    def __init__(self, config, variant, backend, choice: Choice, *, name: str, tokenizer=None):
        super().__init__()
        self.config, self.choice, self.name, self.tokenizer = config, choice, name, tokenizer
        self.source, self.fingerprint = "", ""
        self.embedding = nn.Embedding(config.padded_vocab, config.d_model)
        self.layers = nn.ModuleList(variant.Block(config, i, backend) for i in range(config.n_layer))
        for layer in self.layers:
            layer.meet(self.layers)
        self.norm_f = getattr(variant, "FinalNorm", RMSNorm)(config.d_model, config.eps)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.d_model, config.padded_vocab, bias=False)

    @cached_property
    def sites(self) -> Sites:
        inner = (Site(i, name) for i, layer in enumerate(self.layers) for name in layer.SITES)
        return Sites((Site(-1, "embed"), *inner, Site(-1, "final_norm")))

    def demand(self, asked: Iterable[Site]) -> None:
        """Raise NeverReached for sites that this model lacks, in words: the name, or the name in that layer."""
        if not (missing := sorted(site for site in asked if site not in self.sites)):
            return
        layer, name = missing[0]
        there = [site.layer for site in self.sites if site.name == name]
        every = len(there) > 2 and there == list(range(there[0], there[-1] + 1))
        spelt = f"{there[0]}-{there[-1]}" if every else ", ".join(map(str, there))
        why = (f"{self.name} has {name} in layer{'s' * (len(there) > 1)} {spelt}, not in {layer}" if there else
               f"{self.name} is a {self.config.variant} and has no {name}; its sites (lm.sites) are {', '.join(self.sites.names)}")
        raise NeverReached(f"never reached: {', '.join(map(str, missing))}; {why}")

    @cached_property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """The axes of each site's value beyond batch and position, by name: seen on one token, in the first layers that have it."""
        first = {site.name: site for site in reversed(self.sites)}  # where each is met first
        with torch.no_grad(), Trace(keep=first.values()) as trace:
            resid_BLD = self.embed(torch.zeros(1, 1, dtype=torch.long), trace)
            last = 1 + max(site.layer for site in first.values())
            self.unembed(self.through(resid_BLD, trace=trace, last=last, keep=False)[0], trace)
        return {site.name: tuple(x.shape[2:]) for site, x in trace.values.items()}

    @cached_property
    def mixing(self) -> tuple[int, ...]:
        """The layers that mix tokens, hence those a knockout can act in."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.MIXED)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the matrices; A, dt, norms and the state are held in at least float32."""
        return self.embedding.weight.dtype

    def on(self, backend: str) -> LM:
        """The same weights, run by another backend; nothing is copied but the modules' shells."""
        other, choice = copy(self), choose(backend, self.device.type)
        layers = []
        for layer in self.layers:
            layer = copy(layer)
            layer.backend = get(choice.used)
            layers.append(layer)
        other._modules = self._modules | {"layers": nn.ModuleList(layers).train(self.training)}
        other.choice = choice
        return other

    def forward(self, tokens_BL: Tensor, trace=BLIND, past: Past | None = None) -> tuple[Tensor, Past]:
        """Logits of every position, and the past to hand back in to go on with the next tokens."""
        self._check(tokens_BL)
        resid_BLD = self.embed(tokens_BL, trace, past)
        resid_BLD, past = self.through(resid_BLD, trace=trace, past=past)
        return self.unembed(resid_BLD, trace), past

    def embed(self, tokens_BL: Tensor, trace=BLIND, past: Past | None = None) -> Tensor:
        """The residual stream before layer 0, in at least float32; starts the trace's pass."""
        trace.begin(past.length if past else 0, tokens_BL.shape[1])
        x_BLD = self.embedding(tokens_BL.to(self.device))
        return trace(Site(-1, "embed"), x_BLD.to(self.norm_f.weight.dtype))

    def through(self, resid_BLD: Tensor, *, trace=BLIND, past: Past | None = None, first: int = 0,
                last: int | None = None, keep: bool = True) -> tuple[Tensor, Past | None]:
        """The residual stream from before layer `first` to before layer `last` (default: after the last layer).

        The past returned covers the layers gone through; None when `keep` is False, which saves making it.
        """
        last = self.config.n_layer if last is None else last
        offset, states = past.length if past else 0, []
        trace.join(offset, resid_BLD.shape[1])
        self.demand(trace.asked)
        if (size := self._at_once(resid_BLD, trace)) < resid_BLD.shape[1]:
            parts = []
            for part in resid_BLD.split(size, 1):
                part, past = self.through(part, past=past, first=first, last=last)
                parts.append(part)
            return torch.cat(parts, 1), past if keep else None
        for i in range(first, last):
            resid_BLD, state = self.layers[i](resid_BLD, trace, past.of(i) if past else None, keep)
            states.append(state)
        return resid_BLD, Past(offset + resid_BLD.shape[1], tuple(states), first) if keep else None

    def _at_once(self, resid_BLD: Tensor, trace) -> int:
        """How many tokens of a prompt go through the layers together: all, unless a state of one size is all that the next
        need of them, and nobody watches."""
        rows, length, _ = resid_BLD.shape
        if (rows * length <= PART or trace is not BLIND or self.device.type != "cpu" or not all(layer.STEADY for layer in self.layers)
                or reference.needs_grad((resid_BLD, *self.parameters()))):
            return length
        return max(64, PART // rows // 64 * 64)  # whole chunks

    def unembed(self, resid_BLD: Tensor, trace=BLIND) -> Tensor:
        """Logits of whatever positions are given; padded vocabulary rows are -inf."""
        return self.logits(self.normed(resid_BLD, trace))

    def normed(self, resid_BLD: Tensor, trace=BLIND) -> Tensor:
        """What the head reads; of what is wider than the stream, the stream alone."""
        return trace(Site(-1, "final_norm"), self.norm_f(resid_BLD[..., :self.config.d_model]).to(self.dtype))

    def logits(self, x_BLD: Tensor, only_BX: Tensor | None = None) -> Tensor:
        """What the head makes of it, in at least float32; with `only_BX` of a few tokens alone, row r's being
        `only_BX[r % len(only_BX)]`."""
        head_VD = self.embedding.weight if self.lm_head is None else self.lm_head.weight
        if only_BX is not None:
            few_BXD = head_VD[only_BX.to(self.device)]
            few_BXD = few_BXD.repeat(len(x_BLD) // len(few_BXD), 1, 1)
            return (x_BLD @ few_BXD.transpose(1, 2)).to(self.norm_f.weight.dtype)
        logits_BLV = (x_BLD @ head_VD.T).to(self.norm_f.weight.dtype)
        logits_BLV[..., self.config.vocab_size:] = -torch.inf  # in place: it is ours until it is returned, and large
        return logits_BLV

    def reader(self, site: Site) -> Tensor | None:
        """The linear map that reads a site next, out by width; None where what follows is not linear.

        The residual stream is read through the next norm's weight by the next block, after the last by the head.
        """
        layer, name = site
        if 0 <= layer < self.config.n_layer and (own := self.layers[layer].reader(name)) is not None:
            return own
        if name in ("embed", "out", "mlp_out", "resid_out"):  # a mixer's output is read where it has joined the stream
            layer, name = layer + 1, "resid"
        if layer < self.config.n_layer and layer >= 0:
            return self.layers[layer].reader(name)
        head_VD = (self.embedding if self.lm_head is None else self.lm_head).weight
        return head_VD if name == "final_norm" else self.norm_f.read(head_VD)

    @torch.no_grad()
    def generate(self, tokens_BL: Tensor, n: int, *, trace=BLIND, temperature: float = 0.0, generator=None) -> Tensor:
        """The n tokens that follow, greedily or sampled at `temperature`, through the recurrent state."""
        logits_BLV, past = self(tokens_BL, trace=trace)
        out = []
        for i in range(n):
            next_B1 = _draw(logits_BLV[:, -1], temperature, generator)[:, None]
            out.append(next_B1)
            if i + 1 < n:
                logits_BLV, past = self(next_B1, trace=trace, past=past)
        return torch.cat(out, dim=1)

    @torch.no_grad()
    def float64_logits(self, tokens_BL: Tensor) -> Tensor:
        """Logits by the reference backend in float64, one layer at a time upcast, so a large model still fits."""
        resid_BLD = self.embedding(tokens_BL.to(self.device)).double()
        for layer in self.layers:
            precise = type(layer)(self.config, layer.layer, reference).to(self.device).double()
            precise.load_state_dict(layer.state_dict())
            precise.meet(self.layers)
            resid_BLD, _ = precise(resid_BLD, keep=False)
        head = self.embedding if self.lm_head is None else self.lm_head
        x_BLD = deepcopy(self.norm_f).double()(resid_BLD[..., :self.config.d_model])
        rows = head.weight[:self.config.vocab_size].split(1 << 12)  # a whole vocabulary in float64 is a gigabyte
        return torch.cat([x_BLD @ part.double().T for part in rows], dim=-1)

    def _check(self, tokens_BL: Tensor) -> None:
        if tokens_BL.ndim != 2 or tokens_BL.numel() == 0:
            raise UserError(f"tokens must have shape (batch >= 1, length >= 1), not {tuple(tokens_BL.shape)}")
        if tokens_BL.dtype not in (torch.int64, torch.int32):
            raise UserError(f"tokens must be int64 or int32, not {tokens_BL.dtype}")
        low, high = int(tokens_BL.min()), int(tokens_BL.max())
        if low < 0 or high >= self.config.padded_vocab:
            raise UserError(f"token id {high if low >= 0 else low} is outside this model's vocabulary of "
                            f"{self.config.vocab_size}: the tokenizer and the model do not belong together")


def _draw(logits_BV: Tensor, temperature: float, generator) -> Tensor:
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    return torch.multinomial((logits_BV / temperature).softmax(dim=-1).cpu(), 1, generator=generator)[:, 0]
