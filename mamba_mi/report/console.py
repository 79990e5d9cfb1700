"""What the terminal shows: the configuration as a tree, the result as one table."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from mamba_mi.report.words import columns


def result_table(rows: Sequence[dict], title: str) -> Table:
    """Rows of a summary, narrowed to what fits a terminal; the report has every column."""
    printed = columns([{key: row[key] for key in row if key not in _only_in_the_report(row)} for row in rows])
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), collapse_padding=True,
                  title=Text(title, style="bold"), title_justify="left",
                  caption=Text(printed.shared), caption_justify="left")
    for heading, numeric in zip(printed.headings, printed.numeric, strict=True):
        table.add_column(Text(heading), justify="right" if numeric else "left",
                         no_wrap=numeric, overflow="fold")
    for row in printed.rows:
        table.add_row(*map(Text, row))  # Text, not str: a subject in [brackets] is no markup
    return table


def _only_in_the_report(row: Mapping) -> set[str]:
    """An adjusted p replaces the plain one: it is the one to judge by."""
    uncorrected = {"p", "p_bh"} if row.get("p_adjusted") is not None else set()
    of_controls = {key for key in row if key.startswith("control_") and key != "control_p"} | {"draws"}
    return {"n_clusters", "effect_size", "excluded", "first_token", "f1"} | uncorrected | of_controls


def config_tree(cfg: Mapping) -> Tree:
    """The configuration, a branch a group."""
    tree = Tree(Text("config", style="bold"), guide_style="bright_black")
    _grow(tree, cfg)
    return tree


def _grow(tree: Tree, values: Mapping) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            _grow(tree.add(Text(str(key), style="bold cyan")), value)
        else:
            tree.add(Text.assemble((f"{key}: ", "cyan"), str(value)))
