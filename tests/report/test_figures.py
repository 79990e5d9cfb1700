import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text

from mamba_mi.config import UserError
from mamba_mi.report.evaluate_words import levels
from mamba_mi.report.figures import CATALOGUE, draw, save, style
from mamba_mi.report.figures.evaluate import METRICS as CAPABILITIES
from mamba_mi.report.figures.style import NECESSITY_MAP, SUFFICIENCY_MAP

from .synthetic import (
    comparison,
    corpus_summary,
    generated_levels,
    heads_summary,
    heatmap_measured,
    heatmap_summary,
    patching_summary,
    paths_effects,
    paths_summary,
    subspace_summary,
    training_curve,
    training_summary,
)
from .synthetic_classified import classified_account
from .synthetic_evaluate import evaluate_summary
from .synthetic_flow import flow_summary

HEADLINE = "normalised_logit_difference"
ROLES = ["bos", "pre_subject", "subject_1", "subject_2", "subject", "between", "last"]  # as in the text
RUNS = {
    "six layers": {"layers": 6, "tokens": 2},
    "two layers, one site": {"layers": 2, "tokens": 1, "sites": ("resid",), "n": 20},
    "twelve layers": {"layers": 12, "tokens": 3, "sites": ("resid", "out")},
    "48 layers, long subjects": {"layers": 48, "tokens": 6, "sites": ("resid",)},
    "64 layers, four sites": {"layers": 64, "tokens": 1, "sites": ("resid", "out", "scan_out", "gated")},
}


def panels(figure):
    return {axes.get_label(): axes for axes in figure.axes}


def changed(rows, change):
    return [{**row, **change} if row["metric"] == HEADLINE else row for row in rows]


def test_every_name_of_the_catalogue_draws(run):
    own = {"corpus_perplexity": corpus_summary(), "patching_heads": heads_summary(), "patching_subspace": subspace_summary(), "paths_violins": paths_summary(),
           "heatmap_mean": heatmap_summary(), "capability_profile": evaluate_summary(),
           **dict.fromkeys((name for name in CATALOGUE if name.startswith("info_flow")), flow_summary(timescales=("all", "slow")))}
    for name in CATALOGUE:
        summary = own.get(name) or training_summary() + patching_summary(2, 1, sites=("resid",))
        kept = heatmap_measured() if name.startswith("heatmap") else {"effects": paths_effects()} if name == "paths_violins" else {}
        if name == "prompts_levels":
            kept = dict(zip(("generation", "effects"), generated_levels()))
        figure, caption = draw(name, run(summary, curve=training_curve(), compared=comparison(), classified=classified_account(), **kept)[1])
        assert figure.axes and len(caption) > 40


def test_a_generated_prompt_is_a_point_and_a_level_a_row(run):
    generation, counts = generated_levels(n=20)
    found = panels(draw("prompts_levels", run(patching_summary(2, 1), generation=generation, effects=counts)[1])[0])
    for metric, low in (("facts", 2), ("words", 22)):
        points = [line.get_xydata() for line in found[metric].lines]
        assert [len(xy) for xy in points] == [20] * 6 and [{*xy[:, 0]} for xy in points] == [{low + y, low + y + 1, low + y + 2} for y in range(6)]
        assert all((abs(xy[:, 1] - y) < 0.5).all() and len({tuple(at) for at in xy.round(2)}) == 20 for y, xy in enumerate(points))
    assert [bar.get_width() for bar in found["answers"].patches] == [75] * 6


def test_an_unknown_figure_raises_with_the_list(run):
    with pytest.raises(UserError, match="patching_map, patching_curves.*did you mean 'patching_map'"):
        draw("patchng_map", run(patching_summary(2, 1))[1])


def test_cell_text_is_the_summarys_numbers(run):
    summary = patching_summary(6, 2)
    figure, _ = draw("patching_map", run(summary)[1])
    rows = {(c["direction"], c["site"], c["role"], c["layer"]): row for row in summary
            for c in [row["conditions"]] if row["metric"] == HEADLINE}
    seen = {}
    for direction in ("denoising", "noising"):
        for site in ("resid", "out", "scan_out"):
            for text in panels(figure)[f"{direction} {site}"].texts:
                x, y = text.get_position()
                seen.setdefault((direction, site, ROLES[int(y)], int(x)), []).append(text.get_text())
    assert seen.keys() == rows.keys()
    for cell, (mean, between) in seen.items():
        row, numbers = rows[cell], [mean, *between.strip("[]").split(",")]
        read = [float(number.replace("\N{MINUS SIGN}", "-")) for number in numbers]
        assert np.allclose(read, [row["mean"], row["ci_low"], row["ci_high"]], rtol=0, atol=0.005 + 1e-12)


def test_colours_of_a_deep_map_are_the_summarys_numbers(run):
    summary = patching_summary(48, 6)
    axes = panels(draw("patching_map", run(summary)[1])[0])
    assert not axes["noising out"].texts and "width noising out" in axes
    row = next(row for row in summary if row["metric"] == HEADLINE and row["conditions"] ==
               {"direction": "noising", "site": "out", "layer": 30, "role": "last"})
    means, widths = (axes[label].collections[0].get_array() for label in ("noising out", "width noising out"))
    assert means.shape == widths.shape == (11, 48)
    assert means[10, 30] == row["mean"] and widths[10, 30] == (row["ci_high"] - row["ci_low"]) / 2


def test_curves_and_bands_are_the_summarys_numbers(run):
    summary = patching_summary(6, 2)
    axes = panels(draw("patching_curves", run(summary)[1])[0])["noising resid"]
    rows = sorted((row["conditions"]["layer"], row["mean"], row["ci_low"], row["ci_high"]) for row in summary
                  if row["metric"] == HEADLINE and row["conditions"]["direction"] == "noising"
                  and row["conditions"]["site"] == "resid" and row["conditions"]["role"] == "last")
    line = next(line for line in axes.lines if line.get_label() == "last")
    assert np.array_equal(line.get_xydata(), [row[:2] for row in rows])
    band = axes.collections[-1].get_paths()[0].vertices
    assert {(x, y) for x, _, low, high in rows for y in (low, high)} <= set(map(tuple, band))


def test_only_cells_that_do_not_stand_out_are_hatched(run):
    rows = patching_summary(2, 1, sites=("resid",))
    for row in rows:
        row["p_adjusted"] = 0.2 if row["conditions"]["role"] == "bos" else 0.01
        row["p_adjusted"] = None if row["conditions"]["role"] == "last" else row["p_adjusted"]
    figure, caption = draw("patching_map", run(rows)[1])
    hatch, = panels(figure)["denoising resid"].patches
    assert hatch.get_hatch() and hatch.get_path().get_extents().bounds == (0, 0, 2, 1)
    assert "4 cells were not tested" in caption


def test_a_hole_in_the_map_raises(run):
    rows = patching_summary(6, 2)
    rows.remove(next(row for row in rows if row["conditions"] ==
                     {"direction": "noising", "site": "out", "layer": 4, "role": "between"}))
    for name in ("patching_map", "patching_curves"):
        with pytest.raises(UserError, match="lacks 1 of the 252 cells .*noising / out / between / 4"):
            draw(name, run(rows)[1])


@pytest.mark.parametrize("name", CATALOGUE)
def test_missing_rows_raise(run, name):
    _, tables = run([{"conditions": {"task": "box"}, "metric": "other", "n": 1, "mean": 0.5}])
    with pytest.raises(UserError, match="has no rows with metric|no such file"):
        draw(name, tables)


def test_a_run_in_one_direction_draws_that_one(run):
    rows = [row for row in patching_summary(3, 1) if row["conditions"]["direction"] == "denoising"]
    for name in ("patching_map", "patching_curves"):
        labels = panels(draw(name, run(rows)[1])[0])
        assert "denoising resid" in labels and "noising resid" not in labels


def test_a_cell_without_an_estimate_says_so(run):
    rows = changed(patching_summary(2, 1, sites=("resid",)), {})
    rows[0].update(mean=None, ci_low=None, ci_high=None, p_adjusted=None)
    figure, caption = draw("patching_map", run(rows)[1])
    assert panels(figure)["denoising resid"].texts[0].get_text() == "–" and "no estimate" in caption


def test_n_is_in_the_title_and_in_the_legend_where_it_differs(run):
    figure, _ = draw("patching_map", run(patching_summary(2, 1))[1])
    assert any("n = 200 prompts, 90 clusters" in text.get_text() for text in figure.texts)
    figure, _ = draw("patching_curves", run(patching_summary(2, 6))[1])
    assert {"n = 14", "n = 200"} <= {text.get_text() for text in figure.texts}


def test_a_dot_is_ours_on_the_published_line_and_orange_where_a_prompt_is_off(run):
    compared = comparison(0.1)
    axes = panels(draw("reproduce_curves", run(training_summary(), compared=compared)[1])[0])["last/relation/None"]
    items = [item for item in compared["items"] if (item["query"], item["source"]) == ("last", "relation")]
    assert np.allclose(axes.lines[1].get_ydata(), [item["published"] for item in items])
    dots = axes.collections[0]
    assert np.allclose(dots.get_offsets(), [[item["window_start"], item["ours"]] for item in items])
    colours = {tuple(colour) for at, colour in enumerate(dots.get_facecolors()) if at != 4}
    assert len(colours) == 1 and tuple(dots.get_facecolors()[4]) not in colours


def shown(figure):
    """Every piece of text that is drawn, with its box: x0, y0, x1, y1 in pixels."""
    figure.draw_without_rendering()
    hidden = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
              for at, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
              for low, high in [sorted(axis.get_view_interval())] if not axes.axison or not low <= at <= high}
    texts = [text for text in figure.findobj(Text) if text.get_text() and text not in hidden]
    return [text.get_text() for text in texts], np.array([text.get_window_extent().extents for text in texts])


HEATMAPS = {"heatmaps": heatmap_measured(), "heatmaps, 48 layers": heatmap_measured(48, 20, 7, window=5),
            "heatmaps, one window and prompt": heatmap_measured(6, 9, 1, window=6),
            "heatmaps, single layers, no subject": heatmap_measured(12, 5, 2, window=1, spans={}),
            "heatmaps, three policies": heatmap_measured(6, 9, 3, policies=(("scan", "token"), ("both", "token"),
                                                                            ("scan", "token+conv")))}
MAPS = ("patching_map", "patching_curves")
FLOW = ("info_flow", "info_flow_bands", "info_flow_smear", "info_flow_splits", "info_flow_timescales")
SPANS = ("none", "last", "random", "beyond_conv", "key", "key+1", "value", "value+1")
RELATIONS = tuple(f"The relation of … that has the number {i} and a long name is" for i in range(34))
DRAWN = {**{kind: (lambda kind=kind: patching_summary(**RUNS[kind], metrics=[HEADLINE]), MAPS) for kind in RUNS},
         "training": (training_summary, ("training_curve", "training_recall")),
         "classified": (training_summary, ("classified_questions",)),
         "prompts": (training_summary, ("prompts_levels",)),
         "paths": (paths_summary, ("paths_violins",)),
         "subspace": (subspace_summary, ("patching_subspace",)),
         "subspace, 48 layers": (lambda: subspace_summary(48, 2), ("patching_subspace",)),
         "capabilities": (evaluate_summary, ("capability_profile",)),
         "capabilities, 34 categories": (lambda: evaluate_summary({"dataset": RELATIONS}), ("capability_profile",)),
         "capabilities of many runs": (lambda: evaluate_summary({"custom": ("one",)}, counted=False), ("capability_profile",)),
         "published numbers": (training_summary, ("reproduce_scatter", "reproduce_curves")),
         "flow": (lambda: flow_summary(timescales=("all", "slow", "mid", "fast")), FLOW),
         "flow, 48 layers": (lambda: flow_summary(48, (9, 15), timescales=("all", "slow")), FLOW),
         "flow of spans": (lambda: flow_summary(sources=SPANS, splits=("all",)), FLOW[:3]),
         **{kind: (lambda kind=kind: heatmap_summary(HEATMAPS[kind]), tuple(n for n in CATALOGUE if n.startswith("heatmap")))
            for kind in HEATMAPS},
         "heads": (heads_summary, ("patching_heads",)), "64 heads": (lambda: heads_summary(24, 64), ("patching_heads",)),
         "corpus": (corpus_summary, ("corpus_perplexity", "corpus_curve")), "one source": (lambda: corpus_summary(("all sources",)), ("corpus_perplexity",)),
         "many sources": (lambda: corpus_summary([*(f"A set of the Pile {i}" for i in range(21)), "all sources"], 5421.0), ("corpus_perplexity",))}


def test_every_figure_is_among_those_whose_text_is_looked_at():
    assert {name for _, names in DRAWN.values() for name in names} == set(CATALOGUE)


@pytest.mark.parametrize("kind", DRAWN)
def test_no_text_is_clipped_or_overlaps(run, kind):
    summary, names = DRAWN[kind]
    kept = HEATMAPS.get(kind, {"effects": paths_effects()} if kind == "paths" else {})
    if kind == "prompts":
        kept = dict(zip(("generation", "effects"), generated_levels(100)))
    tables = run(summary(), model="mamba2-1.3b", curve=training_curve(), compared=comparison(0.1), classified=classified_account(), **kept)[1]
    for name in names:
        figure, _ = draw(name, tables)
        texts, box = shown(figure)
        page = figure.bbox.extents
        clipped = ((box < page[[0, 1, 0, 1]]) | (box > page[[2, 3, 2, 3]])).any(1)
        assert not clipped.any(), f"{name} clips {np.array(texts)[clipped]}"
        low, high = box[:, :2], box[:, 2:]
        common = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
        pairs = np.argwhere(np.triu((common > 1).all(-1), k=1))
        assert not len(pairs), f"{name}: {[(texts[a], texts[b]) for a, b in pairs[:3]]} overlap"


SCRIPT = """
import sys
from mamba_mi.report.figures import draw, save
from mamba_mi.report.tables import read_run
for name in ("patching_map", "patching_curves"):
    save(draw(name, read_run(sys.argv[1]))[0], sys.argv[2], name)
print(sorted({"torch", "matplotlib.pyplot"} & set(sys.modules)))
"""


def test_figures_are_byte_stable_and_touch_no_global_state(run, tmp_path):
    folder, tables = run(patching_summary(2, 1, sites=("resid", "out")))
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        for name in ("patching_map", "patching_curves"):
            saved = save(draw(name, tables)[0], tmp_path / "one", name)
            assert saved == tmp_path / "one" / "figures" / f"{name}.png"
    assert dict(matplotlib.rcParams) == before
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "two")]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    written = sorted(path.name for path in (tmp_path / "one" / "figures").iterdir())
    assert written == ["patching_curves.pdf", "patching_curves.png", "patching_map.pdf", "patching_map.png"]
    for name in written:
        one, two = (tmp_path / each / "figures" / name for each in ("one", "two"))
        assert one.read_bytes() == two.read_bytes(), name


def cielab(colours):
    """L*, a*, b* (CIE 1976): another measure than the one the maps are made with."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(linear @ to_xyz.T / [0.9505, 1, 1.089]).T  # none is dark enough for the linear part
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


@pytest.mark.parametrize("colours", [SUFFICIENCY_MAP, NECESSITY_MAP])
def test_colour_maps_are_centred_symmetric_and_even(colours):
    lab = cielab(colours(np.linspace(0, 1, 256))[:, :3])
    below, above = lab[127::-1], lab[128:]
    assert np.array_equal(below[0], above[0]) and above[0, 0] > 97  # white at 0
    for arm in (below, above):
        steps = np.linalg.norm(np.diff(arm, axis=0), axis=1)
        assert (np.diff(arm[:, 0]) < 0).all() and steps.max() < 1.4 * steps.min()
    assert np.abs(below - above)[:, 0].max() < 3  # as dark below 0 as above it


def test_the_subspace_figure_draws_what_the_summary_and_the_draws_say(run):
    summary = subspace_summary(3, 25)
    figure, caption = draw("patching_subspace", run(summary)[1])
    axes = panels(figure)["denoising resid last"]
    mine = [row for row in summary if row["conditions"]["direction"] == "denoising" and row["conditions"]["role"] == "last"]
    effects = {name: [[r["mean"] for r in mine if r["conditions"]["subspace"] == name and r["conditions"]["layer"] == y]
                      for y in range(3)] for name in ("isotropic", "mean_difference")}
    drawn = [list(map(float, line.get_ydata())) for line in axes.lines]
    assert [pytest.approx(x) for x in np.mean(effects["isotropic"], axis=1)] in drawn
    assert [x for x, in effects["mean_difference"]] in drawn
    assert "25 random subspaces" in caption


def test_the_heads_figure_colours_the_one_head_that_matters(run):
    figure, _ = draw("patching_heads", run(heads_summary())[1])
    values = panels(figure)["noising state last"].collections[0].get_array().reshape(6, 8)
    assert np.argwhere(values > 0.5).tolist() == [[3, 5]]


@pytest.mark.parametrize("scale", [1e-7, 1e-2])
def test_violins_of_differences_are_where_the_differences_are(run, scale):
    effects = paths_effects(scale)
    axes = panels(draw("paths_violins", run(paths_summary(), effects=effects)[1])[0])["differences"]
    frame = effects.to_pandas().query("path == 'attention'")
    up, down = (np.log10(abs(x[x != 0])) for x in ((frame.value - frame.baseline)[frame.metric == m]
                                                   for m in ("probability", "max_probability")))
    (right, left), low, high = axes.collections, *axes.get_ylim()
    for half, sizes, middle, side in ((right, up, 0, 1), (left, down, 1, -1)):
        box = half.get_paths()[0].get_extents()
        assert (box.x0, box.x1)[side < 0] == middle and (box.x1 - middle if side > 0 else middle - box.x0) == pytest.approx(0.4)
        slack = 3.1 * (high - low) / 60  # two bins of smoothing and one of the histogram
        assert box.y0 <= sizes.min() < box.y0 + slack and box.y1 - slack < sizes.max() <= box.y1
    assert sum("20 exactly 0" in text.get_text() for text in axes.texts) == 2
    assert low < np.log10(1e-4) < high  # the tolerance is in the picture


def test_violins_of_probabilities_end_where_probabilities_do(run):
    axes = panels(draw("paths_violins", run(paths_summary(), effects=paths_effects())[1])[0])["probabilities"]
    boxes = [collection.get_paths()[0].get_extents() for collection in axes.collections]
    assert len(boxes) == 4 and all(0 <= box.y0 and box.y1 <= 1 for box in boxes)
    assert axes.get_ylim() == (0, 1)


def test_paths_that_agree_to_the_bit_are_drawn_as_such(run):
    figure, caption = draw("paths_violins", run(paths_summary(None), effects=paths_effects(0.0))[1])
    axes = panels(figure)["differences"]
    assert not axes.collections and sum("80 exactly 0" in text.get_text() for text in axes.texts) == 2
    assert "tolerance" not in caption


def test_a_profile_s_dots_and_intervals_are_the_summary_s(run):
    summary = evaluate_summary()
    figure, caption = draw("capability_profile", run(summary)[1])
    axes = panels(figure)["custom"]
    assert [label.get_text() for label in axes.get_yticklabels()][:3] == ["all categories", "Simple Recall", "Two-Hop Reasoning"]
    for metric, label in (("first_token", "first token"), ("exact_match", "whole answer, exactly"), ("f1", "words in common (F1)")):
        rows = levels(summary, metric)
        [dots] = [line for line in axes.lines if line.get_label() == label]
        mine = [row for (kind, _), row in rows.items() if kind == "custom"]
        assert list(dots.get_xdata()) == [row["mean"] for row in mine] and dots.get_color() == CAPABILITIES[metric][1]
        assert list(dots.get_ydata() - np.arange(len(mine))) == pytest.approx([{"o": -0.24, "D": 0, "s": 0.24}[CAPABILITIES[metric][2]]] * len(mine))
        ends = {tuple(line.get_xdata()) for line in axes.lines if line.get_color() == dots.get_color() and len(line.get_xdata()) == 2}
        assert {(row.get("wilson_low", row["ci_low"]), row.get("wilson_high", row["ci_high"])) for row in mine} <= ends
    assert "with fewer prompts" not in caption
    assert {tuple(line.get_xdata()) for line in axes.lines if line.get_color() == style.GREY} == {(0.1, 0.1)}
    few = [{**row, "n": row["n"] - (row["conditions"]["category"] < "kind 20")} for row in evaluate_summary({"custom": [f"kind {i:02d}" for i in range(60)]})]
    many = draw("capability_profile", run(few)[1])
    assert [label.get_text() for label in panels(many[0])["custom"].get_yticklabels()][1] == "kind 20"
    assert len(panels(many[0])["custom"].get_yticks()) == 41 and many[1].endswith(" 20 categories with fewer prompts are in summary.json alone.")
    bars = {(round(bar.get_x(), 6), round(bar.get_width(), 6)) for bar in axes.patches}
    assert bars == {(round(row["control_low"], 6), round(row["control_high"] - row["control_low"], 6))
                    for (kind, _), row in levels(summary, "exact_match").items() if kind == "custom"}


def test_violins_without_effects_raise(run):
    with pytest.raises(UserError, match="effects.parquet"):
        draw("paths_violins", run(paths_summary())[1])
