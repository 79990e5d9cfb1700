"""Do the two paths of one model say the same? Their differences prompt by prompt, and a tolerance that is asserted.

In exact arithmetic the scan is y = M v, whichever way it is computed: what differs is rounding, or a fault.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mamba_mi.config import UserError
from mamba_mi.experiments import _paths
from mamba_mi.experiments._paths import DEVIATION, PATHS, Paths, both
from mamba_mi.measure.effects import PREDICTION
from mamba_mi.measure.stats import tost
from mamba_mi.report.paths_words import (
    ATTENTION,
    ORDINARY,
    differences,
    levels,
    listed,
    table_of_differences,
    verdict,
)

TOLERANCES = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 0.2, "float16": 0.05}
# Seen at most: 1.3e-6 in float32 on the trained tiny; on random models of mamba2-130m's size that amplify rounding 4.6e-5
# in float32, .064 in bfloat16, .016 in float16.
LARGE = 0.1  # a difference that is large whatever the arithmetic
COMPARED = ("probability", "max_probability")


@dataclass(frozen=True)
class Knobs(_paths.Knobs):
    """`tolerance`: the largest difference of a probability that passes; "auto" goes by the run's dtype (TOLERANCES)."""

    tolerance: Any = "auto"


class ComparePaths(Paths):
    """Hits, probabilities, predictions and logits of the attention path beside the ordinary one's."""

    Knobs = Knobs
    question = "Does the model answer the same on the attention path as on the ordinary one?"
    metrics = ("probability", "max_probability", "hit", PREDICTION, DEVIATION)

    def check(self) -> None:
        super().check()
        asked = self.knobs.tolerance
        if asked != "auto" and (isinstance(asked, bool) or not isinstance(asked, int | float) or not 0 <= asked < np.inf):
            raise UserError(f"method.tolerance={asked}: give a number from 0 on, such as 1.0e-4, or auto")

    @property
    def tolerance(self) -> float:
        """What the two paths' probabilities may differ by."""
        if self.knobs.tolerance == "auto":
            return TOLERANCES[str(self.lm.dtype).removeprefix("torch.")]
        return float(self.knobs.tolerance)

    def setting_in_words(self):
        by = f" (auto, for {str(self.lm.dtype).removeprefix('torch.')})" if self.knobs.tolerance == "auto" else ""
        return {**super().setting_in_words(), "tolerance": f"{self.tolerance:g}{by}"}

    def completed(self, rows, table, items):
        clusters, texts = self.clusters(items), {p.prompt_id: p.text for p in items}
        for row in super().completed(rows, table, items):
            if row["conditions"]["path"] == ATTENTION and row["metric"] in (*COMPARED, DEVIATION):
                ids, ordinary_N, attention_N = both(table, row["metric"])
                row.update(self._spread(ids, attention_N - ordinary_N, clusters, texts, row["metric"] in COMPARED))
            elif row["conditions"]["path"] == ATTENTION and row["metric"] == "hit":
                _, ordinary_N, attention_N = both(table, PREDICTION)
                row.update(predictions_differ=int((ordinary_N != attention_N).sum()))
        return rows

    def _spread(self, ids, off_N, clusters, texts, asserted: bool) -> dict:
        """What the mean of the differences does not say: their spread, their extremes, and where the largest is."""
        worst = int(np.abs(off_N).argmax())
        told = {"sd": float(off_N.std(ddof=1)) if len(off_N) > 1 else None, "min": float(off_N.min()), "max": float(off_N.max()),
                "largest": float(abs(off_N[worst])), "largest_at": f"{ids[worst]}: {texts[ids[worst]]}"}
        if not asserted:
            return told
        of_N = np.unique([clusters[i] for i in ids], return_inverse=True)[1]
        mean_C1 = (np.bincount(of_N, weights=off_N) / np.bincount(of_N))[:, None]
        p = tost(mean_C1, -self.tolerance, self.tolerance)[0]
        return told | {"over_0.1": int((np.abs(off_N) > LARGE).sum()), "tolerance": self.tolerance,
                       "over_tolerance": int((np.abs(off_N) > self.tolerance).sum()),
                       "p_tost": float(p) if np.isfinite(p) else None}

    def tables(self, effects, items):
        return {"mismatches": self._mismatches(effects, {p.prompt_id: p for p in items})}

    def _mismatches(self, effects, prompts) -> list[dict]:
        """Every prompt on which hit or prediction differ, those that differ most in probability first."""
        ids, *predicted = both(effects, PREDICTION)
        numbers = {metric: both(effects, metric)[1:] for metric in ("probability", "max_probability", "hit")}
        found = []
        for n in np.flatnonzero(predicted[0] != predicted[1]):
            prompt = prompts[ids[n]]
            sides = {path: {"pred": self.predicted(predicted[i][n]), "pred_id": int(predicted[i][n]),
                            "hit": bool(numbers["hit"][i][n]), "true_prob": float(numbers["probability"][i][n]),
                            "max_prob": float(numbers["max_probability"][i][n])}
                     for i, path in enumerate(PATHS)}
            differs = ["hit", "prediction"] if sides[ORDINARY]["hit"] != sides[ATTENTION]["hit"] else ["prediction"]
            found.append({"prompt_id": ids[n], "text": prompt.text, "target": prompt.target, "differs": differs, **sides})
        return sorted(found, key=lambda m: -abs(m[ORDINARY]["true_prob"] - m[ATTENTION]["true_prob"]))

    def listings(self, run):
        return listed(run.artifact("mismatches.json"))

    def headline(self, summary):
        return table_of_differences(summary)

    def findings(self, summary):
        return [*levels(summary), *differences(summary)]

    def verdict(self, summary):
        return verdict(summary)
