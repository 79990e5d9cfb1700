"""Mechanistic interpretability of Mamba-family language models: `lm = mamba_mi.load("tiny")`.

The names below load when first used, so that `launch.py --help` answers without importing torch.
"""
from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "load": "mamba_mi.models",
    "Site": "mamba_mi.trace", "Trace": "mamba_mi.trace", "BLIND": "mamba_mi.trace",
    "Edit": "mamba_mi.interventions", "StateEdit": "mamba_mi.interventions", "Knockout": "mamba_mi.interventions",
    "Replace": "mamba_mi.interventions", "Add": "mamba_mi.interventions", "Scale": "mamba_mi.interventions",
    "Ablate": "mamba_mi.interventions", "Project": "mamba_mi.interventions", "SwapSubspace": "mamba_mi.interventions",
    "Part": "mamba_mi.interventions",
    "evaluate": "mamba_mi.interventions",
    "Prompt": "mamba_mi.data", "Pair": "mamba_mi.data", "Batch": "mamba_mi.data",
    "attention": "mamba_mi.measure.attention",
    "attention_map": "mamba_mi.report.figures.attention",
    "prompt_heatmap": "mamba_mi.report.figures.knockout_heatmap_prompts",
    "Experiment": "mamba_mi.experiments",
    "UserError": "mamba_mi.config",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"mamba_mi has no {name!r}; it has {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__():
    return __all__
