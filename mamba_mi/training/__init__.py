"""Learning weights: one deterministic loop that resumes where it stopped, its checkpoints, what it is fed."""
from mamba_mi.training.loop import Recipe, fit, learning_rate, parameter_groups

__all__ = ["Recipe", "fit", "learning_rate", "parameter_groups"]
