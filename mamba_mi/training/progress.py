"""The progress bar of a training: steps, loss and speed."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SMOOTH = 0.98  # of the loss shown; the curve keeps every step's own


@contextmanager
def bar(steps: int, console: Console | None = None) -> Iterator[Callable[[Mapping], None]]:
    """`watch(point)` moves the bar to a point of the curve."""
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(),
               TextColumn("{task.fields[at]}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=steps, at="")
        shown = None

        def watch(point: Mapping) -> None:
            nonlocal shown
            shown = point["loss"] if shown is None else SMOOTH * shown + (1 - SMOOTH) * point["loss"]
            progress.update(task, completed=point["step"],
                            at=f"loss {shown:.3f}, {point['tokens_per_second']:,.0f} tokens/s" + (
                                f", {100 * point['utilisation']:.0f}% of peak" if "utilisation" in point else ""))

        yield watch
