"""Devices are named with their number, and one that is not there is refused in a line."""
import pytest
import torch

from mamba_mi import models
from mamba_mi.config import UserError


@pytest.mark.parametrize("device", ["cuda:3", "cuda"])
def test_a_gpu_that_is_not_there_is_refused_in_a_line(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3 if device == "cuda:3" else 0)
    there = torch.cuda.device_count()
    with pytest.raises(UserError, match=f"^device={device}: this machine has {there} CUDA devices; device=cpu runs everywhere$"):
        models.load("tiny", device=device)


def test_the_last_gpu_there_is_is_taken_by_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert models.device_of("cuda:2") == "cuda:2"
