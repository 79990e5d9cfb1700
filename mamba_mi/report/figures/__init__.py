"""The catalogue of figures. An experiment lists the names it wants; a figure reads a run's tables only.

A new figure is one function from RunTables to (figure, caption) and one line in CATALOGUE.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib import style as matplotlib_style
from matplotlib.figure import Figure as Sheet

from mamba_mi.config import UserError, did_you_mean
from mamba_mi.report.figures.classified import classified_questions
from mamba_mi.report.figures.corpus import corpus_curve, corpus_perplexity
from mamba_mi.report.figures.evaluate import capability_profile
from mamba_mi.report.figures.info_flow import info_flow
from mamba_mi.report.figures.info_flow_bands import info_flow_bands, info_flow_splits, info_flow_timescales
from mamba_mi.report.figures.info_flow_smear import info_flow_smear
from mamba_mi.report.figures.knockout_heatmap import heatmap_mean
from mamba_mi.report.figures.knockout_heatmap_prompts import heatmap_normalised, heatmap_prompts
from mamba_mi.report.figures.patching_curves import patching_curves
from mamba_mi.report.figures.patching_heads import patching_heads
from mamba_mi.report.figures.patching_map import patching_map
from mamba_mi.report.figures.patching_subspace import patching_subspace
from mamba_mi.report.figures.paths_violins import paths_violins
from mamba_mi.report.figures.prompts import prompts_levels
from mamba_mi.report.figures.reproduce import reproduce_curves, reproduce_scatter
from mamba_mi.report.figures.style import STYLE
from mamba_mi.report.figures.training import training_curve, training_recall
from mamba_mi.report.tables import RunTables


@dataclass(frozen=True)
class Figure:
    """An entry of the catalogue: what it shows, and the function that draws it and writes its caption."""

    shows: str
    draw: Callable[[RunTables], tuple[Sheet, str]]


CATALOGUE = {
    "patching_map": Figure("layer x position role, sufficiency beside necessity", patching_map),
    "patching_curves": Figure("the effect over layers for each position role", patching_curves),
    "patching_heads": Figure("layer x head, a panel a site and position role", patching_heads),
    "patching_subspace": Figure("a fitted subspace over layers beside random ones", patching_subspace),
    "heatmap_mean": Figure("position role x window of layers knocked out, the mean over prompts", heatmap_mean),
    "heatmap_prompts": Figure("token x window of layers knocked out, the answer's probability prompt by prompt", heatmap_prompts),
    "heatmap_normalised": Figure("the same in % of each prompt's clean probability", heatmap_normalised),
    "info_flow": Figure("hit rate and change of p over windows, a curve a source", info_flow),
    "info_flow_bands": Figure("change of p with intervals, a panel a conv policy", info_flow_bands),
    "info_flow_smear": Figure("one source under every conv policy, beside random tokens", info_flow_smear),
    "info_flow_splits": Figure("change of p by where the subject stands", info_flow_splits),
    "info_flow_timescales": Figure("change of p by slow, mid and fast heads", info_flow_timescales),
    "paths_violins": Figure("probabilities on both paths, and their differences", paths_violins),
    "prompts_levels": Figure("facts and words of generated prompts, level by level", prompts_levels),
    "capability_profile": Figure("right answers by category, in three metrics, beside shuffled answers", capability_profile),
    "reproduce_scatter": Figure("ours against the published, a point a number", reproduce_scatter),
    "reproduce_curves": Figure("the change under knockouts over window starts, ours on the published", reproduce_curves),
    "classified_questions": Figure("data set x category, questions kept of those found", classified_questions),
    "corpus_curve": Figure("loss beside a unigram model's, learning rate and speed over training steps", corpus_curve),
    "corpus_perplexity": Figure("perplexity by source, the model's and a unigram's", corpus_perplexity),
    "training_curve": Figure("loss, learning rate and speed over training steps", training_curve),
    "training_recall": Figure("right answers on each task", training_recall),
}


def draw(name: str, tables: RunTables) -> tuple[Sheet, str]:
    """The figure of that name and its caption. Rows it needs and the run lacks are a UserError."""
    if name not in CATALOGUE:
        raise UserError(f"no figure {name!r}; the catalogue has {', '.join(CATALOGUE)}"
                        f"{did_you_mean(name, CATALOGUE)}")
    with house_style():
        return CATALOGUE[name].draw(tables)


def save(figure: Sheet, folder: str | Path, name: str) -> Path:
    """Writes figures/<name>.png and .pdf under the run's folder, and returns the PNG's path.

    The same figure gives the same bytes: no dates, no version of matplotlib.
    """
    target = Path(folder) / "figures" / f"{name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    with house_style():
        figure.savefig(target, metadata={"Software": None})
        nothing = {"CreationDate": None, "Producer": None, "Creator": None}
        figure.savefig(target.with_suffix(".pdf"), metadata=nothing)
    return target


def house_style():
    """Ours on matplotlib's defaults, whatever the user's own matplotlibrc says; undone on leaving."""
    return matplotlib_style.context(["default", STYLE])
