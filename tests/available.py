"""The backends that run on this machine, found as the package finds them: a new one is tested by existing."""
from collections.abc import Collection, Sequence

import pytest

from mamba_mi import backends

BACKENDS = backends.available()


def at_once(few: Collection, each: Sequence) -> list:
    """Of these, `few` are for `make test`; the others run among the slow tests, for they tell the same with more time."""
    assert set(few) <= set(each)
    return [x if x in few else pytest.param(x, marks=pytest.mark.slow) for x in each]


# the one that needs nothing, and the one that `auto` takes on a CPU
SOME = at_once([name for name in BACKENDS if name in ("chunked", "compiled")], BACKENDS)
