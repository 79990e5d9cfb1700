"""What the models and backends are held against: written from the published equations alone."""
from . import retnet
from .attention import mixing_matrix
from .checkpoints import CONFIGS, MAMBA1, MAMBA2, random_checkpoint, shapes, with_ssm
from .compare import deviation
from .knockout import Knock, knocked, knocks_of
from .recurrence import Inner, causal_conv, inner, mamba1, mamba2, scan

__all__ = ["CONFIGS", "MAMBA1", "MAMBA2", "Inner", "Knock", "causal_conv", "deviation", "inner", "knocked", "knocks_of", "mamba1", "mamba2",
           "mixing_matrix", "random_checkpoint", "retnet", "scan", "shapes", "with_ssm"]
