"""What a reader must know where a sweep sets model families side by side: what is the same thing in all, and what is not."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from mamba_mi.report.words import Columns, site

HEADINGS = ["model", "family", "parameters", "layers", "layers that mix tokens", "by", "what mixing gives", "conv reaches"]


def differ(models: Mapping[str, Mapping]) -> list[str]:
    """In sentences; nothing where all are of one family. `models` are manifests' `model`, by the model's name."""
    kinds = _by(models, "variant")
    if len(kinds) < 2:
        return []
    said = [f"The models are of {len(kinds)} families: " + "; ".join(f"{', '.join(names)} {_is(names)} {kind}" for kind, names in kinds.items())
            + ". The residual stream and what a mixer adds to it are the same thing in all of them."]
    if len(mixed := _by(models, "mixed")) > 1:
        said.append("What the mixing of tokens gives is another quantity in each: " + "; ".join(
            f"{site(name)} in {', '.join(names)}" for name, names in mixed.items()) + ". Their numbers stand side by side, and are no contrast.")
    if some := {name: each for name, each in models.items() if len(each["mixing"]) < each["layers"]}:
        said.append("A layer is not the same step in all: " + "; ".join(
            f"{name} mixes tokens in layers {', '.join(map(str, each['mixing']))} of {each['layers']} alone" for name, each in some.items()) + ".")
    if lacking := [name for name, each in models.items() if each["conv"] == 1]:
        said.append(f"{', '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} no conv: what a conv carries past a slot elsewhere "
                    "has no counterpart there.")
    return said + [f"{name}: {each['about']}" for name, each in models.items() if each["about"]]


def table(models: Mapping[str, Mapping]) -> list[tuple[str, Columns]]:
    """The models side by side, where they are of several families."""
    if len(_by(models, "variant")) < 2:
        return []
    rows = [[name, each["variant"], f"{each['parameters']:,}", str(each["layers"]), _layers(each), f"{each['parts'][1]} {each['parts'][0]}",
             site(each["mixed"]), f"{each['conv'] - 1} tokens" if each["conv"] > 1 else "no conv"] for name, each in models.items()]
    return [("The models", Columns(HEADINGS, [False, False, True, True, False, False, False, False], rows, ""))]


def _layers(each: Mapping) -> str:
    return "all" if len(each["mixing"]) == each["layers"] else ", ".join(map(str, each["mixing"]))


def _by(models: Mapping[str, Mapping], key: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, each in models.items():
        found.setdefault(each[key], []).append(name)
    return found


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
