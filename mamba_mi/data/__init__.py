"""Prompts and where they come from.

A data set is one module of this package with a frozen dataclass `Knobs` and `load(knobs, tokenizer, seed)
-> Dataset`; its file name is its name in the configuration, and there is no other list to add it to.
"""
from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType

from mamba_mi.config import UserError, did_you_mean, typed
from mamba_mi.data.pairing import divide, pair_up
from mamba_mi.data.prompt import Batch, Dataset, Dropped, Pair, Prompt, batches
from mamba_mi.data.spans import roles

__all__ = ["Batch", "Dataset", "Dropped", "Pair", "Prompt", "batches", "divide", "is_corpus", "load", "names", "no_longer", "pair_up", "roles"]


def load(knobs: Mapping, tokenizer, seed: int, longest: int | None = None) -> Dataset:
    """The data set `knobs["name"]`, made by its module from the rest of the knobs.

    All candidates come back, in a seeded order: `n` and `only_correct` are for whoever knows which prompts
    the model gets right. A data set none of whose records can be used is a UserError that says why they
    cannot. Prompts that with their answer are longer than the `longest` a model takes, or than the knob of that name,
    are dropped.
    """
    name = knobs.get("name")
    module = _module(name)
    settings = typed(module.Knobs, knobs, "dataset")
    for key, all_of_them in (("n", "every prompt"), ("longest", "any length")):
        value = getattr(settings, key, None)
        if value is not None and value < 1:
            raise UserError(f"dataset.{key}={value}: give at least 1, or null for {all_of_them}")
    limits = [(longest, "this model takes"), (getattr(settings, "longest", None), "of dataset.longest")]
    dataset = no_longer(module.load(settings, tokenizer, seed), *min((each for each in limits if each[0] is not None), default=(None, "")))
    if not dataset.prompts and not dataset.pairs and not dataset.corpus:
        reasons = Counter(d.why for d in dataset.dropped).most_common(3)
        raise UserError(f"dataset={name}: none of {len(dataset.dropped)} records can be used: "
                        + "; ".join(f"{count} times {why}" for why, count in reasons))
    return dataset


def no_longer(dataset: Dataset, longest: int | None, whose: str = "this model takes", answer: int = 1) -> Dataset:
    """The data set without what takes more tokens than `longest`, with an answer of at least so many tokens."""
    def fits(prompt: Prompt) -> bool:  # all of the answer but its last token may stand behind it
        return longest is None or len(prompt.token_ids) + max(len(prompt.target_ids), answer) - 1 <= longest

    over = {pair.clean.prompt_id for pair in dataset.pairs if not (fits(pair.clean) and fits(pair.corrupt))}
    over |= {p.prompt_id for p in dataset.prompts if not fits(p)}
    why = f"longer than the {longest} tokens {whose}"
    dropped = tuple(Dropped(p.prompt_id, p.text, why) for p in dataset.prompts if p.prompt_id in over)
    return replace(dataset, prompts=tuple(p for p in dataset.prompts if p.prompt_id not in over),
                   pairs=tuple(pair for pair in dataset.pairs if pair.clean.prompt_id not in over),
                   dropped=(*dataset.dropped, *dropped)) if over else dataset


def names() -> list[str]:
    """Every data set there is."""
    return [m.name for m in pkgutil.iter_modules(__path__) if _is_dataset(_import(m.name))]


def is_corpus(name: str) -> bool:
    """Whether the data set of that name is running text to train on, without prompts."""
    return getattr(_module(name), "IS_CORPUS", False)


def _module(name: str) -> ModuleType:
    if any(m.name == name for m in pkgutil.iter_modules(__path__)) and _is_dataset(_import(name)):
        return _import(name)
    known = names()
    hint = did_you_mean(name, known)
    raise UserError(f"dataset.name={name}: no such data set; there are {', '.join(known)}{hint}")


def _import(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _is_dataset(module: ModuleType) -> bool:
    return hasattr(module, "Knobs") and hasattr(module, "load")
