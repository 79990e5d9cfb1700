"""What kind of value each setting takes. The default in conf/ says; for the few shared by all runs, RULES says more."""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mamba_mi.config import UserError, did_you_mean

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "float64", "bfloat16", "float16")


class Rule(NamedTuple):
    """What holds of a good value, what to tell the user, and the words to compare a mistyped one with."""

    holds: Callable[[object], bool]
    give: str
    words: tuple[str, ...] = ()


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str) and value.strip() != ""


TEXT = Rule(_is_text, "give text; a number in two pairs of quotes, a folder 2024 as ./2024")
FOLDER = Rule(lambda value: value is not None and _is_text(value), "give a folder; one that is called 2024 as ./2024")
SWITCH = Rule(lambda value: isinstance(value, bool), "give true or false")
RULES = {
    "seed": Rule(lambda value: _whole(value, 0), "give a whole number from 0 on"),
    "device": Rule(lambda value: value in DEVICES or bool(re.fullmatch(r"cuda:\d+", str(value))),
                   "there are auto, cpu, cuda and cuda:N", DEVICES),
    "dtype": Rule(lambda value: value in DTYPES, f"there are {', '.join(DTYPES)}", DTYPES),
    "threads": Rule(lambda value: value is None or _whole(value, 1), "give a whole number from 1 on, or null"),
    "force": SWITCH,
    "dry_run": SWITCH,
    "cone.memory": Rule(lambda value: _whole(value, 1), "give a number of bytes, 1073741824 for 1 GiB"),
    "paths.logs": FOLDER,
    "paths.sweeps": FOLDER,
    **dict.fromkeys(("model.path", "model.hub", "model.tokenizer", "dataset.path", "dataset.hub", "dataset.revision",
                     "reference.path"), TEXT),
}


def check(settings: Mapping, known: Mapping, presets: str) -> None:
    """Refuse what is unknown or of the wrong kind in the resolved `settings`; `known` is conf/ without presets."""
    _compare(settings, known, "", presets)
    for key, rule in RULES.items():
        value = _at(settings, key)
        if value is not _ABSENT and not rule.holds(value):
            raise UserError(f"{key}={_said(value)}: {rule.give}{did_you_mean(str(value), rule.words)}")


def _compare(settings: Mapping, known: Mapping, above: str, presets: str) -> None:
    for name, value in settings.items():
        key = f"{above}{name}"
        if name not in known:
            by = f" (set by {presets})" if presets else ""
            where = above.rstrip(".") or "the configuration"
            raise UserError(f"{key}: no such key{by}; {where} has {', '.join(known)}{did_you_mean(name, known)}")
        if isinstance(known[name], Mapping) and isinstance(value, Mapping):
            _compare(value, known[name], f"{key}.", presets)
        elif wrong := _mismatch(value, known[name]):
            raise UserError(f"{key}={_said(value)}: {wrong.format(key=key)}")


def _mismatch(value: object, default: object) -> str:
    """What to give instead of a value of another kind than the default; null passes, the schemas below decide on it."""
    if value is None or default is None or isinstance(default, str):
        return ""  # "all" stands where a list may stand too
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "give true or false"
    if isinstance(value, bool) or not isinstance(value, _KINDS[type(default)]):
        return _GIVE[type(default)].format(key="{key}", default=default)
    return ""


_ABSENT = object()
_KINDS = {int: int, float: int | float, list: list, dict: dict}
_GIVE = {int: "give a whole number, such as {default}", float: "give a number, such as {default}",
         list: "give a list: {key}=[a,b]", dict: "it holds keys, not a value"}


def _at(settings: Mapping, key: str) -> object:
    for part in key.split("."):
        if not isinstance(settings, Mapping) or part not in settings:
            return _ABSENT
        settings = settings[part]
    return settings


def _said(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
