"""What a sweep of two groups is told: differences that are real, and of those that are rounding only that they are."""
from types import SimpleNamespace

from mamba_mi.report import sweep_words as say


def rows(means):
    return [{"conditions": {"direction": None, "layer": i}, "metric": "recovered", "n": 8, "mean": mean, "ci_low": mean - 1e-9,
             "ci_high": mean + 1e-9, "p_adjusted": 0.001} for i, mean in enumerate(means)]


def told(one, other):
    experiment = SimpleNamespace(headline=lambda rows: rows, findings=lambda rows: [])
    parts = [say.Part(name, experiment, rows(means)) for name, means in (("chunked", one), ("reference", other))]
    return say.of_groups(parts, rows([a - b for a, b in zip(one, other)]))


def test_differences_no_larger_than_rounding_are_none():
    assert told([0.5, -0.2], [0.5 + 4e-5, -0.2 - 4e-5]) == [
        "chunked and reference are equal to rounding: in none of the 2 cells shown do they differ by more than 1e−4 of the largest effect."]


def test_small_effects_are_measured_by_their_metrics_own_largest():
    assert told([5e-6, 1e-6], [4e-6, 1e-6])[0].startswith("chunked and reference differ most at layer 0")


def test_of_some_that_are_rounding_the_others_are_counted():
    most, counted = told([0.5, -0.2, 0.1], [0.4, -0.2 - 4e-6, 0.1])
    assert most.startswith("chunked and reference differ most at layer 0")
    assert counted == ("In 1 of the 3 cells shown whose difference has an interval it leaves out zero; in 1 of 3 p is below 0.05 after "
                       "correction over the whole map. 2 are equal to rounding.")
