"""What every room above needs of the configuration: user errors, random streams, typed knobs."""
from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence

# The names of subspaces, which rooms from interventions to report share and which need no torch.
FITTED = ("mean_difference", "pca", "das")  # chosen, so that chance must be ruled out
UNCONSTRAINED = ("isotropic", "covariance", "rescaled")  # controls of the same rank, the families of p-values
ORTHOGONAL = "orthogonal"  # controls inside the complement of the fitted subspace: shown, never a p-value's family


class UserError(Exception):
    """What was asked for cannot be done. The command line prints its one line and exits with 1, no traceback."""


def did_you_mean(asked: str, known: Iterable[str]) -> str:
    """`; did you mean 'resid'?` for a near miss or the beginning of a name, else nothing."""
    names = list(known)
    near = difflib.get_close_matches(str(asked), names, n=1, cutoff=0.6) or [
        name for name in names if len(str(asked)) > 2 and str(name).startswith(str(asked))]
    return f"; did you mean {near[0]!r}?" if near else ""


def several(asked: object, known: Sequence[str], key: str, whole: Iterable[str] | None = None) -> list[str]:
    """The names that a knob gives: one of those `known`, a list of them, or "all", which is the `whole` or else every one."""
    names = list(whole or known) if asked == "all" else list(asked) if isinstance(asked, list | tuple) else [asked]
    for name in names:
        if name not in list(known):
            raise UserError(f"{key}={name}: there are all, {', '.join(known)}{did_you_mean(name, known)}")
    if not names or len(set(names)) < len(names):
        raise UserError(f"{key}={names}: at least one, and each once")
    return names


def processes() -> int:
    """How many processes this run has: what torchrun says in WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def stream(seed: int, *names: object):
    """An independent torch.Generator for each (seed, names): `stream(0, "bootstrap")`, `stream(0, "step", 17)`.

    The names are hashed, so a resumed run draws for item 17 what an uninterrupted one drew for it.
    """
    import torch

    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def typed(schema: type, values: Mapping, where: str):
    """The frozen dataclass `schema` filled from `values`; an unknown key or a wrong type is a UserError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = [f.name for f in dataclasses.fields(schema)]
    for key in values:
        if key not in known:
            raise UserError(f"{where}.{key}: no such key; {where} has {', '.join(known)}{did_you_mean(key, known)}")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(values)))
    except OmegaConfBaseException as e:
        key = getattr(e, "full_key", None) or ""
        several = isinstance(values.get(key), list | dict)  # what is said of these has OmegaConf's own names in it
        raise UserError(f"{where}.{key}={values[key]}: give one value" if several else f"{where}.{key}: {str(e).splitlines()[0]}") from None
