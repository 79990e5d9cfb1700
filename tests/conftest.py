"""For every test: the oracles are at hand as `from oracles import …`, and torch keeps to one thread."""
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

torch.set_num_threads(1)  # two threads on tiny operations can collapse
