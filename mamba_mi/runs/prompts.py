"""prompts.json, and how many prompts met which fate."""
from __future__ import annotations

from ..data import Pair
from ..measure.selection import Selection


def fates(selection: Selection, train: Selection) -> dict[str, int]:
    """How many prompts were used, dropped for which reason, and never looked at."""
    found = {"used": len(selection.items), "used to fit": len(train.items), **selection.reasons(),
             "not needed": selection.unseen}
    return {fate: count for fate, count in found.items() if count}


def prompt_records(selection: Selection, train: Selection) -> list[dict]:
    """prompts.json: every prompt that was looked at, used or dropped, with the reason."""
    records: dict[str, dict] = {}
    for item in selection.items:
        sides = (("clean", item.clean), ("corrupt", item.corrupt)) if isinstance(item, Pair) else (("clean", item),)
        for side, prompt in sides:
            record = records.setdefault(prompt.prompt_id, {
                "prompt_id": prompt.prompt_id, "text": prompt.text, "token_ids": list(prompt.token_ids),
                "target": prompt.target, "target_id": prompt.target_id,
                "spans": {name: list(span) for name, span in prompt.spans.items()}, "cluster": prompt.cluster,
                "template": prompt.template, "kept": True, "why": None, "used_as": [], "corrupt": None})
            record["used_as"] = sorted({*record["used_as"], side})
            if side == "clean" and isinstance(item, Pair):
                record["corrupt"] = item.corrupt.prompt_id
    fitted = {prompt.prompt_id: prompt.text for pair in train.items for prompt in (pair.clean, pair.corrupt)}
    left = [*((i, text, "used to fit, not measured") for i, text in fitted.items()),
            *((d.prompt_id, d.text, d.why) for d in (*train.dropped, *selection.dropped))]
    dropped = {i: {"prompt_id": i, "text": text, "kept": False, "why": why} for i, text, why in left if i not in records}
    return [*records.values(), *dropped.values()]
