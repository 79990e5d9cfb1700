"""What can be done to a forward pass, and the light cone that does many of them at once."""
from mamba_mi.interventions.cone import Ledger, contrast, evaluate
from mamba_mi.interventions.edits import Ablate, Add, Edit, Project, Replace, Scale, StateEdit, SwapSubspace

__all__ = ["Ablate", "Add", "Edit", "Ledger", "Project", "Replace", "Scale", "StateEdit", "SwapSubspace", "contrast",
           "evaluate"]
