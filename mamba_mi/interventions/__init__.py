"""What can be done to a forward pass, and the light cone that does many of them at once."""
from mamba_mi.interventions.cone import contrast, evaluate
from mamba_mi.interventions.edits import Edit, StateEdit
from mamba_mi.interventions.jobs import Ledger
from mamba_mi.interventions.knockout import Knockout
from mamba_mi.interventions.ops import Ablate, Add, Part, Project, Replace, Scale, SwapSubspace

__all__ = ["Ablate", "Add", "Edit", "Knockout", "Ledger", "Part", "Project", "Replace", "Scale", "StateEdit", "SwapSubspace",
           "contrast", "evaluate"]
