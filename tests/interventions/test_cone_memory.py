"""What a pass and the cone are said to take is what they take: an upper bound, and within a factor of two."""
import weakref

import pytest
import torch

from mamba_mi import models
from mamba_mi.config import stream
from mamba_mi.interventions import Edit, Knockout, Replace, contrast
from mamba_mi.trace import Site
from tests.live_memory import LiveMemory

SSM = {"mamba1": {"layer": "Mamba1"}, "mamba2": {"layer": "Mamba2"}}
VARIANTS = pytest.mark.parametrize("variant", SSM)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def model(variant: str, dtype: str):
    sizes = {"d_model": 128, "n_layer": 2, "vocab_size": 96, "ssm_cfg": SSM[variant]}
    return models.fresh(sizes, generator=stream(0, "memory"), backend="chunked", dtype=dtype).eval().requires_grad_(False)


def test_the_count_sees_what_lives_at_once_and_not_what_is_gone():
    kept = torch.ones(1000)
    with LiveMemory() as live:
        for _ in range(3):
            x = torch.ones(2000) + kept.sum()
        x = x.view(2, -1).mul_(2)
        del x
    assert live.now == 0 and 8000 <= live.most <= 3 * 8000 + 16


@DTYPES
@VARIANTS
@pytest.mark.parametrize("rows, length", [(32, 1), (16, 8), (8, 32), (2, 100), (1, 512)])
def test_a_pass_takes_what_it_is_said_to(variant, dtype, rows, length):
    lm = model(variant, dtype)
    with torch.no_grad():
        resid_BLD = lm.embed(torch.zeros(rows, length, dtype=torch.long))
        with LiveMemory() as live:
            lm.through(resid_BLD, keep=False)
    said = 4 * rows * length * lm.config.floats(length, False)
    assert live.most <= said <= 2 * live.most


def replaced(lm, name: str, at: int, jobs: int, rows: int) -> list:
    return [(Edit(Site(0, name), (at,), Replace(torch.zeros(rows, 1, *lm.widths[name]))),)] * jobs


@DTYPES
@VARIANTS
@pytest.mark.parametrize("name", ["resid", "write", "knockout"])
def test_the_cone_keeps_within_its_memory_and_uses_it(variant, dtype, name):
    lm, (rows, length) = model(variant, dtype), (2, 8) if name == "write" else (4, 32)
    memory = 1 << (26 if name == "write" else 24)  # some jobs' worth
    tokens_BL, half = torch.zeros(rows, length, dtype=torch.long), tuple(range(length // 2, length))
    sets = [(Knockout((0, 1), half, (1,), conv="both"),)] * 120 if name == "knockout" else replaced(lm, name, 1 if name == "write" else length // 2, 120, rows)
    with LiveMemory() as live:
        contrast(lm, tokens_BL, sets, lambda logits_SBV: logits_SBV[..., 0], memory=memory)
    least = {"resid": 2, "write": 3, "knockout": 4}[name]  # whole jobs of a few; of a knockout's scans not all are whole
    assert memory / least <= live.most <= memory


@VARIANTS
def test_the_clean_state_is_held_once_while_it_goes_on(variant):
    sizes = {"d_model": 32, "n_layer": 6, "vocab_size": 96, "ssm_cfg": SSM[variant]}
    lm, made, most = models.fresh(sizes, generator=stream(0, "once"), backend="chunked").requires_grad_(False), [], []
    for layer in lm.layers:
        layer.register_forward_hook(lambda layer, given, out: out[1] and made.append(weakref.ref(out[1].h_BHPN)))
        layer.register_forward_pre_hook(lambda *_: most.append(sum(each() is not None for each in made)))
    tokens_BL = torch.zeros(2, 8, dtype=torch.long)
    contrast(lm, tokens_BL, [(Edit(Site(1, "resid"), (at,), Replace(torch.zeros(1, 32))),) for at in (3, 5, 7)], lambda x: x[..., 0])
    assert len(made) == 3 * 6 and max(most) == 6  # before each layer: its old state, and one of every other
