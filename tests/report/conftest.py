import pytest

from mamba_mi.report.tables import read_run

from . import synthetic


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`run(summary, …)` is a folder on disk and the tables read back from it."""

    def make(summary, **kwargs):
        folder = synthetic.write_run(tmp_path_factory.mktemp("run"), summary, **kwargs)
        return folder, read_run(folder)

    return make
