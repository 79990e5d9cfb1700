"""Numbers and names as a reader wants them: the same in figures, in the report and on the console."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MINUS = "\N{MINUS SIGN}"
NOTHING = "–"
RELATIVE = "relative_probability"  # p in % of the clean run's, whose baseline is 100: its mean change is the field's change in %
HEADLINE = "normalised_logit_difference"  # of patching: figures and sentences are about it
ALPHA = 0.05
TINY = 5e-4  # a mean whose interval ends are all smaller is written with a power of ten
FINE = ("sd", "min", "max", "largest", "tolerance")
DIRECTIONS = {"denoising": "Sufficiency", "noising": "Necessity"}
SITES = {"embed": "embedding", "resid": "residual stream", "normed": "normed input", "in_proj": "input projection", "gate": "gate",
         "conv": "conv output", "dt": "Δ (dt)", "B": "B", "C": "C", "write": "state write", "state": "state",
         "scan_out": "scan output",
         "x0": "gate x0", "x1": "gate x1", "v": "v", "x1v": "x1 v", "filter": "filter", "long_conv": "long convolution",
         "q": "query", "k": "key", "k_gate": "key gate", "v_gate": "value gate", "k_dense": "dense key", "v_dense": "dense value",
         "decay": "decay", "retained": "retention output",
         "dense_gate_1": "dense gate 1", "dense_gate_2": "dense gate 2", "dense_gate_3": "dense gate 3", "fused": "fused state",
         "dense": "dense routes",
         "gated": "gated output", "normed_moe": "normed input of the experts", "router": "router logits", "choice": "chosen expert",
         "margin": "router's margin", "expert_out": "expert output", "out": "mixer output", "resid_mid": "residual stream between",
         "mlp_normed": "normed input of the MLP", "mlp_hidden": "MLP hidden", "mlp_out": "MLP output",
         "resid_out": "residual stream after", "final_norm": "final norm"}
ROLES = {"bos": "BOS", "pre_subject": "before subject", "subject": "whole subject",
         "subject_first": "first subject token", "subject_middle": "middle subject tokens",
         "subject_last": "last subject token", "after_subject": "first token after subject",
         "further": "further tokens", "other": "other tokens", "relation": "relation",
         "between": "between", "last": "last token"}
METRICS = {RELATIVE: "relative probability (%)"}
HEADINGS = {"n_clusters": "clusters", "mean": "mean [95% interval]", "effect_size": "effect size",
            "window_size": "window", "window_start": "start", "p_adjusted": "p (max-T)", "p_bh": "p (BH)", "p_tost": "p (TOST)",
            "control_p": "p (control)",
            "control_p_covariance": "p (covariance)", "control_p_rescaled": "p (rescaled)", "control_mean": "control mean",
            "f1": "F1", "p_shuffled": "p (shuffled)", "control_low": "2.5%", "control_high": "97.5%", "control_match": "match"}


def number(x: float | None, decimals: int = 2) -> str:
    """`0.83`, `−0.05`, `153`: that many places, fewer for large numbers; a rounded zero has no sign."""
    if x is None or math.isnan(x):
        return NOTHING
    decimals = max(0, decimals - (abs(x) >= 10) - (abs(x) >= 100))
    text = f"{x:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def fine(x: float | None) -> str:
    """`3.1e−09`, `0.042`, `0`: two figures at least, however small."""
    if x is None or math.isnan(x) or x == 0 or abs(x) >= 1e-3:
        return "0" if x == 0 else number(x, 3)
    return f"{x:.1e}".replace("-", MINUS)


def interval(low: float | None, high: float | None) -> str:
    """`[.79, .86]`: short enough for a cell of a heatmap."""
    if low is None or high is None:
        return ""
    return f"[{_short(low)}, {_short(high)}]"


def _short(x: float) -> str:
    text = number(x)
    return text.replace("0.", ".", 1) if text.lstrip(MINUS).startswith("0.") else text


def share(row) -> str:
    """A row's mean and interval: `0.83 [0.79, 0.86]`."""
    ends = "" if row["ci_low"] is None else f" [{number(row['ci_low'])}, {number(row['ci_high'])}]"
    return f"{number(row['mean'])}{ends}"


def estimate(mean: float, low: float | None, high: float | None, decimals: int = 2) -> str:
    """A mean and its interval; with powers of ten where all would be 0.000."""
    tiny = 0 < max(abs(x) for x in (mean, low, high) if x is not None) < TINY
    say = fine if tiny else lambda x: number(x, decimals)
    return say(mean) + ("" if low is None else f" [{say(low)}, {say(high)}]")


def p_value(p: float | None) -> str:
    """`< .001`, `.034`, `1`: no leading zero, as p cannot pass 1."""
    if p is None:
        return NOTHING
    if p < 0.001:
        return "< .001"
    return "1" if p >= 0.9995 else f"{p:.3f}"[1:]


def equals(p: float | None) -> str:
    """`= .034`, `< .001`."""
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def stands_out(row) -> bool:
    """A cell that was not tested has no p and is not held to be nothing."""
    return row.get("p_adjusted") is None or row["p_adjusted"] < ALPHA


def role(name: str) -> str:
    """`subject_2` as `subject token 2`."""
    stem, _, index = name.rpartition("_")
    if stem == "subject" and index.isdigit():
        return f"subject token {index}"
    return ROLES.get(name, name.replace("_", " "))


def site(name: str) -> str:
    return SITES.get(name, name)


def metric(name: str) -> str:
    return METRICS.get(name, name.replace("_", " "))


def direction(name: str) -> str:
    return DIRECTIONS.get(name, name).lower()


NAMES = {"direction": direction, "site": site, "role": role, "metric": metric, "source": metric, "split": metric}


def span(values: Sequence[int]) -> str:
    """`200`, or `14–200` where the numbers differ."""
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}–{high}"


def too_few(n: int) -> list[str]:
    """What to say of intervals over so few prompts, if anything."""
    of = f"Only {n} prompt{'s' * (n != 1)}"
    return [] if n >= 50 else [f"{of}: under 50 the intervals are too narrow (a BCa interval covers about 83% at n = 20)."]


def without_ratio(summary: Sequence[dict]) -> list[str]:
    """Prompts that have a probability but no change of it in %."""
    n = {name: max((row["n"] for row in summary if row["metric"] == name), default=0) for name in ("probability", RELATIVE)}
    missing = n["probability"] - n[RELATIVE]
    if not n[RELATIVE] or missing <= 0:
        return []
    return [f"In {missing} of {n['probability']} prompts the answer's clean probability is 0 in this arithmetic: no change in % "
            "exists for them, and they are left out of it; log probability has them."]


def layers(row: Mapping) -> str:
    """Of a window `layers 2–4`, `layer 2`; `layers 0, 2, 4` where others lie between that mix no tokens (row's `layers`)."""
    start, size = row["conditions"]["window_start"], row["conditions"]["window_size"]
    if named := row.get("layers"):
        return f"layer{'s' * (len(named) > 1)} {', '.join(map(str, named))}"
    return f"layer {start}" if size == 1 else f"layers {start}–{start + size - 1}"


def sample(rows: Sequence[dict]) -> str:
    """`n = 200 prompts, 90 clusters` for rows of a summary."""
    clusters = [row["n_clusters"] for row in rows if row.get("n_clusters") is not None]
    prompts = f"n = {span([row['n'] for row in rows])} prompts"
    return f"{prompts}, {span(clusters)} clusters" if clusters else prompts


class Columns(NamedTuple):
    """A printable table: headings, which columns are numbers, rows of text, what all rows share."""

    headings: list[str]
    numeric: list[bool]
    rows: list[list[str]]
    shared: str


def columns(rows: Sequence[dict]) -> Columns:
    """Rows of a summary as text: conditions first, the mean and its interval in one column, no empty columns.

    What every row has in common (one metric, one n) is said once, in `shared`.
    """
    flat = [{**row["conditions"], **row} for row in rows]
    cells = {key: [_text(key, row) for row in flat] for key in _keys(flat)}
    constant = {key: texts[0] for key, texts in cells.items()
                if _is_setting(key, rows) and len(set(texts)) == 1 < len(rows)}
    kept = [key for key, texts in cells.items() if key not in constant and set(texts) != {NOTHING}]
    numeric = [all(isinstance(row.get(key), int | float | None) for row in flat) for key in kept]
    shared = ", ".join(f"{_heading(key)} {text}" for key, text in constant.items() if text != NOTHING)
    return Columns([_heading(key) for key in kept], numeric,
                   [list(row) for row in zip(*(cells[key] for key in kept), strict=True)], shared)


def _keys(rows) -> list[str]:
    """Every key in the order it is first met; the interval's ends are printed with the mean."""
    return [key for key in dict.fromkeys(key for row in rows for key in row)
            if key not in ("conditions", "ci_low", "ci_high")]


def _is_setting(key: str, rows) -> bool:
    return key in ("metric", "n", "n_clusters", "excluded") or any(key in row["conditions"] for row in rows)


def _heading(key: str) -> str:
    return HEADINGS.get(key, key.replace("_", " "))


def _text(key: str, row: dict) -> str:
    value = row.get(key)
    if value is None:
        return NOTHING
    if key in NAMES:
        return NAMES[key](value)
    if key == "mean":
        return estimate(value, row.get("ci_low"), row.get("ci_high"), 3)
    if key in FINE:
        return fine(value)
    if key == "p" or key.startswith(("p_", "control_p")):
        return p_value(value)
    return number(value) if isinstance(value, float) else str(value)
