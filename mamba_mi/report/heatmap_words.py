"""What a heatmap run found, in sentences: the window and token read from, and what the conv carries past a token's slot."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from mamba_mi.data.alignment import ALIGNED
from mamba_mi.report.words import metric as metric_name
from mamba_mi.report.words import number, p_value, equals, stands_out
from mamba_mi.report.words import role as role_name

RELATIVE = "relative_probability"


def policy(conv: str, span: str) -> str:
    """What a knockout takes away."""
    blocked = {"scan": "the slot", "both": "the token", "conv": "the way past the scan"}[conv]
    return f"{blocked} (conv={conv})" if span == "token" else f"{blocked} and those after it (conv={conv}, span={span})"


def window(row: Mapping) -> str:
    """`windows of 5 layers`."""
    size = row["conditions"]["window_size"]
    return "single layers" if size == 1 else f"windows of {size} layers"


def setting(knobs, size): return {}
def headline(s, m): return [r for r in s if r["metric"]==m]
def findings(s, m): return []
def caveats(*a): return []
