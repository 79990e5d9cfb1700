"""Knockout heatmaps of single prompts, as the field prints them: a row a token, a column a window of layers.

Shape legend: L tokens, W windows.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from mamba_mi.config import UserError, did_you_mean
from mamba_mi.report.figures import style
from mamba_mi.report.figures.grid import title_parts
from mamba_mi.report.figures.knockout_heatmap import CHANGES
from mamba_mi.report.heatmap_words import in_order, window
from mamba_mi.report.tables import RunTables, read_run
from mamba_mi.report.words import number

SHOWN = 6  # panels of a report's figure
TOP, BETWEEN, FOOT, BAR = 0.8, 1.1, 0.35, 0.75  # inches; BAR is a colour bar and its numbers
INVISIBLE = str.maketrans({"\n": r"\n", "\r": r"\r", "\t": r"\t"})
PUBLISHED = matplotlib.colormaps["Purples_r"]


@dataclass(frozen=True)
class Map:
    """One prompt's numbers under one policy."""

    prompt: dict
    named: tuple[str, str]
    tokens: list[str]
    starts: list[int]
    size: int
    value_LW: np.ndarray
    base: float

    @property
    def change_LW(self) -> np.ndarray:
        """In % of the clean probability."""
        return 100 * (self.value_LW - self.base) / self.base if self.base else np.full_like(self.value_LW, np.nan)


def heatmap_prompts(tables: RunTables):
    """Probabilities, and the caption: the first prompts of the run."""
    return _figure(tables, None, normalised=False)


def heatmap_normalised(tables: RunTables):
    """The same prompts, as changes in % of their own clean probability."""
    return _figure(tables, None, normalised=True)


def prompt_heatmap(folder: str | Path, prompts: Sequence[str], *, normalised: bool = False) -> style.Sheet:
    """The heatmaps of these prompts of a finished run, by prompt_id: p(answer), or with `normalised` its change in %."""
    from mamba_mi.report.figures import house_style

    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise UserError("prompt_heatmap(…, []): give at least one prompt_id")
    if not (Path(folder) / "artifacts" / "tokens.json").is_file():
        raise UserError(f"{folder}: not the folder of a finished heatmap run; experiment=heatmap makes one")
    with house_style(), matplotlib.rc_context({"figure.dpi": style.STYLE["savefig.dpi"]}):
        return _figure(read_run(folder), prompts, normalised)[0]


def _figure(tables: RunTables, asked: list[str] | None, normalised: bool):
    found, count = _maps(tables, asked)
    policies = len({each.named for each in found})
    columns = policies if policies > 1 else min(len(found), 2 if len(found[0].starts) > 20 else 3)
    lines = [found[i:i + columns] for i in range(0, len(found), columns)]
    wide = max(1.6, min(3.4, 0.3 * len(found[0].starts)))
    left = 0.3 + 0.068 * max(len(token) for each in found for token in _labels(each))
    pitch = left + wide + (0.15 if normalised else BAR)
    high = [0.165 * max(len(each.tokens) for each in line) for line in lines]
    tall = TOP + sum(high) + BETWEEN * len(lines) + (FOOT + 0.3 if normalised else FOOT) - 0.35
    figure = style.sheet(max(5.2, pitch * columns + 0.2), tall)
    title = "Knockout heatmaps, change of p(answer) in %" if normalised else "Knockout heatmaps, p(answer)"
    style.heading(figure, 0.15, title, f"{title_parts(tables, [{'n': count}])} · {window(found[0].size)}")
    for number_, line in enumerate(lines):
        top = TOP + sum(high[:number_]) + BETWEEN * number_ + 0.45
        for column, each in enumerate(line):
            place = left + column * pitch, top, wide, 0.165 * len(each.tokens)
            _panel(figure, each, place, normalised)
            _head(figure, each, *place[:2], wide + 0.15, several=policies > 1)
    if normalised:
        _bar(figure, left, tall - 0.3)
    return figure, _caption(len({each.prompt["prompt_id"] for each in found}), count, normalised)


def _maps(tables: RunTables, asked: list[str] | None) -> tuple[list[Map], int]:
    """The maps of the prompts asked for, or of the first that fit, and of how many prompts there are some."""
    if tables.effects is None:
        raise UserError("effects.parquet: no such file; a heatmap of single prompts is drawn from it")
    rows = tables.effects.filter(pc.equal(tables.effects["metric"], "probability"))
    if not len(rows):
        raise UserError("effects.parquet has no rows with metric 'probability'; method.metrics must hold it")
    kept = {record["prompt_id"]: record for record in tables.prompts if record["kept"]}
    for name in asked or ():
        if name not in kept:
            raise UserError(f"no heatmap of prompt {name!r}: this run has {len(kept)}, such as {next(iter(kept))}"
                            f"{did_you_mean(name, kept)}")
    named = in_order({*zip(rows["conv"].to_pylist(), rows["span"].to_pylist(), strict=True)})
    shown = asked or list(kept)[:max(1, SHOWN // len(named))]
    tokens = tables.artifact("tokens.json")
    return [_map(rows, kept[name], both, tokens[name]) for name in shown for both in named], len(kept)


def _map(rows, prompt: dict, named: tuple[str, str], tokens: list[str]) -> Map:
    mine = pc.and_(pc.equal(rows["prompt_id"], prompt["prompt_id"]),
                   pc.and_(pc.equal(rows["conv"], named[0]), pc.equal(rows["span"], named[1])))
    cells = rows.filter(mine).sort_by([("position", "ascending"), ("window_start", "ascending")])
    starts = sorted(set(cells["window_start"].to_pylist()))
    if len(cells) != len(tokens) * len(starts):
        raise UserError(f"effects.parquet has {len(cells)} of the {len(tokens) * len(starts)} cells of prompt "
                        f"{prompt['prompt_id']}; run the same command with force=true")
    return Map(prompt, named, tokens, starts, cells["window_size"][0].as_py(),
               cells["value"].to_numpy().reshape(len(tokens), -1), float(np.median(cells["baseline"].to_numpy())))


def _panel(figure: style.Sheet, each: Map, place, normalised: bool) -> None:
    left, top, wide, high = place
    label = " ".join([each.prompt["prompt_id"], *each.named])
    axes = style.place(figure, *place, label)
    most = max(each.base, each.value_LW.max())
    norm, colours = (Normalize(-100, 100), CHANGES) if normalised else (Normalize(0, most), PUBLISHED)
    axes.pcolormesh(np.ma.masked_invalid(each.change_LW if normalised else each.value_LW), cmap=colours, norm=norm)
    axes.set_facecolor(style.FAINT)
    _label(axes, each)
    if not normalised:
        bar = style.place(figure, left + wide + 0.1, top, 0.09, high, f"scale {label}")
        figure.colorbar(ScalarMappable(norm, colours), cax=bar).outline.set_visible(False)
        bar.axhline(each.base, color=style.LAST, linewidth=1.4)  # the clean run's
        bar.tick_params(length=2, pad=1.5, labelsize=6.5)
        bar.locator_params(axis="y", nbins=4)


def _head(figure: style.Sheet, each: Map, left: float, top: float, wide: float, several: bool) -> None:
    """The answer, and what the panel is of; no line wider than `wide` inches."""
    conv, span = each.named
    blocked = f"{conv}, {span}" if span != "token" else f"conv={conv}"
    told = f"base p {number(each.base)} · {blocked}" if several else f"window {each.size} · base p {number(each.base)}"
    style.write(figure, left, top - 0.52, _cut(each.prompt["target"].strip(), int(wide / 0.08)), fontsize=8.5, weight="bold")
    for text, height in ((told, 0.34), (each.prompt["prompt_id"], 0.19)):
        style.write(figure, left, top - height, _cut(text, int(wide / 0.056)), fontsize=6.8, color=style.GREY)


def _label(axes: Axes, each: Map) -> None:
    axes.set(xlim=(0, len(each.starts)), ylim=(len(each.tokens), 0))
    axes.set_xlabel("first layer of the window", labelpad=2, fontsize=7)
    for spine in axes.spines.values():
        spine.set(visible=True, color=style.FAINT)
    every = 1 if len(each.starts) <= 10 else 5
    ticks = [w for w, start in enumerate(each.starts) if start % every == 0]
    axes.set_xticks([w + 0.5 for w in ticks], [str(each.starts[w]) for w in ticks])
    axes.set_yticks(np.arange(len(each.tokens)) + 0.5, _labels(each), fontsize=7)
    axes.tick_params(length=0, pad=3)
    first, end = each.prompt["spans"].get("subject", (0, 0))
    for tick in axes.get_yticklabels()[first:end]:
        tick.set_color(style.SUBJECT)


def _labels(each: Map) -> list[str]:
    """The tokens as tick labels, the last one starred."""
    names = token_labels(each.tokens)
    return [*names[:-1], f"{names[-1]}*"]


def token_labels(tokens: Sequence[str], longest: int = 14) -> list[str]:
    """Tokens in one short printable line each, and none of them mathematics to matplotlib."""
    names = [(token.strip(" ") or "\N{OPEN BOX}").translate(INVISIBLE) for token in tokens]
    return [_cut(name, longest) for name in names]


def _cut(text: str, longest: int) -> str:
    short = text if len(text) <= longest else f"{text[:longest - 1]}…"
    return short.replace("$", r"\$")


def _bar(figure: style.Sheet, left: float, top: float) -> None:
    axes = style.place(figure, left, top, 1.6, 0.09, "scale")
    figure.colorbar(ScalarMappable(Normalize(-100, 100), CHANGES), cax=axes, orientation="horizontal").outline.set_visible(False)
    axes.set_title("change of p(answer), %", fontsize=7.5, loc="left", pad=3)
    axes.tick_params(length=2, pad=1.5, labelsize=7)


def _caption(shown: int, count: int, normalised: bool) -> str:
    what = ("Change of the answer's probability, in % of what it is without a knockout (a rise of more than 100% is drawn as 100%),"
            if normalised else "The answer's probability")
    scale = "" if normalised else " Each panel has its own scale from 0; the orange line on it is the clean run's probability."
    others = "" if shown >= count else (f" Shown are the first {shown} of {count} prompts: mamba_mi.prompt_heatmap(FOLDER, "
                                        "[prompt ids]) draws any of them, FOLDER being this run's.")
    return (f"{what} when the last token (starred) may not read the token of a row in the window of layers that begins with the "
            f"column's. Subject tokens are green.{scale}{others}")
