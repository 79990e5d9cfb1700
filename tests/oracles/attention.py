"""The matrix of y = M v, entry by entry, as its definition says: numpy, float64."""
from __future__ import annotations

import numpy as np


def mixing_matrix(dt_LH, A_HN, B_LGN, C_LGN):
    """M[h, t, s] = sum_n C_t[n] exp(A[n] sum_{s+1..t} dt) dt_s B_s[n], 0 for s > t."""
    length, heads = dt_LH.shape
    M_HTS = np.zeros((heads, length, length))
    for h in range(heads):
        group = h // (heads // B_LGN.shape[1])
        for t in range(length):
            for s in range(t + 1):
                decay_N = np.exp(A_HN[h] * dt_LH[s + 1:t + 1, h].sum())
                M_HTS[h, t, s] = dt_LH[s, h] * (C_LGN[t, group] * decay_N * B_LGN[s, group]).sum()
    return M_HTS
