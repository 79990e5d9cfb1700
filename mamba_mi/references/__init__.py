"""Published numbers to hold a model against: small tables of facts with their source, and files of the user's own.

A file is JSON: `prompts`, each a text with its target or a row of CounterFact; `numbers`, each a metric, what is blocked
(query, source, window_size; none of them: nothing) and a value a prompt, for a window one list for each start;
`not_computed`, what is published and not measured here, and why. `model` says of which model a number is; a number
without one is of whatever model is run.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mamba_mi.config import UserError, did_you_mean
from mamba_mi.references.reading import KINDS, Asked, Left, Number, parse, want

__all__ = ["KINDS", "Asked", "Left", "Number", "Reference", "names", "read"]


@dataclass(frozen=True)
class Reference:
    """A file's contents. `tolerance` is by metric: absolute and relative to the published number; a user's file has a `path`."""

    name: str
    about: str
    source: str
    models: Mapping[str, Mapping]
    tolerance: Mapping[str, tuple[float, float]]
    tolerance_why: str
    prompts: Mapping[str, Asked]
    numbers: tuple[Number, ...]
    not_computed: tuple[Left, ...]
    fingerprint: str
    path: str | None = None

    def of(self, model: str) -> Reference:
        """The part that is about this model; a UserError where there is none."""
        numbers = tuple(n for n in self.numbers if n.model in (None, model))
        left = tuple(x for x in self.not_computed if x.model in (None, model))
        if not numbers:
            there = ", ".join(dict.fromkeys(n.model for n in self.numbers))
            known = f" (of {model} it has {'; '.join(f'{x.what}: {x.why}' for x in left)})" if left else ""
            raise UserError(f"{self.asked} has no number that is computed here for model={model}{known}; it has some for {there}"
                            + ("" if self.path else "; reference.path=FILE takes numbers of your own"))
        wanted = {i for n in numbers for i in n.values}
        return replace(self, numbers=numbers, not_computed=left,
                       prompts={i: p for i, p in self.prompts.items() if i in wanted})

    @property
    def asked(self) -> str:
        """The reference as the command names it."""
        return f"reference.path={self.path}" if self.path else f"reference={self.name}"

    def within(self, metric: str, published: float, ours: float) -> bool:
        """Whether two numbers agree."""
        absolute, relative = self.tolerance[metric]
        return abs(ours - published) <= absolute + relative * abs(published)


def names() -> list[str]:
    """The references that ship."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.json"))


def read(name: str, path: str | None = None) -> Reference:
    """The reference of that name, or the one in a user's file."""
    if path is None and name not in names():
        raise UserError(f"reference={name}: there are {', '.join(names())}{did_you_mean(name, names())}; "
                        "reference.path=FILE takes numbers of your own")
    file = Path(path).expanduser() if path is not None else Path(__file__).with_name(f"{name}.json")
    asked = f"reference.path={path}" if path is not None else f"reference={name}"
    if not file.is_file():
        beside = [f.name for f in file.parent.glob("*.json")]
        raise UserError(f"{asked}: no such file{did_you_mean(file.name, beside)}")
    text = file.read_bytes()
    try:
        found = json.loads(text)
    except ValueError as e:
        raise UserError(f"{asked}: not a JSON file ({str(e).splitlines()[0]})") from None
    want(isinstance(found, dict), asked, "the file is one object with prompts and numbers")
    try:
        prompts, numbers, left = parse(found, asked)
    except (TypeError, KeyError, AttributeError, ValueError) as e:
        raise UserError(f"{asked}: not in the shape of a reference ({type(e).__name__}: {str(e).splitlines()[0]}); "
                        "mamba_mi/references/published.json is an example") from None
    tolerance = {"probability": (1e-5, 1e-3), "hit": (0, 0), "logit_difference": (1e-2, 0), "mean": (1e-3, 0)}
    for metric, limits in found.get("tolerance", {}).items():
        want(metric in tolerance, asked, f"tolerance has {', '.join(tolerance)}, not {metric}{did_you_mean(metric, tolerance)}")
        want(isinstance(limits, list) and len(limits) == 2, asked, f"tolerance of {metric}: give [absolute, relative]")
        tolerance[metric] = tuple(map(float, limits))
    return Reference(name if path is None else file.stem, found.get("about", ""), found.get("source", ""),
                     found.get("models", {}), tolerance, found.get("tolerance_why", ""), prompts, numbers, left,
                     hashlib.sha256(text).hexdigest(), path)
