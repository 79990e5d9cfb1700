"""Triton kernels behind `mamba_mi.backends.triton`. The modules import triton, so they are imported when first run."""
import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # what triton asks too, when it is imported
