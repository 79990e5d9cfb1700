"""A patching run's summary as a grid: direction x site x position role x layer.

Shape legend: R roles, Y layers.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mamba_mi.config import UserError
from mamba_mi.report.tables import RunTables
from mamba_mi.report.words import DIRECTIONS, HEADLINE, SITES, sample

AXES = ("direction", "site", "role", "layer")
ROLE_ORDER = ("bos", "pre_subject", "subject_", "subject_last", "subject", "relation", "between", "last")


@dataclass(frozen=True)
class Grid:
    """Every cell of a patching run in the headline metric: complete, or it cannot be made."""

    directions: tuple[str, ...]
    sites: tuple[str, ...]
    roles: tuple[str, ...]
    layers: dict[str, tuple[int, ...]]
    cells: dict[tuple[str, str, str, int], dict]

    def row(self, direction: str, site: str, role: str, layer: int) -> dict | None:
        """A cell's row; None where there can be none: the final norm is read at the last token alone."""
        return self.cells.get((direction, site, role, layer))

    def numbers_RY(self, direction: str, site: str, key: str) -> np.ndarray:
        """One number of every cell of a panel, NaN where the summary has none."""
        return np.array([[self.cells.get((direction, site, role, layer), {}).get(key) for layer in self.layers[site]]
                         for role in self.roles], dtype=float)

    @property
    def rows(self) -> list[dict]:
        return list(self.cells.values())

    @property
    def means(self) -> list[float]:
        """The means there are: a cell whose prompts were all excluded has none."""
        return [row["mean"] for row in self.rows if row["mean"] is not None]


def read_grid(tables: RunTables) -> Grid:
    """The grid of a patching run. A cell without a row raises: a hole in a map would read as `no effect`."""
    cells = {_key(row): row for row in tables.rows(HEADLINE)}
    directions, sites, roles, _ = (set(found) for found in zip(*cells, strict=True))
    layers = {site: tuple(sorted({key[3] for key in cells if key[1] == site})) for site in sites}
    order = in_order(directions, DIRECTIONS), in_order(sites, SITES), in_order(roles, ROLE_ORDER)
    wanted = [(direction, site, role, layer) for direction in order[0] for site in order[1]
              for role in order[2] for layer in layers[site] if site != "final_norm" or role == "last"]
    missing = [key for key in wanted if key not in cells]
    if missing:
        raise UserError(f"summary.json lacks {len(missing)} of the {len(wanted)} cells of the patching map, "
                        f"first {' / '.join(map(str, missing[0]))}; run the same command with force=true")
    return Grid(*order, layers, cells)


def _key(row: dict) -> tuple[str, str, str, int]:
    conditions = row["conditions"]
    missing = [key for key in AXES if conditions.get(key) is None]
    if missing:
        raise UserError(f"a patching figure needs rows with {', '.join(AXES)}; one has no "
                        f"{' and no '.join(missing)}: {conditions}")
    if conditions["direction"] not in DIRECTIONS:
        raise UserError(f"no patching direction {conditions['direction']!r}; "
                        f"there are {', '.join(DIRECTIONS)}")
    return tuple(conditions[key] for key in AXES)


def in_order(found: set[str], order: Sequence[str]) -> tuple[str, ...]:
    """Known names first, as in `order`; `subject_2` sorts at `subject_`, by its number; others by name."""
    ranks = {name: rank for rank, name in enumerate(order)}

    def rank(name: str):
        stem, _, index = name.rpartition("_")
        if index.isdigit() and f"{stem}_" in ranks:
            return ranks[f"{stem}_"], int(index), name
        return ranks.get(name, len(ranks)), 0, name

    return tuple(sorted(found, key=rank))


def title_parts(tables: RunTables, rows: Sequence[dict]) -> str:
    """`mamba2-1.3b · counterfact · n = 200 prompts, 90 clusters`."""
    names = [(tables.config.get(group) or {}).get("name") for group in ("model", "dataset")]
    return " · ".join([*filter(None, names), sample(rows)])
