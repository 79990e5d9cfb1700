"""What things are called in W&B: keys that sort, group and read well there."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

SHOWN = ("mean", "ci_low", "ci_high", "n")
MOST = 500  # rows of the headline: W&B grows slow above some thousands of keys


def headline_keys(rows: Sequence[Mapping]) -> dict[str, object]:
    """`normalised_logit_difference/denoising/resid/subject/layer_3/mean` and its like, for the first MOST rows."""
    return {f"{_cell(row)}/{what}": row[what] for row in rows[:MOST] for what in SHOWN if row.get(what) is not None}


def _cell(row: Mapping) -> str:
    # numbers go last and carry their name, so that the layers of one role stand together
    conditions = row["conditions"].items()
    words = [str(value) for _, value in conditions if isinstance(value, str)]
    numbers = [f"{name}_{value}" for name, value in conditions if value is not None and not isinstance(value, str)]
    return "/".join([row["metric"], *words, *numbers])


def flat(values: Mapping, above: str) -> Iterator[tuple[str, object]]:
    """`above/hook_counts/resid` for what is nested; lists are left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}/{name}")
        elif not isinstance(value, list | tuple):
            yield f"{above}/{name}", value


def table_of(rows: Iterable[Mapping]) -> tuple[list[str], list[list]]:
    """The columns and the data of summary.json's rows: the conditions side by side, then what was measured."""
    plain = [{**row["conditions"], **{key: row[key] for key in row if key != "conditions"}} for row in rows]
    columns = list(dict.fromkeys(key for row in plain for key in row))
    return columns, [[row.get(column) for column in columns] for row in plain]


def tags(words: Iterable[str]) -> tuple[str, ...]:
    """Each once and not longer than W&B takes."""
    return tuple(dict.fromkeys(word[:64] for word in words if word))
