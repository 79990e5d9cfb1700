"""A report's page, made up: the long texts and odd characters of a real one."""
from __future__ import annotations

from mamba_mi.report.html import Page, headline


def page(summary: list[dict], figures, **changes) -> Page:
    content = {
        "title": "Activation patching on tiny: where the subject’s information sits, and when it moves",
        "question": "At which layer and position does the model hold what it needs to answer, and when does "
                    "the last token take it over?",
        "setting": {"model": "tiny (Mamba-2, 6 layers, 706k parameters)", "dataset": "facts, seed 0",
                    "sites": "resid, out, scan_out", "backend": "chunked, float32, cpu",
                    "headline metric": "normalised logit difference",
                    "statistics": "BCa by subject, sign-flip with 999 draws",
                    "checkpoint": "sha256 4be1…09"},
        "selection": {"used": 200, "answered wrongly": 41, "no partner of the same template": 1260},
        "findings": [
            "The subject’s tokens alone restore the answer up to layer 1: .98 [.94, 1.01], n = 200.",
            "The last token takes over between layers 2 and 4: from .16 [.12, .20] to .94 [.90, .98].",
            "Sufficiency and necessity agree within .1; the largest gap is at layer 3, whole subject."],
        "table": headline(summary, "normalised_logit_difference", 8),
        "complete": summary,
        "figures": figures,
        "caveats": ["The tiny model lives in a world of 128 people; nothing here is evidence beyond it.",
                    "Intervals cover one seed of training, not another model trained alike.",
                    "3 prompts a cell were excluded: clean and corrupt are too close to divide by."],
        "reproduce": "python launch.py experiment=patching model=tiny dataset=facts seed=0",
        "config_yaml": "seed: 0\nmodel:\n  name: tiny\n",
        "manifest": {"status": "done", "run_id": "3f9c2a7e", "versions": {"torch": "2.13.0"}},
    }
    return Page(**{**content, **changes})
