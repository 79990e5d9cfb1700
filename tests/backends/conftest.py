"""Every test here that takes `backend` runs on each one there is."""
from mamba_mi import backends
from tests.available import BACKENDS


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", [backends.get(name) for name in BACKENDS], ids=BACKENDS)
