"""Knockout heatmaps and their sentences hold the run's own numbers."""
from types import SimpleNamespace

import numpy as np
import pytest

import mamba_mi
from mamba_mi.config import UserError
from mamba_mi.report.figures import draw, style
from mamba_mi.report.heatmap_words import RELATIVE, caveats, findings, headline, setting

from .synthetic import heatmap_measured, heatmap_summary

NAME = "instrument-{}-Anouk-Solstad"
POLICIES = (("scan", "token"), ("both", "token"))


def panels(figure):
    return {axes.get_label(): axes for axes in figure.axes}


def cell(role, start, mean, p=0.001, conv="scan", span="token", metric=RELATIVE, n=60, size=2):
    return {"conditions": {"role": role, "window_start": start, "window_size": size, "conv": conv, "span": span},
            "metric": metric, "n": n, "n_clusters": n, "mean": mean, "ci_low": mean - 8, "ci_high": mean + 8, "p_adjusted": p}


@pytest.mark.parametrize("normalised", [False, True])
def test_the_map_of_a_prompt_is_its_effects_token_by_window(run, normalised):
    measured = heatmap_measured(prompts=3)
    figure, caption = draw("heatmap_normalised" if normalised else "heatmap_prompts", run(heatmap_summary(), **measured)[1])
    rows = measured["effects"].to_pandas()
    rows = rows[rows.prompt_id == NAME.format(1)]
    want = np.full((9, 5), np.nan)
    for row in rows.itertuples():
        want[row.position, row.window_start] = (row.value / row.baseline - 1) * 100 if normalised else row.value
    axes = panels(figure)[f"{NAME.format(1)} scan token"]
    np.testing.assert_allclose(axes.collections[0].get_array(), want, rtol=1e-12)
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["<bos>", "the", "Anouk", "##stad", "plays", "profession", r"\$5", r"\n", "on*"]
    green = [tick.get_text() for tick in axes.get_yticklabels() if tick.get_color() == style.SUBJECT]
    assert green == ["Anouk", "##stad"] and "prompt_heatmap" not in caption
    said = [text.get_text() for text in figure.texts]
    assert "trumpet" in said and f"window 2 · base p {rows.baseline.iloc[0]:.2f}" in said


def test_the_published_colours_are_purple_where_the_answer_is_gone(run):
    axes = panels(draw("heatmap_prompts", run(heatmap_summary(), **heatmap_measured())[1])[0])[f"{NAME.format(0)} scan token"]
    mesh = axes.collections[0]
    assert mesh.get_cmap().name == "Purples_r" and mesh.norm.vmin == 0
    colour = mesh.cmap(mesh.norm(mesh.get_array()))
    assert colour[3, 4, 0] < 0.4 and colour[0, 0, 0] > 0.9


def test_more_prompts_than_fit_are_had_by_name(run):
    folder, tables = run(heatmap_summary(), **heatmap_measured(prompts=8))
    figure, caption = draw("heatmap_prompts", tables)
    assert [name for name in panels(figure) if name.startswith("instr")] == [f"{NAME.format(i)} scan token" for i in range(6)]
    assert "the first 6 of 8 prompts: mamba_mi.prompt_heatmap(" in caption
    figure = mamba_mi.prompt_heatmap(folder, [NAME.format(7)])
    assert [name for name in panels(figure) if name.startswith("instr")] == [f"{NAME.format(7)} scan token"]
    with pytest.raises(UserError, match="no heatmap of prompt 'nobody': this run has 8, such as instrument-0"):
        mamba_mi.prompt_heatmap(folder, "nobody")
    with pytest.raises(UserError, match="at least one prompt_id"):
        mamba_mi.prompt_heatmap(folder, [])
    with pytest.raises(UserError, match="not the folder of a finished heatmap run"):
        mamba_mi.prompt_heatmap(folder / "figures", ["nobody"])


def test_a_hole_in_a_prompts_map_raises(run):
    measured = heatmap_measured(prompts=2)
    measured["effects"] = measured["effects"].slice(1)
    with pytest.raises(UserError, match="44 of the 45 cells of prompt instrument-0-Anouk-Solstad"):
        draw("heatmap_prompts", run(heatmap_summary(), **measured)[1])


def test_the_mean_map_is_the_summary_by_role_and_window_hatched_where_nothing_stands_out(run):
    rows = [cell("last", 1, -3.0, 0.4), cell("subject_last", 0, -40.0), cell("bos", 0, 0.0, 1.0), cell("bos", 1, 1.0, 1.0),
            cell("last", 0, -2.0, 0.4), cell("subject_last", 1, -61.0), cell("further", 0, -5.0, 0.2, n=12),
            cell("further", 1, -6.0, 0.01, n=12)]
    figure, caption = draw("heatmap_mean", run(rows)[1])
    axes = panels(figure)["mean scan token"]
    assert axes.collections[0].get_array().tolist() == [[0, 1], [-40, -61], [-5, -6], [-2, -3]]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["BOS", "last subject token", "further tokens", "last token"]
    hatch, = axes.patches
    assert len(hatch.get_path().codes) == 5 * 5
    assert "n = 12" in [text.get_text() for text in figure.texts] and "12–60 prompts" in caption
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts[1.5, 1.33] == "−61" and texts[1.5, 1.72] == "[−69, −53]"


def test_every_policy_has_a_map_and_the_metric_is_what_the_run_chose(run):
    summary = heatmap_summary(heatmap_measured(policies=POLICIES))
    figure, _ = draw("heatmap_mean", run(summary)[1])
    assert {"mean scan token", "mean both token"} <= set(panels(figure))
    _, tables = run([cell("last", 0, -0.2, metric="probability")])
    tables.config["method"]["metrics"] = ["probability"]
    figure, caption = draw("heatmap_mean", tables)
    assert "Change of probability" in caption and panels(figure)["mean scan token"].collections[0].norm.vmin == -0.2


SMEARED = [cell("subject_last", 0, -6.0, 0.5), cell("after_subject", 0, -25.0), cell("subject_last", 1, 0.0, 1.0),
           cell("after_subject", 1, 0.0, 1.0), cell("further", 0, -11.0, 0.03), cell("bos", 1, -99.0, 0.2)]


def test_the_deepest_fall_is_told_with_its_interval_n_and_p():
    told = findings(SMEARED, RELATIVE)
    assert told[0] == ("Blocking the slot (conv=scan): 2 of 6 cells stand out (max-T). The answer's probability falls the most when "
                       "the last token cannot read the first token after subject in layers 0–1: −25% [−33, −17], n = 60 prompts, "
                       "p (max-T) = .001.")


def test_the_conv_is_named_where_the_slot_after_the_subject_is_what_is_read():
    smear = findings(SMEARED, RELATIVE)[1]
    assert "blocking the slot of the last subject token changes the answer's probability by −6.0% [−14, 2.0]" in smear
    assert "blocking the slot after it by −25% [−33, −17]; the conv writes" in smear and "method.conv=[scan,both]" in smear
    both = [cell("subject_last", 0, -54.0, conv="both"), cell("after_subject", 0, -2.0, 0.9, conv="both")]
    smear = findings(SMEARED + both, RELATIVE)[2]
    assert "(conv=both): last subject token −54% [−62, −46]; first token after subject −2.0% [−10, 6.0]." in smear
    own = [cell("subject_last", 0, -50.0), cell("after_subject", 0, 0.1, 1.0)]
    assert "is read from its own slots there" in findings(own, RELATIVE)[1]


def test_of_nothing_it_is_said_that_it_is_nothing():
    nothing = [cell("last", 0, -1.0, 0.9), cell("bos", 0, 1.0, 0.9)]
    assert findings(nothing, RELATIVE) == ["Blocking the slot (conv=scan): of 2 cells none stands out at 5% after correction over the "
                                           "whole map (max-T)."]
    assert "in none of them the answer's hit falls" in findings([cell("last", 0, 1.0, metric="hit")], "hit")[0]
    assert findings([], RELATIVE) == ["There is no result: no cell has an estimate."]


def test_the_headline_has_every_roles_strongest_window_in_the_texts_order():
    rows = headline(SMEARED, RELATIVE)
    assert [(row["conditions"]["role"], row["mean"]) for row in rows] == [("bos", -99.0), ("subject_last", -6.0),
                                                                           ("after_subject", -25.0), ("further", -11.0)]


def knobs(**given):
    return SimpleNamespace(**{"window": 5, "conv": ["scan"], "span": ["token"], "prompts": None, "best": None,
                              "metrics": [RELATIVE, "logit_difference"], **given})


def test_setting_and_caveats_tell_what_the_knobs_do_to_the_result():
    assert setting(knobs(best=3, conv=["scan", "both"]), 5, [("scan", "token"), ("both", "token")]) == {
        "layers": "windows of 5 layers", "query": "the last token", "metrics": "relative probability (%), logit difference",
        "blocked": "the slot (conv=scan); the token itself (conv=both)", "prompts": "the 3 of highest probability"}
    assert setting(knobs(), 1, [("scan", "token")])["layers"] == "single layers, for 5 do not fit into this model"
    told = " ".join(caveats([cell("last", start, 0.0, n=12, size=5) for start in (0, 1)], knobs(best=3)))
    assert "Only 12 prompts" in told and "Windows of 5 of 6 layers: there are only 2, which" in told and "method.window=2" in told
    assert "of highest probability" in told and "no logit difference" in told
    shallow = " ".join(caveats([cell("last", start, 0.0, size=1) for start in range(3)], knobs()))
    assert "the default, does not fit into 3 layers: windows of 1" in shallow and "there are only" not in shallow
    some = [cell("last", start, 0.0, size=1) | {"layers": [start]} for start in (0, 2, 4)]
    assert "does not fit into 3 layers that mix tokens: windows of 1" in " ".join(caveats(some, knobs()))
    deep = [cell("last", start, 0.0, metric=metric, size=5) for start in range(44) for metric in (RELATIVE, "logit_difference")]
    assert len(caveats(deep, knobs())) == 3 and len(caveats([], knobs())) == 5
