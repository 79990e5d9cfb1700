"""models/numerics.json, which the table of variants is made of: measured again, and no kinder than what is measured."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import deviation
from oracles.registry import ORACLES

from mamba_mi import load
from mamba_mi.models import variants

LENGTHS, SEEDS = (1, 2, 3, 5, 7, 33, 64, 70), (0, 1)
BOUND = {"float32": 1e-5, "float64": 1e-10}


def measured(variant: str, dtype: str, folder: Path) -> float:
    """The largest deviation over lengths, of two checkpoints and two prompts each."""
    write, logits = ORACLES[variant]
    worst = 0.0
    for seed in SEEDS:
        written = write(folder / f"{variant}-{seed}", seed)
        lm = load(folder / f"{variant}-{seed}", dtype=dtype, device="cpu", cached=False)
        for length in LENGTHS:
            tokens_BL = torch.randint(0, 45, (2, length), generator=torch.Generator().manual_seed(length))
            truth = np.stack([logits(written, row)[:, :45] for row in tokens_BL.tolist()])
            worst = max(worst, deviation(lm(tokens_BL)[0][..., :45], truth))
    return worst


def test_every_variant_has_an_oracle_and_its_numbers():
    assert set(ORACLES) == set(variants.modules()) == set(variants.numerics())


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("kind", ORACLES)
def test_the_numbers_told_are_those_measured(kind, dtype, tmp_path):
    told = variants.numerics()[kind][dtype]
    off = measured(kind, dtype, tmp_path)
    assert off <= told <= BOUND[dtype] and told <= 20 * off


if __name__ == "__main__":  # writes the file anew: python -m tests.models.test_numerics
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as scratch:
        numbers = {variant: {dtype: 2 * measured(variant, dtype, Path(scratch)) for dtype in BOUND} for variant in sorted(ORACLES)}
    text = json.dumps({v: {k: float(f"{x:.1e}") for k, x in each.items()} for v, each in numbers.items()}, indent=1)
    (variants.HERE / "numerics.json").write_text(text + "\n", encoding="utf-8")
