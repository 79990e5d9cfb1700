"""The keys of conf/method/info_flow.yaml, and everything that can be wrong with them for a model."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mamba_mi.config import UserError
from mamba_mi.data.sources import QUERIES, check_names
from mamba_mi.experiments import at_least
from mamba_mi.experiments._knockouts import DEFAULT, KNOWN, RELATIVE, check_dense, distinct, policies, windows
from mamba_mi.interventions.knockout import CONVS, SPANS
from mamba_mi.measure import timescale
from mamba_mi.measure.timescale import THIRDS

PUBLISHED = [9, 15]  # the windows of the literature
DEPTH = 24  # of the shallowest model they are used on; on a shallower one they are scaled
ALL = "all"


@dataclass(frozen=True)
class Knobs:
    """`sources` is "all" or a list; `conv` and `span` make policies, `policies` says which; `reference` counts prompts."""

    windows: list[int] = field(default_factory=lambda: list(PUBLISHED))
    query: str = "last"
    sources: Any = ALL
    conv: list[str] = field(default_factory=lambda: list(CONVS))
    span: list[str] = field(default_factory=lambda: list(SPANS))
    query_conv: bool = False
    dense: bool = False
    timescales: list[str] = field(default_factory=lambda: [ALL])
    reference: int = 128
    metrics: list[str] = field(default_factory=lambda: list(DEFAULT))
    batch: int = 32
    resamples: int = 2000


def check(knobs: Knobs, lm) -> None:
    """Raise a UserError, one line, for the first knob that does not fit the model or the others."""
    for size in sizes(knobs, len(lm.mixing)):
        try:
            windows(size, lm.mixing)
        except UserError as e:
            raise UserError(f"method.windows={knobs.windows}: {e}") from None
    check_names("method.query", [knobs.query], QUERIES)
    for key, known in (("conv", CONVS), ("span", SPANS), ("timescales", (ALL, *THIRDS)), ("metrics", KNOWN)):
        check_names(f"method.{key}", getattr(knobs, key), known)
    if RELATIVE not in knobs.metrics:
        raise UserError(f"method.metrics must hold {RELATIVE}: the headline is the change of the probability in %")
    if not distinct(policies(knobs, lm)):
        raise UserError("method.span=[token+conv] widens what conv=scan blocks: add scan to method.conv, or token to method.span")
    if knobs.query_conv and lm.config.d_conv == 1:
        raise UserError(f"method.query_conv=true: {lm.name} has no conv; leave it out")
    if knobs.query_conv and set(knobs.conv) == {"scan"}:
        raise UserError("method.query_conv=true goes with method.conv=[conv,both]: scan leaves the conv as it is")
    if knobs.sources != ALL and not (isinstance(knobs.sources, list) and knobs.sources):
        raise UserError(f"method.sources={knobs.sources}: give all or a list such as [last,subject]")
    if lm.config.d_conv == 1 and knobs.sources != ALL and "beyond_conv" in knobs.sources:
        raise UserError(f"method.sources=beyond_conv: {lm.name} has no conv, so these would be random tokens as others are; give random")
    check_dense(knobs, lm)
    if knobs.timescales != [ALL]:
        timescale.check(lm)
    at_least(knobs, reference=1, batch=1, resamples=20)


def is_scaled(knobs: Knobs, depth: int) -> bool:
    """Whether the published windows are made smaller for so shallow a model: both together, or one that does not fit. Sizes
    of one's own never are."""
    asked = set(knobs.windows)
    return depth < DEPTH and asked <= set(PUBLISHED) and (asked == set(PUBLISHED) or max(asked) > depth)


def sizes(knobs: Knobs, depth: int) -> list[int]:
    """The sizes of windows used in a model of so many layers that mix tokens, each once."""
    if not knobs.windows:
        raise UserError("method.windows=[]: give at least one number of layers, such as [9,15]")
    scaled = [max(1, size * depth // DEPTH) for size in knobs.windows] if is_scaled(knobs, depth) else knobs.windows
    return list(dict.fromkeys(scaled))
