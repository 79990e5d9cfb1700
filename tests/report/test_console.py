import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from mamba_mi.report.console import config_tree, result_table

from .synthetic import patching_summary


def printed(thing, width=100):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(thing)
    return console.file.getvalue()


@pytest.mark.parametrize(("width", "lines"), [(100, 1), (80, 2)])
def test_the_table_fits_a_terminal_and_never_breaks_a_number(width, lines):
    rows = patching_summary(6, 2, metrics=["probability"])[::17]  # every site and role
    text = printed(result_table(rows, "Largest effects"), width)
    assert "…" not in text and "Largest effects" in text and "n 200" in text
    assert len(text.splitlines()) <= lines * len(rows) + 6
    for row in rows:
        assert f"{row['mean']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]".replace("-", "−") in text


def test_brackets_are_text_and_no_markup():
    row = {"conditions": {"task": "[red]recall[/red]"}, "metric": "hit", "n": 3, "mean": 0.5}
    assert "[red]recall[/red]" in printed(result_table([row], "[bold]title"))
    assert "[bold]title" in printed(result_table([row], "[bold]title"))
    assert "path: [/tmp]" in printed(config_tree({"dataset": {"path": "[/tmp]"}}))


def test_the_config_tree_shows_every_leaf_under_its_group():
    text = printed(config_tree({"model": {"name": "tiny", "sizes": {"d": 128}, "none": {}}, "seed": 0}))
    lines = [re.sub(r"[│├└─ ]+", " ", line).strip() for line in text.splitlines()]
    assert lines == ["config", "model", "name: tiny", "sizes", "d: 128", "none: {}", "seed: 0"]


def test_the_console_needs_neither_torch_nor_matplotlib():
    code = "import sys, mamba_mi.report.console, mamba_mi.report.html; " \
           "sys.exit(bool({'torch', 'matplotlib', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
