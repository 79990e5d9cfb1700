import random

import pytest

from mamba_mi.report import words
from mamba_mi.report.words import columns, interval, number, p_value, role, sample

from .synthetic import patching_summary


def test_a_number_is_read_back_within_its_rounding():
    random.seed(0)
    for _ in range(2000):
        x = random.uniform(-1, 1) * 10 ** random.uniform(-4, 4)
        decimals = 2 if abs(x) < 10 else 1 if abs(x) < 100 else 0
        assert abs(float(number(x).replace("\N{MINUS SIGN}", "-")) - x) <= 0.5 * 10 ** -decimals * (1 + 1e-9)


@pytest.mark.parametrize(("x", "text"), [(-0.001, "0.00"), (-0.05, "−0.05"), (153.2, "153"), (None, "–"),
                                         (float("nan"), "–")])
def test_a_number_at_its_edges(x, text):
    assert number(x) == text


@pytest.mark.parametrize(("ends", "text"), [((0.79, 0.86), "[.79, .86]"), ((-0.2, 1.04), "[−.20, 1.04]"),
                                            ((-0.001, 10.0), "[.00, 10.0]"), ((None, None), "")])
def test_an_interval(ends, text):
    assert interval(*ends) == text


@pytest.mark.parametrize(("p", "text"), [(0.0009, "< .001"), (0.001, ".001"), (0.0344, ".034"), (0.9996, "1"),
                                         (0.9994, ".999"), (None, "–")])
def test_a_p_value(p, text):
    assert p_value(p) == text


def test_roles_and_samples_in_words():
    assert [role(r) for r in ("subject_12", "subject", "pre_subject", "my_own")] == \
        ["subject token 12", "whole subject", "before subject", "my own"]
    assert sample([{"n": 14}, {"n": 200}]) == "n = 14–200 prompts"


def test_a_table_says_what_all_rows_share_once():
    rows = [row for row in patching_summary(2, 1, sites=("resid",)) if row["metric"] == "probability"]
    table = columns(rows)
    assert table.headings == ["direction", "layer", "role", "mean [95% interval]", "effect size", "p",
                              "p (max-T)", "p (BH)"]
    assert table.shared == "site residual stream, metric probability, n 200, clusters 90, excluded 0"
    assert table.numeric == [False, True, False, True, True, True, True, True]
    assert len(table.rows) == len(rows) and table.rows[0][:3] == ["sufficiency", "0", "BOS"]


def test_a_single_row_keeps_every_column_it_fills():
    row = {"conditions": {"task": "box", "layer": None}, "metric": "hit", "n": 5, "mean": 0.5, "ci_low": None,
           "ci_high": None, "p": None}
    assert columns([row]) == (["task", "metric", "n", "mean [95% interval]"], [False, False, True, True],
                              [["box", "hit", "5", "0.500"]], "")


def test_no_rows_give_an_empty_table():
    assert columns([]) == ([], [], [], "")


def test_prompts_without_a_change_in_percent_are_told_of():
    rows = [{"metric": "probability", "n": 40}, {"metric": "relative_probability", "n": 37}, {"metric": "hit", "n": 40}]
    assert words.without_ratio(rows)[0].startswith("In 3 of 40 prompts the answer's clean probability is 0")
    assert words.without_ratio(rows[:1]) == [] and words.without_ratio([rows[0], {**rows[1], "n": 40}]) == []
    assert words.too_few(50) == [] and words.too_few(1)[0].startswith("Only 1 prompt:")
