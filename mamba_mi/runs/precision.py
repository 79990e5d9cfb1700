"""How far the run's arithmetic is from float64: measured once a checkpoint, backend, dtype and device.

Shape legend: B batch, L length, V vocabulary.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from mamba_mi.runs import files

CACHE = ".deviations.json"


def deviation(lm, token_ids: Sequence[int], logs: Path) -> dict:
    """The largest difference between this model's logits and the float64 reference's on one prompt, cached in `logs`.

    `relative` is over the largest |logit|. The prompt's tokens are noted with it.
    """
    tokens_BL = torch.tensor([list(token_ids)])
    key = hashlib.sha256(json.dumps([lm.fingerprint, lm.choice.used, str(lm.dtype), str(lm.device),
                                     tokens_BL.tolist()]).encode()).hexdigest()[:16]
    known = _known(logs / CACHE)
    if key not in known:
        known = _known(logs / CACHE) | {key: _measure(lm, tokens_BL)}
        files.write_json(logs / CACHE, known)
    return known[key]


def _measure(lm, tokens_BL) -> dict:
    worst, largest = (x_B.item() for x_B in off_float64(lm, tokens_BL))
    return {"max_abs": worst, "relative": worst / largest, "tokens": tokens_BL[0].tolist(),
            "backend": lm.choice.used, "dtype": str(lm.dtype).removeprefix("torch."), "device": str(lm.device)}


@torch.no_grad()
def off_float64(lm, tokens_BL) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each prompt the largest |difference| of this model's logits from the float64 reference's, and the largest of these."""
    ours_BLV = lm(tokens_BL)[0][..., :lm.config.vocab_size].double()
    exact_BLV = lm.float64_logits(tokens_BL)
    return (ours_BLV - exact_BLV).abs().amax(dim=(1, 2)), exact_BLV.abs().amax(dim=(1, 2))


def _known(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # only a cache: what cannot be read is measured again
        return {}
