"""Spoiling a checkpoint, and what its refusal must look like."""
import json

import pytest
import torch

from mamba_mi import UserError, load


def refused(folder, *words):
    """Loading must fail with one line that holds the folder and each of `words`."""
    with pytest.raises(UserError) as caught:
        load(folder, cached=False)
    line = str(caught.value)
    assert "\n" not in line and "\r" not in line
    for word in (str(folder), *words):
        assert word in line, f"{word!r} is not in: {line}"


def rewrite(folder, change):
    """The weights with `change` made to them in place."""
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    change(weights)
    torch.save(weights, folder / "pytorch_model.bin")


def reconfigure(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
