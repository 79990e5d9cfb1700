"""The figures of an information flow draw the summary's numbers, in the field's colours."""
import numpy as np
import pytest

from mamba_mi import UserError
from mamba_mi.report.figures import draw, style

from .synthetic_flow import METRIC, flow_summary


def panels(figure):
    return {axes.get_label(): axes for axes in figure.axes}


def lines(axes) -> dict:
    """By colour and dashes: the curves of a panel, without the line at no change."""
    return {(line.get_color(), line.get_linestyle()): np.array(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) > 2}


def means(summary, metric=METRIC, **wanted):
    wanted = {"conv": "scan", "span": "token", "timescale": "all", "split": "all", **wanted}
    rows = [row for row in summary if row["metric"] == metric and wanted.items() <= row["conditions"].items()]
    return np.array([[row[key] for row in sorted(rows, key=lambda row: row["conditions"]["window_start"])]
                     for key in ("mean", "ci_low", "ci_high")])


def test_the_fields_figure_is_the_published_policy_in_the_fields_colours(run):
    summary = flow_summary()
    figure, caption = draw("info_flow", run(summary)[1])
    looks = {"last": (style.LAST, ":"), "subject": (style.SUBJECT, "-"), "relation": (style.RELATION, "--")}
    for size in (2, 3):
        change, hits = (lines(panels(figure)[f"{name} {size}"]) for name in ("change of p, %", "hit rate, %"))
        for source, look in looks.items():
            np.testing.assert_allclose(change[look], means(summary, source=source, window_size=size)[0])
            np.testing.assert_allclose(hits[look], 100 + 100 * means(summary, "hit", source=source, window_size=size)[0])
    assert "conv=scan, span=token" in caption
    levels = [panels(figure)[name].lines[-1].get_ydata()[0] for name in ("change of p, % 2", "hit rate, % 2")]
    assert levels == [0, 100]


def test_the_caption_explains_the_policies_that_were_measured(run):
    slots = [row for row in flow_summary() if (row["conditions"]["conv"], row["conditions"]["span"]) == ("scan", "token")]
    alone, every = (draw("info_flow_bands", run(rows)[1])[1] for rows in (slots, flow_summary()))
    assert "scan blocks a token's own slots. Bands" in alone and "conv only what the conv carries past its slots; both" in every


def test_few_windows_have_a_tick_at_each_start_and_at_no_layer_between(run):
    rows = [row | {"conditions": row["conditions"] | {"window_start": 2 * row["conditions"]["window_start"]}} for row in flow_summary()]
    figure, _ = draw("info_flow", run(rows)[1])
    for axes in panels(figure).values():
        starts = {float(x) for line in axes.lines if len(line.get_xdata()) > 2 for x in line.get_xdata()}
        if starts:
            assert sorted(starts) == [x for x in axes.get_xticks() if min(starts) <= x <= max(starts)]


def test_the_hit_rate_starts_from_the_clean_runs(run):
    from dataclasses import replace

    from mamba_mi.measure.effects import effects
    columns = {"prompt_id": ["a", "b"], "source": ["subject"] * 2, "metric": ["hit"] * 2, "value": [0.0, 0.0], "baseline": [1.0, 0.0]}
    summary = flow_summary(sources=("none", "subject"))
    figure, _ = draw("info_flow", replace(run(summary)[1], effects=effects(columns)))
    drawn = lines(panels(figure)["hit rate, % 2"])[style.SUBJECT, "-"]
    np.testing.assert_allclose(drawn, 50 + 100 * means(summary, "hit", source="subject", window_size=2)[0])


@pytest.mark.parametrize("name, panel, wanted", [
    ("info_flow_bands", "both 3", {"conv": "both"}), ("info_flow_bands", "scan, token+conv 3", {"span": "token+conv"}),
    ("info_flow_splits", "subject first 3", {"split": "subject_first"}), ("info_flow_timescales", "slow third 3", {"timescale": "slow"})])
def test_bands_are_the_intervals(run, name, panel, wanted):
    summary = flow_summary(timescales=("all", "slow", "mid", "fast"))
    axes = panels(draw(name, run(summary)[1])[0])[panel]
    mean, low, high = means(summary, source="subject", window_size=3, **wanted)
    np.testing.assert_allclose(lines(axes)[style.SUBJECT, "-"], mean)
    corners = {(float(x), round(float(y), 9)) for band in axes.collections for x, y in band.get_paths()[0].vertices}
    assert {(float(x), round(float(y), 9)) for end in (low, high) for x, y in enumerate(end)} <= corners


def test_the_smear_figure_has_the_subject_by_every_policy_and_a_span_by_its_next_slot(run):
    summary = flow_summary()
    drawn = lines(panels(draw("info_flow_smear", run(summary)[1])[0])["smear 2"])
    for look, wanted in (((style.SUBJECT, "-"), {}), ((style.NECESSITY_INK, "-"), {"conv": "both"}),
                         ((style.SUFFICIENCY_INK, "--"), {"span": "token+conv"}), ((style.LAST, ":"), {"conv": "conv"})):
        np.testing.assert_allclose(drawn[look], means(summary, source="subject", window_size=2, **wanted)[0])
    np.testing.assert_allclose(drawn[style.GREY, "-"], means(summary, source="random", window_size=2, conv="both")[0])
    spans = flow_summary(sources=("none", "last", "value", "value+1"))
    drawn = lines(panels(draw("info_flow_smear", run(spans)[1])[0])["smear 2"])
    np.testing.assert_allclose(drawn[style.INK, "-."], means(spans, source="value+1", window_size=2)[0])
    with pytest.raises(UserError, match="there are none, last"):
        draw("info_flow_smear", run(flow_summary(sources=("none", "last")))[1])


def test_rows_of_another_experiment_are_refused(run):
    rows = [{"conditions": {"layer": 1}, "metric": METRIC, "n": 3, "mean": 0.5}]
    with pytest.raises(UserError, match="one has no query, source"):
        draw("info_flow", run(rows)[1])
