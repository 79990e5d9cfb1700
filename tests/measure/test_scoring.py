"""The scorer on answers whose worth is known by hand."""
import pytest

from mamba_mi.measure.scoring import Gold, Said, exact_match, f1, normalise, scores


@pytest.mark.parametrize(("text", "left"), [
    ("The  Eiffel\tTower!", "eiffel tower"), ("a An THE the", ""), ("another theory", "another theory"), ("U.S.", "us"),
    ("twenty-one", "twentyone"), ("«Wien»", "wien"), ("Zoë", "zoe\u0308"), ("ＴＯＫＹＯ", "tokyo"), ("STRASSE", "straße"), ("…", ""), ("𝐏aris", "paris"),
    ("€ 5", "5"), ("大江　健三郎。", "大江 健三郎"), ("co\u00adop\u200b", "coop"), ("\u00a0 \n", ""), ("ΣΊΣΥΦΟΣ", "σίσυφος"), ("", "")])
def test_texts_are_compared_without_case_punctuation_articles_and_spaces(text, left):
    assert normalise(text) == normalise(left)
    assert left in ("zoe\u0308", "straße", "σίσυφος") or normalise(text) == left


@pytest.mark.parametrize(("said", "golds", "exact", "f"), [
    ("Paris", ["paris."], 1, 1.0),
    ("the Paris", ["Paris"], 1, 1.0),
    ("Paris, France", ["Paris"], 0, 2 / 3),                     # a longer text that holds the answer is not the answer
    ("Paris", ["Paris, France"], 0, 2 / 3),
    ("Parisian", ["Paris"], 0, 0.0),                            # nor is a longer word
    ("ris", ["Paris"], 0, 0.0),
    ("", ["Paris"], 0, 0.0), ("   ", ["Paris"], 0, 0.0), ("the", ["Paris"], 0, 0.0),
    ("", [""], 0, 0.0), ("!", ["?"], 0, 0.0), ("", ["the"], 0, 0.0), ("a", [""], 0, 0.0),
    ("7", ["seven", "7"], 1, 1.0),                              # the best of several
    ("New York", ["NYC", "York New"], 0, 1.0),
    ("one two two three", ["two two two four"], 0, 0.5),        # 2 words in common, each counted as often as both have it
    ("x y z w", ["x", "x y"], 0, 2 * 0.5 * 1 / 1.5),
    ("Paris", [], 0, 0.0)])
def test_known_answers(said, golds, exact, f):
    assert exact_match(said, golds) == exact
    assert f1(said, golds) == pytest.approx(f, abs=1e-12)


def test_the_first_token_is_one_that_a_right_answer_begins_with():
    gold = Gold(frozenset({3, 5}), ("Paris", "City of Light"))
    assert scores(Said(5, "city of light"), gold) == (1, 1, 1) and scores(Said(4, "Paris"), gold) == (0, 1, 1)
    assert scores(Said(3, ""), gold) == (1, 0, 0)


def test_an_answer_nothing_is_left_of_can_never_be_given():
    assert Gold(frozenset({1}), ("The", "?!")).empty and not Gold(frozenset({1}), ("The", "7")).empty
