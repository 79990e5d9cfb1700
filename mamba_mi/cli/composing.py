"""One job's settings from its overrides, with every typo in them found.

Hydra composes. A key is known if the files of conf/ hold it without presets and without the command line; their
values say of what kind a value must be. So there is no second list of keys, and a typo in a preset is found as well.
"""
from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml
from hydra import compose
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mamba_mi.cli import values
from mamba_mi.cli.overrides import read
from mamba_mi.config import UserError, did_you_mean

REFUSALS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)


def by_size(name: str) -> str:
    """A key that sorts mamba-790m before mamba-1.4b."""
    return re.sub(r"([\d.]+)([mb])", lambda m: f"{float(m[1]) * {'m': 1, 'b': 1000}[m[2]]:08.0f}", name)


class Composer:
    """Composes job after job inside an initialised Hydra; each choice of groups once, so seeds cost nothing."""

    def __init__(self, config_dir: str | None):
        self._loader = GlobalHydra.instance().config_loader()
        if config_dir is not None:
            self._search(config_dir)
        self._parser = OverridesParser.create(config_loader=self._loader)
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        base = self._compose(())
        self._defaults = {g: c for g, c in base.hydra.runtime.choices.items() if "/" not in g and g != "local"}
        self._packaged = [group for group in self._defaults if group in base]
        self._keys = [key for key in base if key != "hydra"]

    def options(self, group: str) -> list[str]:
        """What can be chosen in a group, small models first; nothing when there is no such group."""
        return sorted(self._loader.get_group_options(group), key=by_size) if group else []

    def presets(self, cfg: DictConfig) -> str:
        """The presets in force that may set other groups' keys, as the user would write them."""
        choices = cfg.hydra.runtime.choices
        return " ".join(f"{g}={choices[g]}" for g in (*self._defaults, "local") if g not in self._packaged
                        and choices.get(g) not in (None, self._defaults.get(g)) and self.options(g))

    def parse(self, lines: Iterable[str]) -> list[Override]:
        """The overrides of these lines, each of a shape that has a meaning here."""
        return [self._parse(line) for line in lines]

    def composed(self, job: list[Override]) -> DictConfig:
        """What the chosen groups say, before any single key is set."""
        choices = [override for override in job if self._is_choice(override)]
        for override in choices:
            self._check_choice(override)
        return self._compose(tuple(override.input_line for override in choices))

    def has(self, cfg: DictConfig, override: Override) -> bool:
        """Whether these settings have what the override sets."""
        try:
            self._is_choice(override) or self._check_key(cfg, override)
        except UserError:
            return False
        return True

    def checked(self, job: list[Override]) -> DictConfig:
        """The settings of one job, `hydra` included, in which every key and value is as it should be."""
        cfg = copy.deepcopy(self.composed(job))
        for override in job:
            if not self._is_choice(override):
                self._check_key(cfg, override)
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
        values.check(resolved(cfg), resolved(self._plain(cfg), whole=False), self.presets(cfg))
        return cfg

    def _search(self, folder: str) -> None:
        """--config-dir: where Hydra will look too, in the order in which it will."""
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir {folder}: there is no such folder")
        path = self._loader.get_search_path()
        path.prepend("command-line", f"file://{Path(folder).resolve()}", SearchPathQuery(provider="schema"))
        self._loader.repository.initialize_sources(path)

    def _compose(self, lines: tuple[str, ...]) -> DictConfig:
        if lines not in self._composed:
            try:
                self._composed[lines] = compose("config", list(lines), return_hydra_config=True)
            except REFUSALS as error:
                raise UserError(_lacks_a_plugin(error) or _in_a_line(error)) from error
        return self._composed[lines]

    def _plain(self, cfg: DictConfig) -> DictConfig:
        """The same choices of packaged groups, without any preset."""
        choices = cfg.hydra.runtime.choices
        off = [f"~{group}" for group, choice in self._defaults.items() if group not in self._packaged and choice]
        local = ["~local"] if self.options("local") else []
        return self._compose((*(f"{group}={choices[group]}" for group in self._packaged), *off, *local))

    def _parse(self, line: str) -> Override:
        override = read(line, self._parser)
        if override.is_hydra_override():
            return override
        if override.is_delete():
            self._check_deletion(override)
        elif override.is_add() or override.is_force_add():
            self._check_addition(override)
        return override

    def _check_deletion(self, override: Override) -> None:
        key = override.key_or_group
        if key not in self._defaults or key in self._packaged:
            raise UserError(f"{override.input_line}: nothing can be taken out of the settings but a preset (~experiment)")
        if self._defaults[key] is None:
            raise UserError(f"{override.input_line}: {key} is off unless {key}= is given")

    def _check_addition(self, override: Override) -> None:
        key, line = override.key_or_group, override.input_line
        if self.options(key) and key not in self._defaults:
            return  # a group of the user's own, from --config-dir
        if key in self._defaults or OmegaConf.select(self._compose(()), key) is not None:
            raise UserError(f"{line}: {key} is there already; write it without the {line[:line.index(key)]}")
        raise UserError(f"{line}: nothing reads such a key; there are {self._there_is()}{did_you_mean(key, self._names())}")

    def _is_choice(self, override: Override) -> bool:
        if override.is_hydra_override() or override.is_delete() or override.is_add():
            return True
        return override.key_or_group in self._defaults and not isinstance(override.value(), dict)

    def _check_choice(self, override: Override) -> None:
        group, choice = override.key_or_group, override.value()
        known = self.options(group)
        if override.is_delete() or not known or override.is_hydra_override() and choice is None:
            return
        if choice is None and group not in self._packaged:
            off = f"~{group} turns it off" if self._defaults.get(group) else "leave it out"
            raise UserError(f"{override.input_line}: {off}, or choose one of {', '.join(known)}")
        if isinstance(choice, list) or str(choice) not in known:
            hint = did_you_mean(choice, known)
            raise UserError(f"{group}={override.get_value_string()}: no such {group}; "
                            f"there {'are' if len(known) > 1 else 'is'} {', '.join(known)}{hint}")

    def _check_key(self, cfg: DictConfig, override: Override) -> None:
        for key in _leaves(override.key_or_group, override.value()):
            node, above = cfg, ""
            for part in key.split("."):
                if node is None and len(above) >= len(override.key_or_group):
                    break  # a mapping for a key that is null: what may be in it is for the schema to say
                if not isinstance(node, DictConfig):
                    kind = "a list, given whole" if isinstance(node, ListConfig) else "a value, with no keys below it"
                    raise UserError(f"{key}: {above} is {kind}: {above}={_written(node)}")
                if part not in node.keys():  # `in node` would deny a key whose value is ???
                    raise UserError(self._no_such_key(key, part, above, node))
                node, above = _child(node, part), f"{above}.{part}".lstrip(".")
            if isinstance(node, DictConfig) and not isinstance(override.value(), dict):
                raise UserError(f"{override.input_line}: {above} is not a value; it has the keys "
                                f"{', '.join(f'{above}.{k}' for k in node)}")

    def _no_such_key(self, key: str, part: str, above: str, node: DictConfig) -> str:
        if above:
            return f"{key}: no such key; {above} has {', '.join(node)}{did_you_mean(part, list(node))}"
        if self.options(part):
            return f"{key}: {part} is a group of its own; add it with +{part}="
        return f"{part}: no such key or group; there are {self._there_is()}{did_you_mean(part, self._names())}"

    def _names(self) -> list[str]:
        return sorted({*self._keys, *self._defaults})

    def _there_is(self) -> str:
        return ", ".join(self._names())


def _leaves(key: str, value: object) -> Iterator[str]:
    """The dotted keys an override sets: one, or several for `cone={memory: 1}`."""
    if not isinstance(value, dict) or not value:
        yield key
        return
    for name, below in value.items():
        yield from _leaves(f"{key}.{name}", below)


def _child(node: DictConfig, key: str) -> object:
    return None if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key) else node[key]


def resolved(cfg: DictConfig, whole: bool = True) -> dict:
    """Our settings with references filled in; `whole` refuses a ??? that nobody has set."""
    ours = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    try:
        return OmegaConf.to_container(ours, resolve=True, throw_on_missing=whole)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {_in_a_line(error)}") from error


def _written(node: object) -> str:
    return f"[{','.join(map(str, node))}]" if isinstance(node, ListConfig) else "null" if node is None else str(node)


def _lacks_a_plugin(error: Exception) -> str:
    """What to install, where a preset asks for a launcher that no installed plugin brings; else nothing."""
    found = re.search(r"hydra/launcher/([a-z]+)\w*'", str(error))
    return found and f"launcher={found[1]} needs a plugin of Hydra's that is not installed: pip install hydra-{found[1]}-launcher"


def _in_a_line(error: Exception) -> str:
    """Hydra's message without the search path it appends, and with the cause it keeps for itself."""
    said = str(error).partition("Config search path:")[0].splitlines()
    cause = str(error.__cause__ or "").splitlines()[:1]  # the others name classes
    lines = [line.strip().rstrip(".") for line in (*said, *cause)]
    return "; ".join(line for line in lines if line and not line.startswith(("full_key:", "object_type=")))
