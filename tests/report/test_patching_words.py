"""Sentences of a patching run hold its own numbers."""
from types import SimpleNamespace

from mamba_mi.measure.controls import judge
from mamba_mi.report.patching_words import beside_chance, caveats, crossing, largest, setting

from .synthetic import METRICS, subspace_summary


def rows(draws=25):
    """The fitted subspace does the most at layer 2, .73 against the others' .6."""
    found = judge(subspace_summary(4, draws))
    for row in found:
        at = row["conditions"]
        if at["subspace"] == "mean_difference" and at["layer"] == 2:
            row.update(mean=0.73, ci_low=0.66, ci_high=0.79)
    return found


def knobs(**given):
    return SimpleNamespace(**{"tau": 0.5, "corruption": "pair", "subspace": "mean_difference", "train": 200, "draws": 25,
                              "draw": None, "noise": 3.0, "samples": 10, **given})


def test_a_subspace_is_told_where_it_does_the_most_beside_the_whole_value_and_chance():
    said, = beside_chance(rows(), "denoising", "resid", "last", "mean_difference")
    assert "Restoring 8 dimensions (mean difference) of the last token (residual stream) brings back the most at layer 2" in said
    assert "0.73 [0.66, 0.79] of the logit difference, n = 80; the whole value, 0.90 [0.85, 0.95]" in said
    assert "the middle 95% of 25 draws, p = .038; covariance p = .038; rescaled p = .038." in said


def test_without_draws_no_chance_is_told_and_the_caveats_say_what_is_missing():
    said, = beside_chance(rows(draws=0), "noising", "resid", "subject", "mean_difference")
    assert "Corrupting" in said and "random" not in said
    assert any("No random subspaces were drawn" in each for each in caveats(rows(draws=0), knobs(draws=0)))


def row(layer, mean, p, **more):
    return {"conditions": {"direction": "denoising", "site": "conv", "layer": layer, "role": "last", **more}, "metric": METRICS[0],
            "n": 80, "mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1, "p_adjusted": p}


def test_the_largest_effects_are_told_over_all_sites_and_of_none_that_it_is_none():
    rows = [row(0, 0.5, 0.2), row(1, -0.4, 0.01), row(2, 0.3, 0.01, site="state", head=6), row(3, 0.2, 0.01, site="state", head=1)]
    assert largest(rows, "denoising") == [
        "Restoring: 3 of 4 cells stand out (max-T), the largest of each site: conv output, layer 1, last token "
        "−0.40 [−0.50, −0.30]; state head 6, layer 2, last token 0.30 [0.20, 0.40]."]
    assert "of 1 cells none stands out" in largest(rows[:1], "denoising")[0]


def test_a_curve_in_which_nothing_stands_out_and_a_single_layer_have_no_turn():
    flat = [row(layer, 0.01, 0.9, site="resid") for layer in range(4)]
    assert crossing(flat, "denoising", "resid", "last") == []
    assert crossing([row(2, 0.9, 0.001, site="resid")], "denoising", "resid", "last") == []


def test_the_setting_tells_the_corruption_and_the_subspace():
    told = setting(knobs(metrics=["logit_difference"], rank=8, heads=None, dims=None, corruption="noise"), model(range(6)))
    assert told["corrupted run"].startswith("noise of 3 standard") and "rank 8, 25 draws" in told["subspace"]


def model(mixing, layers=6):
    return SimpleNamespace(mixing=tuple(mixing), config=SimpleNamespace(n_layer=layers))


def test_the_setting_says_which_layers_mix_tokens_where_not_all_do():
    asked = knobs(metrics=["logit_difference"], rank=8, heads=None, dims=None)
    assert setting(asked, model((0, 2, 4)))["layers that mix tokens"] == "0, 2, 4 of 6"
    assert "layers that mix tokens" not in setting(asked, model(range(6)))


def test_the_caveat_of_the_conv_is_of_the_models_own_width():
    of_conv = [" ".join(line for line in caveats(rows(), knobs(), width) if "conv" in line) for width in (4, 3, 1, None)]
    assert "The conv of width 4 carries a token's content into the next 3 positions" in of_conv[0] and "1 to 3 positions" in of_conv[0]
    assert "The conv of width 3 carries a token's content into the next 2 positions" in of_conv[1] and "1 to 2 positions" in of_conv[1]
    assert of_conv[2] == "" and of_conv[3].startswith("A conv carries") and not any("scan" in said for said in of_conv)


def test_the_caveats_tell_how_well_the_controls_match_and_what_the_split_means():
    told = " ".join(caveats(rows(), knobs()))
    assert "exchanges 0.30 to 0.30 times as much" in told and "Makelov" in told
    unsplit = [row for row in rows() if row["conditions"]["subspace"] not in ("row_space", "null_space")]
    assert "was not split" in " ".join(caveats(unsplit, knobs()))
    assert "Gaussian noise of 3 standard deviations" in " ".join(caveats(rows(), knobs(corruption="noise")))
