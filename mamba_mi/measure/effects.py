"""Effects: the one table every experiment yields. A row is one prompt under one condition, in one metric.

`value` is the metric under the condition, `baseline` the same metric without it, never a difference. `full`, where
it is given, is what a complete intervention would reach (patching: the metric on the run patched from); a
normalised effect is (value - baseline) / (full - baseline).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 1
CONDITIONS = {  # column: type, in the order they are written and sorted
    "direction": pa.string(), "site": pa.string(), "layer": pa.int32(), "role": pa.string(), "position": pa.int32(),
    "head": pa.int32(), "subspace": pa.string(), "rank": pa.int32(),
    "query": pa.string(), "source": pa.string(), "conv": pa.string(), "span": pa.string(), "timescale": pa.string(),
    "window_start": pa.int32(), "window_size": pa.int32(), "split": pa.string(), "path": pa.string(),
    "draw": pa.int32(), "seed": pa.int32(), "step": pa.int64(), "task": pa.string(), "variant": pa.string(),
    "dataset": pa.string(), "prompts": pa.string(), "category": pa.string(), "against": pa.string(),
}
PREDICTION = "prediction"  # a metric whose value is a token id: kept with the others, never averaged
NUMBERS = ("value", "baseline", "full")


def effects(columns: Mapping[str, Sequence]) -> pa.Table:
    """A table of effects from its columns: prompt_id, any of CONDITIONS, metric, value, baseline and full.

    Raises on a column that is not part of the contract and on a NaN: a measurement that failed is no measurement.
    """
    unknown = set(columns) - {"prompt_id", "metric", *CONDITIONS, *NUMBERS}
    if unknown:
        raise ValueError(f"effects have no column {sorted(unknown)}; conditions are {', '.join(CONDITIONS)}")
    kinds = {"prompt_id": pa.string(), **CONDITIONS, "metric": pa.string(), **dict.fromkeys(NUMBERS, pa.float64())}
    table = pa.table({name: pa.array(columns[name], type=kind) for name, kind in kinds.items() if name in columns})
    for name in NUMBERS:
        if name in columns and not np.isfinite(table[name].to_numpy()).all():
            raise ValueError(f"effects: {name} holds NaN or infinity")
    return table


def in_order(table: pa.Table) -> pa.Table:
    """The rows sorted by every key column, so that the same effects give the same bytes in whatever order they came."""
    keys = [name for name in ("prompt_id", *CONDITIONS, "metric") if name in table.column_names]
    return table.sort_by([(name, "ascending") for name in keys]).combine_chunks()
