"""report.html: one file that opens offline, in the order a reader asks. Every text in it is escaped."""
from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mamba_mi.config import UserError
from mamba_mi.report.words import Columns, columns

MOST = 3000  # rows of a table


class JobLine(NamedTuple):
    """One job of a sweep: `status` as recorded, `said` in words, `link` the relative address of its report or ""."""

    label: str
    status: str
    said: str
    run_id: str
    text: str
    link: str

    @property
    def good(self) -> bool:
        return self.status in ("done", "skipped")


@dataclass(frozen=True)
class Page:
    """What a report says. `findings` is the result in words, a sentence each; only a sweep has `jobs`; `listings`
    are more tables, each under its title.

    `table` holds the headline rows of the summary, `complete` all of them, folded away. `figures` are PNG
    paths with captions. `selection` counts prompts by their fate: {"used": 200, "answered wrongly": 41}.
    """

    title: str
    question: str
    setting: dict[str, str]
    findings: list[str]
    table: list[dict]
    figures: list[tuple[str | Path, str]]
    caveats: list[str]
    reproduce: str
    config_yaml: str
    manifest: dict
    selection: dict[str, int] = field(default_factory=dict)
    complete: list[dict] = field(default_factory=list)
    jobs: list[JobLine] = field(default_factory=list)
    listings: list[tuple[str, Columns]] = field(default_factory=list)


def render(page: Page) -> str:
    """The page's HTML, with its images inside."""
    return _template().render(
        page=page,
        table=columns(page.table),
        complete=columns(_listed(page)),
        figures=[(_inline(path), caption) for path, caption in page.figures],
        manifest=json.dumps(page.manifest, indent=2, ensure_ascii=False),
    )


def _listed(page: Page) -> Sequence[dict]:
    """All rows, or where a browser would choke on them those of the table's metric, at most MOST."""
    if len(page.complete) <= MOST:
        return page.complete
    metric = page.table[0]["metric"] if page.table else page.complete[0]["metric"]
    return [row for row in page.complete if row["metric"] == metric][:MOST]


def write(page: Page, path: str | Path) -> Path:
    """Renders the page into that file and returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(page), encoding="utf-8")
    return path


@cache
def _template():
    from jinja2 import Environment, StrictUndefined

    # always, not by a file's ending: prompts, paths and subjects are other people's text
    compact = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(autoescape=True, undefined=StrictUndefined, **compact)
    environment.filters["thousands"] = lambda n: f"{n:,}"
    return environment.from_string(Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8"))


def _inline(path: str | Path) -> str:
    path = Path(path)
    if path.suffix != ".png" or not path.is_file():
        raise UserError(f"{path}: a report's figure must be an existing .png file")
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def headline(rows: Sequence[dict], metric: str, limit: int = 10) -> list[dict]:
    """The rows with the largest effects in that metric, largest first."""
    known = [row for row in rows if row["metric"] == metric and row["mean"] is not None]
    return sorted(known, key=lambda row: -abs(row["mean"]))[:limit]
