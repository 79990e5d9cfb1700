"""Small random models for tests: two or three layers, float64, every number from a named stream."""
from __future__ import annotations

import torch

from mamba_mi import models
from mamba_mi.config import stream

CONFIGS = {
    "mamba1": {"d_model": 32, "n_layer": 3, "vocab_size": 61, "ssm_cfg": {"d_state": 4}},
    "mamba2": {"d_model": 32, "n_layer": 3, "vocab_size": 61,
               "ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 16, "ngroups": 2}},
    "falcon_mamba": {"model_type": "falcon_mamba", "hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 61, "state_size": 4,
                     "time_step_rank": 4, "tie_word_embeddings": False},
}


def small(variant: str, *, backend: str = "chunked", dtype: str = "float64", seed: int = 0, **sizes):
    """A frozen random model; embeddings of unit size make every layer matter."""
    config = CONFIGS[variant] | sizes
    lm = models.fresh(config, generator=stream(seed, variant), backend=backend, dtype=dtype, embedding_std=1.0)
    return lm.eval().requires_grad_(False)


def tokens(batch: int, length: int, *, seed: int = 0, vocab: int = 61) -> torch.Tensor:
    """Random token ids, batch by length."""
    return torch.randint(0, vocab, (batch, length), generator=stream(seed, "tokens", batch, length))
