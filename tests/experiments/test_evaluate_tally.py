"""The counts of an assessment on answers made up: every one by hand."""
import pytest

from mamba_mi.experiments._evaluate_tally import Tally, complete
from mamba_mi.measure.effects import PREDICTION, effects
from mamba_mi.measure.scoring import METRICS, Gold, Said, scores
from mamba_mi.measure.shuffling import Shuffled
from mamba_mi.measure.stats import holm
from mamba_mi.report.evaluate_words import ALL, NOTHING, SHUFFLED

WORDS = ("", " ", "red", "blue", "green", "end")  # a token's text is its word's


class Ends:
    """An answer ends at the token "end"; it is its first word."""

    def met(self, ids):
        return WORDS[ids[-1]] == "end"

    def text(self, ids):
        return WORDS[ids[0]]

    def said(self, ids):
        return Said(ids[0], self.text(ids))


# name: category, the right answer, the tokens given
GIVEN = {"a1": ("a", "red", (2, 5)), "a2": ("a", "blue", (2, 2)), "a3": ("a", "green", (4, 5)),
         "b1": ("b", "red", (0, 5)), "b2": ("b", "red", (1, 5)), "c1": ("c", "red", (2, 5))}
FIRST = {"a2": 1.0}  # began rightly, and is wrong as a whole


@pytest.fixture(scope="module")
def tally():
    golds = {name: Gold(frozenset({WORDS.index(right)}), (right,)) for name, (_, right, _) in GIVEN.items()}
    shuffled = Shuffled(golds, {name: category for name, (category, _, _) in GIVEN.items()}, draws=2000, seed=0)
    rows = []
    for name, (category, _, ids) in GIVEN.items():
        found = dict(zip(METRICS, scores(Ends().said(ids), golds[name]), strict=True))
        found["first_token"] = FIRST.get(name, found["first_token"])
        rows += [(name, "custom", category, NOTHING if category == "c" else SHUFFLED, None, metric, x) for metric, x in found.items()]
        rows += [(name, "custom", category, NOTHING, place, PREDICTION, token) for place, token in enumerate(ids)]
    names = ("prompt_id", "prompts", "category", "against", "position", "metric", "value")
    table = dict(zip(names, zip(*rows, strict=True), strict=True))
    return Tally(effects(table | {"baseline": [0.0] * len(rows)}), shuffled, Ends(), 2)


def test_what_went_wrong_is_counted(tally):
    assert tally.troubles(tally.members("custom", ALL)) == {"empty": 2, "unfinished": 1, "begun_only": 1}
    assert tally.troubles(tally.members("custom", "a")) == {"empty": 0, "unfinished": 1, "begun_only": 1}
    assert tally.members("custom", "b") == ["b1", "b2"] and tally.members("dataset", ALL) == []


def test_a_prompt_alone_is_no_part_of_the_mean_but_stays_right_in_every_order(tally):
    found = tally.chance("custom", ALL, METRICS.index("exact_match"), 3)
    # a2's red is right on one of the two others' answers, a1's and a3's on none, the empty ones never
    assert found["control_mean"] == pytest.approx((0 + 1 / 2 + 0 + 0 + 0) / 5, abs=0.02)
    assert (found["control_low"], found["control_high"]) == (1 / 6, 3 / 6)
    assert tally.chance("custom", "c", METRICS.index("exact_match"), 1) == {}


def test_categories_are_adjusted_for_each_other_and_the_whole_is_not(tally):
    rows = [{"conditions": {"prompts": "custom", "category": name, "against": NOTHING}, "metric": "exact_match"} for name in (ALL, "a", "b", "c")]
    whole, a, b, c = complete(rows, tally)
    assert whole["p_shuffled"] == whole["control_p"] and "p_shuffled" not in c
    assert [a["p_shuffled"], b["p_shuffled"]] == holm([a["control_p"], b["control_p"]]).tolist() and a["p_shuffled"] > a["control_p"]
    assert (whole["hits"], a["hits"], b["hits"], c["hits"]) == (3, 2, 0, 1) and whole["p"] is None
