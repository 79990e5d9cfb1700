"""Every variant's random checkpoint in its published layout, and its independent implementation: a line a variant."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import densemamba, retnet
from .checkpoints import MAMBA1, MAMBA2, random_checkpoint
from .falcon_mamba import FALCON, falcon, falcon_checkpoint
from .hyena import SIZES, hyena, hyena_checkpoint
from .moe import PUBLISHED, moe, moe_checkpoint
from .recurrence import inner


class Oracle(NamedTuple):
    """`write(folder, seed)` makes a checkpoint, `logits(written, tokens)` says what it answers: L by vocabulary."""

    write: Callable[[Path, int], object]
    logits: Callable[[object, Sequence[int]], np.ndarray]


def _mamba(config) -> Oracle:
    return Oracle(lambda folder, seed: random_checkpoint(folder, config, seed),
                  lambda weights, tokens: inner(config, weights, tokens).logits)


# keys of a few numbers cancel now and then, and every float32 implementation is then off by 1e-4
WIDE = {**retnet.RETNET, "hidden_size": 96, "query_key_dim": 128}
ORACLES = {
    "densemamba": Oracle(lambda folder, seed: densemamba.random_checkpoint(folder, densemamba.DENSE, seed),
                         lambda weights, tokens: densemamba.run(densemamba.DENSE, weights, tokens).logits),
    "falcon_mamba": Oracle(lambda folder, seed: falcon_checkpoint(folder, FALCON, seed),
                           lambda weights, tokens: falcon(FALCON, weights, tokens).logits),
    "hyena": Oracle(lambda folder, seed: hyena_checkpoint(folder, SIZES["hyena"], seed),
                    lambda weights, tokens: hyena(weights, tokens).logits),
    "mamba1": _mamba({**MAMBA1, "n_layer": 3}),
    "mamba2": _mamba({**MAMBA2, "n_layer": 3}),
    "moe": Oracle(lambda folder, seed: moe_checkpoint(folder, PUBLISHED, seed),
                  lambda weights, tokens: moe(PUBLISHED, weights, tokens).logits),
    "retnet": Oracle(lambda folder, seed: retnet.random_checkpoint(folder, WIDE, seed, loud=1.2),
                     lambda weights, tokens: retnet.inner(WIDE, weights, tokens).logits),
}
