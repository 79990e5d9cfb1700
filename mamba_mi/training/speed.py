"""How much of the machine a training uses: the model's own arithmetic, and what a plain matrix product reaches here."""
from __future__ import annotations

import time

import torch

SIDES = {"cpu": 1024, "cuda": 8192}  # long enough that starting it takes no time beside it
TRIES = 5


def flops_per_token(lm) -> float:
    """Floating point operations that training on one token takes, whatever a kernel makes of it: three times the forward's.

    Forward: 2 for every weight of a matrix (the head's, too; looking an embedding up takes none) and every tap of a conv;
    and for a recurrence over E channels of N states 5 E N (decay h + x B, then C h), and where each has its own decay 2 E N
    to make it (dt A, and its exponential). What is computed twice to save memory is not counted; neither are norms and gates.
    """
    matrices = sum(p.numel() for name, p in lm.named_parameters() if p.ndim >= 2 and not name.endswith(("A_log", "embedding.weight")))
    if lm.lm_head is None:
        matrices += lm.embedding.weight.numel()
    scans = 0
    for layer in lm.layers:
        if (A := getattr(layer, "A_log", None)) is not None:
            states = lm.config.d_inner * lm.config.d_state
            scans += (5 + 2 * (A.ndim == 2)) * states
    return 3.0 * (2 * matrices + scans)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of a square matrix product, the best of a few: a rate that was reached, here and
    with these threads, not one that is printed on a box."""
    side = SIDES[device.type]
    x = torch.ones(side, side, device=device, dtype=dtype)
    best = min(_seconds(x) for _ in range(TRIES))
    return 2 * side**3 / best


def _seconds(x: torch.Tensor) -> float:
    _settle(x)
    start = time.perf_counter()
    x @ x
    _settle(x)
    return time.perf_counter() - start


def _settle(x: torch.Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
