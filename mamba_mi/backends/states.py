"""States at chosen positions, for a backend that has no more than its scan.

Shape legend: B batch, L length, H heads, P head width, N state, G groups, S positions.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mamba_mi.backends.mixing import picked


def by_scan(scan: Callable) -> Callable[..., Tensor]:
    """The verb `states_at`, by `scan` from each position to the next."""

    def states_at(v_BLHP, dt_BLH, A_HN, B_BLGN, positions: Sequence[int], *, h0=None, dt_write=None) -> Tensor:
        """The contract of `mamba_mi.backends`: the scan as far as the last position, cut after each."""
        each, back = picked(positions, dt_BLH.shape[1], "positions").unique(return_inverse=True)
        states, start = [], 0
        for end in (each + 1).tolist():
            part = slice(start, end)
            write = None if dt_write is None else dt_write[:, part]
            # read with B, for want of a C: what is read is left
            _, h0 = scan(v_BLHP[:, part], dt_BLH[:, part], A_HN, B_BLGN[:, part], B_BLGN[:, part], h0=h0, dt_write=write)
            states.append(h0)
            start = end
        return torch.stack([states[k] for k in back.tolist()], dim=1)

    return states_at
