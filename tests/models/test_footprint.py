"""What is reckoned from sizes alone is what a model of these sizes has."""
import pytest
import torch

from mamba_mi import models
from mamba_mi.config import stream
from mamba_mi.interventions import Ledger
from mamba_mi.interventions.exchange import Exchange
from mamba_mi.interventions.patches import Cell
from mamba_mi.models import footprint, mamba1, mamba2
from mamba_mi.trace import Site
from tests.live_memory import LiveMemory

PUBLISHED = mamba1.PUBLISHED | mamba2.PUBLISHED


@pytest.fixture
def small(monkeypatch):
    """One of the names, of a small width and two layers."""
    monkeypatch.setattr(footprint, "SHAPES", {"mamba-130m": (64, 2), "mamba2-130m": (64, 2)})
    monkeypatch.setattr(footprint, "VOCABULARY", dict.fromkeys(("mamba1", "mamba2"), 96))


def made(name: str, dtype: str = "float32"):
    lm = models.fresh(footprint.config_json(name), generator=stream(0, name), dtype=dtype, backend="chunked")
    return lm.eval().requires_grad_(False)


@pytest.mark.parametrize("name", footprint.SHAPES)
def test_the_sizes_make_the_published_number_of_parameters(name):
    assert footprint.footprint(name).parameters == PUBLISHED[name].parameters


def test_every_published_mamba_of_a_size_of_its_own_is_told():
    assert set(PUBLISHED) - set(footprint.SHAPES) == {"mamba-2.8b-slimpj", "miniplm-mamba-130m"}
    assert set(footprint.measured()) <= set(footprint.SHAPES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["mamba-130m", "mamba2-130m"])
def test_weights_and_state_are_those_of_a_model(small, name, dtype):
    lm, told = made(name, dtype), footprint.footprint(name)
    assert sum(x.numel() * x.element_size() for x in lm.parameters()) == getattr(told, dtype)
    if dtype == "float32":
        logits_BLV, past = lm(torch.zeros(3, 5, dtype=torch.long))
        assert sum(x.numel() * 4 for layer in past.layers for x in layer) == 3 * told.state
        rows, length = footprint.LONG
        assert told.logits_long * 15 == 4 * logits_BLV.numel() * rows * length


@pytest.mark.parametrize("name", ["mamba-130m", "mamba2-130m"])
def test_a_pass_and_its_logits_take_what_is_told(small, name, monkeypatch):
    monkeypatch.setattr(footprint, "SHORT", (16, 32))
    lm, told = made(name), footprint.footprint(name)
    with torch.no_grad(), LiveMemory() as live:
        lm(torch.zeros(16, 32, dtype=torch.long))
    whole = told.short + told.logits_short + 16 * told.state
    assert whole / 2 <= live.most <= whole


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba-130m", "mamba2-130m"])
def test_a_patching_run_takes_no_more_than_is_told(small, name, monkeypatch):
    for key, value in {"BATCH": 4, "LENGTH": 24, "CONE": 1 << 23, "READ": 12 * 4 * 96 * 200}.items():
        monkeypatch.setattr(footprint, key, value)
    lm, told = made(name), footprint.footprint(name)
    tokens_BL = torch.zeros(4, 24, dtype=torch.long)
    cells = [Cell(Site(layer, site), str(at), (12, at)) for site in ("resid", "out", "scan_out") for layer in (0, 1) for at in range(13, 24, 2)]
    exchange = Exchange(lm, 1, footprint.CONE, Ledger())
    with torch.no_grad():
        base_BLD, source_BLD = lm.embed(tokens_BL), lm.embed(tokens_BL + 1)
        with LiveMemory() as live:
            exchange(tokens_BL, base_BLD, source_BLD, cells, lambda logits_SBKV: logits_SBKV[:, :, 0, 0])
    assert told.run / 2 <= live.most <= told.run
