"""How much memory a default patching run takes beyond its weights: one model of random weights, in a process of its own.

A batch of pairs, every site that patching exchanges by default, and as many cells from the middle of the prompt as fill
cone.memory; a full run repeats these chunks. `python benchmarks/footprint_worker.py mamba-130m` prints bytes.
"""
import os
import sys

if os.environ.get("MALLOC_MMAP_THRESHOLD_") is None:  # read when the process starts: a freed tensor's memory goes back at once
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"})

import torch
from memory import reset, status

from mamba_mi import models
from mamba_mi.config import stream
from mamba_mi.interventions import Ledger
from mamba_mi.interventions.exchange import Exchange
from mamba_mi.interventions.patches import Cell
from mamba_mi.models import footprint
from mamba_mi.trace import Site


def cells(lm) -> list[Cell]:
    """Every layer and site at the last token; pairs of positions from the middle on in a late layer, so many that a chunk is full:
    what lives at once is as much as in an early one, and there is less to wait for."""
    last, names = footprint.LENGTH - 1, ("resid", "out", "scan_out")
    places = [Site(layer, name) for layer in range(lm.config.n_layer) for name in names]
    middle = footprint.LENGTH // 2
    return [*(Cell(site, "last", (last,)) for site in places),
            *(Cell(Site(lm.config.n_layer - 2, name), f"{at}", (middle, at)) for name in names for at in range(middle + 1, last))]


def peak(name: str, dtype: str) -> int:
    """Bytes beyond the model and its tokens."""
    torch.set_num_threads(1)
    lm = models.fresh(footprint.config_json(name), generator=stream(0, name), dtype=dtype).eval().requires_grad_(False)
    clean_BL, corrupt_BL = (torch.randint(lm.config.vocab_size, (footprint.BATCH, footprint.LENGTH), generator=stream(0, side))
                            for side in ("clean", "corrupt"))
    exchange = Exchange(lm, 1, footprint.CONE, Ledger())
    lm(clean_BL[:1, :2])  # what the first call loads is the library's
    before = reset()
    exchange(clean_BL, lm.embed(corrupt_BL), lm.embed(clean_BL), cells(lm), lambda logits_SBKV: logits_SBKV[:, :, 0].amax(-1))
    return status("VmHWM") - before


if __name__ == "__main__":
    with torch.no_grad():
        print(peak(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "float32"))
