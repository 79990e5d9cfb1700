"""Ours beside the published: from a run's effects to an item a published number, with the prompts that make it."""
from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import pyarrow as pa

from mamba_mi.experiments._reproduce_cells import NOTHING, Cell
from mamba_mi.references import Left, Number, Reference
from mamba_mi.report.reproduce_words import KEPT

CHANGE = "change in %"
WHOLE = 0.95  # of the published prompts, from which on a mean is judged; CounterFact without its repeats is .985 of it
Found = Mapping[tuple, Mapping[str, tuple[float, float]]]


def compare(effects: pa.Table, reference: Reference, bare: Mapping[str, float]) -> dict:
    """artifacts/reproduce.json: the items, what was not computed and why, and where the numbers are from.

    `bare` is the published probability of each prompt with nothing blocked, which a change is a change of.
    """
    found, items, left = _by_condition(effects), [], list(reference.not_computed)
    for number in reference.numbers:
        cell = Cell(*number.blocked) if number.blocked else NOTHING
        of = found.get((*cell, number.metric), {})
        item = _mean(number, of, reference) if number.over else _prompts(number, cell, of, reference, bare)
        if item is None:
            left.append(Left(label(cell, number.metric), f"{len(number.values)} prompts", "none of its prompts was measured", number.model))
        else:
            items.append(item)
    return {"reference": reference.name, "about": reference.about, "source": reference.source,
            "tolerance": {metric: list(limits) for metric, limits in reference.tolerance.items()},
            "tolerance_why": reference.tolerance_why, "items": items,
            "not_computed": [{"what": x.what, "published": x.published, "why": x.why} for x in left]}


def label(cell: Cell, metric: str) -> str:
    """`subject to last, layers 6-20: probability`."""
    if cell == NOTHING:
        return f"nothing blocked: {metric}"
    kept = f", {KEPT[cell.timescale]}" if cell.timescale else ""
    return f"{cell.source} to {cell.query}, layers {cell.window_start}-{cell.window_start + cell.window_size - 1}{kept}: {metric}"


def _by_condition(effects: pa.Table) -> Found:
    names = [*Cell._fields, "metric"]
    found: dict[tuple, dict[str, tuple[float, float]]] = {}
    rows = effects.select([*names, "prompt_id", "value", "baseline"]).to_pydict()
    keys = zip(*(rows[name] for name in names), strict=True)
    for key, prompt_id, value, baseline in zip(keys, rows["prompt_id"], rows["value"], rows["baseline"], strict=True):
        found.setdefault(key, {})[prompt_id] = value, baseline
    return found


def _mean(number: Number, of, reference: Reference) -> dict | None:
    if not of:
        return None
    ours = fmean(value for value, _ in of.values())
    item = _item(NOTHING, f"mean {number.metric}", number, len(of), number.over, number.mean, ours)
    judged = len(of) >= WHOLE * number.over  # of a sample the difference is chance as well
    return item | {"agree": int(judged and reference.within("mean", number.mean, ours)), "of": int(judged), "prompts": []}


def _prompts(number: Number, cell: Cell, of, reference: Reference, bare: Mapping[str, float]) -> dict | None:
    rows = [{"prompt_id": i, "published": published, "ours": of[i][0], "difference": of[i][0] - published,
             "within": reference.within(number.metric, published, of[i][0])} for i, published in number.values.items() if i in of]
    if not rows:
        return None
    if number.blocked and number.metric == "probability":
        published, ours = (fmean(100 * (a / b - 1) for a, b in pairs) for pairs in (
            [(number.values[r["prompt_id"]], bare[r["prompt_id"]]) for r in rows], [of[r["prompt_id"]] for r in rows]))
        item = _item(cell, CHANGE, number, len(rows), len(number.values), published, ours)
    else:
        published, ours = (fmean(r[side] for r in rows) for side in ("published", "ours"))
        item = _item(cell, number.metric, number, len(rows), len(number.values), published, ours)
    return item | {"agree": sum(r["within"] for r in rows), "of": len(rows), "prompts": rows}


def _item(cell: Cell, unit: str, number: Number, n: int, n_published: int, published: float, ours: float) -> dict:
    return {"item": label(cell, number.metric), **cell._asdict(), "metric": number.metric, "unit": unit, "n": n,
            "n_published": n_published, "published": published, "ours": ours, "difference": ours - published,
            "source_of_number": number.origin}
