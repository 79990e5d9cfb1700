"""Reading `KEY=VALUE` as Hydra reads it; what it cannot read is answered with how to write it."""
from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException

from mamba_mi.config import UserError


def read(line: str, parser: OverridesParser) -> Override:
    """One word of the command line; a UserError when it is not of the form KEY=VALUE or ~KEY."""
    if line.startswith("=") or "=" not in line and not line.startswith("~"):
        raise UserError(f"{line}: a setting is written KEY=VALUE, such as seed=1 or model=tiny")
    try:
        override = parser.parse_overrides([line])[0]
    except (OverrideParseException, HydraException):
        raise UserError(f"{line}: cannot be read; {_advice(line)}") from None
    if override.package is not None and not override.is_hydra_override():
        raise UserError(f"{line}: no '@' here; write {override.key_or_group}={line.partition('=')[2]}")
    return override


def _advice(line: str) -> str:
    key, _, value = line.partition("=")
    if value.startswith("~"):
        return f"the shell leaves ~ as it is after '=': write {key}=$HOME{value[1:]}"
    if value.count("[") != value.count("]") or value.count("{") != value.count("}"):
        return "its brackets do not match; a list is written [a,b], without spaces unless all of it is in quotes"
    return f"a value with special characters goes in two pairs of quotes: \"{key}='{value}'\""
