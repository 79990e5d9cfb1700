"""How far apart two arrays are, in the one measure all tolerances are stated in."""
from __future__ import annotations

import numpy as np


def deviation(ours, truth) -> float:
    """max |ours - truth| over max |truth|. Shapes must agree, and infinities stand in the same places."""
    ours, truth = (np.asarray(x, dtype=np.float64) for x in (ours, truth))
    assert ours.shape == truth.shape, f"shapes {ours.shape} and {truth.shape}"
    finite = np.isfinite(truth)
    assert np.array_equal(ours[~finite], truth[~finite]), "not finite, or not in the same places"
    if not finite.any():
        return 0.0
    return float(np.abs(ours[finite] - truth[finite]).max() / max(np.abs(truth[finite]).max(), 1e-300))
