"""What is said of two paths: every number from the rows, and nothing where the rows lack it."""
import pytest

from mamba_mi.report import paths_words as say
from mamba_mi.report.words import columns, estimate, fine


def row(path, metric, mean, low, high, **more):
    return {"conditions": {"path": path}, "metric": metric, "n": 2000, "n_clusters": 1500, "mean": mean, "ci_low": low,
            "ci_high": high, **more}


COUNTED = {"hits_on_both": 290, "ordinary_only": 7, "attention_only": 3, "neither": 1700, "predictions_differ": 12,
           "accuracy": 0.1463, "wilson_low": 0.132, "wilson_high": 0.163}
SUMMARY = [
    row("ordinary", "hit", 0.1484, 0.133, 0.164, hits=297, accuracy=0.1484, wilson_low=0.134, wilson_high=0.165),
    row("attention", "hit", -0.002, -0.004, 0.0, hits=293, **COUNTED),
    row("ordinary", "probability", 0.091, 0.08, 0.1), row("ordinary", "target_logprob", -6.1, -6.3, -5.9),
    row("attention", "probability", -2.4e-8, -5.1e-8, 1.0e-9, sd=1e-7, min=-3e-5, max=4.4e-3, largest=4.4e-3,
        largest_at="cf-00003: The mother tongue of X is", tolerance=1e-4, over_tolerance=2, p_tost=0.0002, **{"over_0.1": 0}),
    row("attention", "logit_deviation", 2e-5, 1e-5, 3e-5, largest=0.0123),
]


def test_levels_name_both_accuracies_with_wilson_and_where_the_hits_are():
    first, means = say.levels(SUMMARY)
    for text in ("14.8% [13.4, 16.5], n = 2,000 prompts of 1,500 subjects", "attention path 14.6% [13.2, 16.3]", "both paths: 290",
                 "ordinary one alone: 7", "attention path alone: 3", "neither: 1,700"):
        assert text in first
    assert "its probability 0.09 [0.08, 0.10]" in means and "log-probability −6.10 [−6.30, −5.90]" in means


def test_paths_that_give_the_same_bits_are_said_to_say_nothing():
    same = [row("ordinary", "hit", 0.9, 0.8, 1.0), row("attention", "hit", 0, 0, 0), row("attention", "probability", 0, 0, 0)]
    assert say.SAME_BITS in say.caveats(same)
    assert say.SAME_BITS not in say.caveats([*same[:-1], row("attention", "probability", 0, 0, 1e-9)])
    assert say.SAME_BITS not in say.caveats(same[:1])


def test_differences_are_written_however_small_they_are():
    probability, choice, logits = say.differences(SUMMARY)
    for text in ("mean −2.4e−08 [−5.1e−08, 1.0e−09]", "from −3.0e−05 to 0.004", "0 differ by more than 0.1",
                 "2 prompts beyond the tolerance of 0.0001", "equivalent to 0 within it, TOST p < .001"):
        assert text in probability
    assert "differs on 12 of 2,000 prompts, hit or miss on 10" in choice and "none differs by more than 0.012" in logits
    assert "mean −0.002 [−0.004, 0.004]" in say.differences([{**SUMMARY[4], "mean": -0.002, "ci_low": -0.004, "ci_high": 0.004}])[0]


def test_a_mean_that_is_not_shown_to_be_within_is_not_called_equivalent():
    told, = say.differences([{**SUMMARY[4], "p_tost": 0.3}])
    assert "is not shown, TOST p = .300" in told and "equivalent" not in told


def test_the_verdict_names_difference_prompt_tolerance_and_way_out():
    said = say.verdict(SUMMARY)
    for text in ("'cf-00003: The mother tongue of X is'", "2 of 2,000 prompts exceed method.tolerance=0.0001", "dtype=float64",
                 "method.tolerance=0.009 would accept it"):
        assert text in said
    assert say.verdict([{**SUMMARY[4], "over_tolerance": 0}]) == say.verdict([]) == ""


def test_rows_of_a_sweep_which_hold_no_counts_are_told_without_them():
    plain = [{key: r[key] for key in ("conditions", "metric", "n", "n_clusters", "mean", "ci_low", "ci_high")} for r in SUMMARY]
    first, _ = say.levels(plain)
    assert "14.8% [13.3, 16.4]" in first and "Hits on both" not in first
    assert say.differences(plain) == [] and say.levels([]) == []


def test_the_first_mismatches_are_listed_and_the_others_counted():
    side = {"pred": " Rome", "pred_id": 5, "hit": False, "true_prob": 3e-9, "max_prob": 0.5}
    found = [{"prompt_id": f"p{i}", "text": "x" * 60, "target": " Paris", "differs": ["prediction", "hit"], "ordinary": side,
              "attention": {**side, "pred": " Paris", "hit": True}} for i in range(25)]
    (title, table), = say.listed(found)
    assert "first 20 of 25" in title and len(table.rows) == 20 and len(table.rows[0]) == len(table.headings) == len(table.numeric)
    assert table.rows[0][3] == "3.0e−09" and table.rows[0][-1] == "' Paris' 0.500 (hit)" and len(table.rows[0][1]) <= 50
    assert say.listed([]) == []


@pytest.mark.parametrize(("x", "text"), [(0.0, "0"), (-3.14e-9, "−3.1e−09"), (0.0421, "0.042"), (None, "–"), (float("nan"), "–")])
def test_a_fine_number(x, text):
    assert fine(x) == text


def test_an_estimate_is_never_all_zeros_unless_it_is_zero():
    assert estimate(-2e-9, -3e-9, 1e-9) == "−2.0e−09 [−3.0e−09, 1.0e−09]" and estimate(0.0, 0.0, 0.0) == "0.00 [0.00, 0.00]"
    assert estimate(0.0001, -0.002, 0.003, 3) == "0.000 [−0.002, 0.003]" and estimate(0.5, None, None) == "0.50"
    assert columns([SUMMARY[4]]).rows[0][4] == "−2.4e−08 [−5.1e−08, 1.0e−09]"


def test_tables_hold_one_path_each_and_begin_with_hits():
    levels, differences = say.table_of_levels(SUMMARY[::-1]), say.table_of_differences(SUMMARY[::-1])
    assert [r["metric"] for r in levels] == ["hit", "probability", "target_logprob"] and levels[0]["hits"] == 297
    assert [r["metric"] for r in differences] == ["hit", "probability", "logit_deviation"] and differences[1]["over_tolerance"] == 2
