"""Kernels of our own: `cpu` in numba, behind `mamba_mi.backends.compiled`; the others in Triton, behind `mamba_mi.backends.triton`.

Each imports its compiler, so each is imported when it is first run.
"""
import os

PRECISION = "ieee"  # of products of float32: never TF32, whose ten bits lose what float32 promises
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # what triton asks too, when it is imported
