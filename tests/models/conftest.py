"""Random checkpoints in the published layout, written once a session, on every backend that runs here."""
import json
import shutil

import pytest
import torch
from oracles import CONFIGS, MAMBA2, random_checkpoint

from mamba_mi import load
from tests.available import SOME


def pytest_generate_tests(metafunc):
    """`backend`: each there is; `variant`: each test config; `small`: the quickest of either model."""
    for name, values in (("backend", SOME), ("variant", CONFIGS), ("small", ("mamba1", "mamba2-groups"))):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, scope="session")


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """published(config, seed=0, calm=True): the checkpoint's folder and its tensors as written."""
    made = {}

    def make(config, seed=0, **how):
        key = json.dumps([config, seed, how])
        if key not in made:
            folder = tmp_path_factory.mktemp("checkpoint")
            made[key] = folder, random_checkpoint(folder, config, seed, **how)
        return made[key]

    return make


@pytest.fixture
def folder(published, tmp_path):
    """A copy of a published Mamba-2 checkpoint, to be spoilt."""
    return shutil.copytree(published(MAMBA2)[0], tmp_path / "spoilt")


@pytest.fixture
def lm(published, small, backend):
    """A two-layer model in float64 on the backend."""
    return load(published(CONFIGS[small])[0], backend=backend, dtype="float64")


@pytest.fixture
def tokens():
    """tokens(rows, length, seed=0): random token ids within every test config's vocabulary."""
    def draw(rows, length, seed=0):
        return torch.randint(0, 45, (rows, length), generator=torch.Generator().manual_seed(seed))

    return draw
