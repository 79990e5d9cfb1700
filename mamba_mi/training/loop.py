"""AdamW under a warm-up and a cosine. Killed and started again, it ends on the same bits.

That holds where step s takes all its data from (seed, s), on the CPU and with the same number of threads.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from mamba_mi.config import UserError
from mamba_mi.together import Alone
from mamba_mi.training import checkpointing

UNDECAYED = ("A_log", "dt_bias", "D", "conv", "short_filter", "filter_fn")  # parts of names; so are norms and biases, being vectors


@dataclass(frozen=True)
class Recipe:
    """The optimiser and its schedule: the rate rises for `warmup` steps and falls to `floor` of `lr` by a cosine."""

    steps: int
    lr: float = 4e-3
    warmup: int = 100
    floor: float = 0.02
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    checkpoint_every: int = 200
    examine_every: int = 400


class Source(Protocol):
    """Data that stands somewhere: a checkpoint keeps where."""

    def state(self) -> dict: ...

    def restore(self, state: Mapping) -> None: ...


class _Drawn:
    """Data that is a function of the step, and stands nowhere."""

    def state(self) -> dict:
        return {}

    def restore(self, state: Mapping) -> None:
        pass


def fit(module: nn.Module, loss_at: Callable[[int], Tensor | Iterable[Tensor]], recipe: Recipe, scratch: Path, *, identity: str,
        tokens: int, watch: Callable[[dict], None] | None = None, examine: Callable[[], dict] | None = None,
        source: Source | None = None, ranks: Alone | None = None) -> list[dict]:
    """Train `module` in place and return its curve: step, loss, lr and tokens_per_second of every step.

    `loss_at(s)` is the loss of step s = 0, 1, …, over `tokens` tokens, or its parts one after another, whose sum it is: each
    is let go of before the next is made. `identity` says what decides the weights besides the recipe: a checkpoint of
    anything else is refused. `watch` sees each new point; what `examine` returns is kept with every `examine_every`-th
    point, and must change nothing. Of several `ranks` each hands over its own parts, and the first alone keeps and examines.
    """
    source, ranks = source or _Drawn(), ranks or Alone()
    groups = parameter_groups(module, recipe.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas)
    identity = f"{identity}; {asdict(recipe) | {'checkpoint_every': None, 'examine_every': None}}"
    ranks.wait()  # until the first has cleared away what is not to be gone on from
    curve = _resume(module, optimiser, scratch, identity, source)
    ranks.wait()  # none may write while another still reads
    for step in range(len(curve), recipe.steps):
        started = time.perf_counter()
        rate = learning_rate(step, recipe)
        loss = _step(module, optimiser, loss_at(step), rate, recipe.clip, ranks)
        curve.append({"step": step + 1, "loss": loss, "lr": rate,
                      "tokens_per_second": tokens / (time.perf_counter() - started)})
        if ranks.rank > 0:
            continue
        if examine and _due(step, recipe.examine_every, recipe.steps):
            curve[-1] |= examine()
        if watch:
            watch(curve[-1])
        if _due(step, recipe.checkpoint_every, recipe.steps):
            checkpointing.write(scratch, {"identity": identity, "model": module.state_dict(), "optimiser": optimiser.state_dict(),
                                          "curve": curve, "source": source.state()})
    return curve


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate of step 0, 1, …: warm-up and cosine multiplied."""
    warmed = min(1.0, (step + 1) / max(1, recipe.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return recipe.lr * warmed * (recipe.floor + (1 - recipe.floor) * cosine)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; A_log, dt_bias, D, convs, norms and biases do not: zero is no neutral value of theirs."""
    decayed, kept = [], []
    for name, parameter in module.named_parameters():
        plain = parameter.ndim >= 2 and not any(part.startswith(UNDECAYED) for part in name.split("."))
        (decayed if plain else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def _due(step: int, every: int, steps: int) -> bool:
    return (step + 1) % every == 0 or step + 1 == steps


def _step(module, optimiser, parts: Tensor | Iterable[Tensor], rate: float, clip: float, ranks: Alone) -> float:
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64)
    for part in [parts] if isinstance(parts, Tensor) else parts:
        part.backward()
        total += part.detach().cpu()
    loss = ranks.sum(total.to(next(module.parameters()).device)).item()
    if not math.isfinite(loss):
        raise UserError(f"training broke down: the loss is {loss}; try a lower method.lr")
    ranks.sum_gradients(module.parameters())
    torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
    optimiser.step()
    return loss


def _resume(module, optimiser, scratch: Path, identity: str, source: Source) -> list[dict]:
    """Take up what the last checkpoint left: the curve so far, empty when there is none."""
    kept = checkpointing.read(scratch, identity)
    if kept is None:
        return []
    module.load_state_dict(kept["model"])
    optimiser.load_state_dict(kept["optimiser"])
    source.restore(kept.get("source", {}))
    return kept["curve"]
