"""Every rule of the seven categories by a question that it alone decides, the bounds between them, and the filling up."""
from collections import Counter
from dataclasses import replace

import pytest

from mamba_mi.data.classify import CATEGORIES_OF, RULES, classify, fill, sentences
from mamba_mi.data.questions import CATEGORIES, Question
from mamba_mi.data.reading import Unusable

TEN = " ".join(f"Fact {i} is told." for i in range(10))


def asked(source, question="Where?", context="", hops=None, facts=None, kind=""):
    return Question("q", question, "Zed", context=context, source=source, num_hops=hops, num_facts=facts, kind=kind)


def long(words: int) -> str:
    return " ".join(["word"] * words)


OF_RULE = {
    "trivia": asked("triviaqa", context=TEN, hops=1, facts=1),
    "number or date": asked("drop", kind="date"),
    "reasoning words": asked("drop", "How many more doors?", kind="span"),
    "drop": asked("drop", "Who painted it?", kind="span"),
    "3+ hops": asked("musique", hops=3, facts=2),
    "2 hops": asked("musique", hops=2, facts=4),
    "10+ facts": asked("mine", facts=10),
    "5-9 facts": asked("mine", facts=5),
    "3+ facts": asked("hotpotqa", facts=3),
    "2 facts": asked("hotpotqa", facts=2),
    "10+ sentences": asked("squad", context=TEN, hops=1, facts=1),
    "5-9 sentences": asked("squad", context=TEN[:TEN.index("Fact 5")], hops=1, facts=1),
    "300+ words": asked("natural_questions", context=long(300), hops=1, facts=1),
    "150-299 words": asked("natural_questions", context=long(150), hops=1, facts=1),
    "chain words": asked("hotpotqa", "Where was the founder of the maker of A born?"),
    "one fact": asked("squad", context="Oru lives in Zed.", hops=1, facts=1),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_decides_its_question(rule):
    found = classify(OF_RULE[rule.name])
    assert (found.rule, found.category) == (rule.name, rule.category) and rule.category in CATEGORIES
    assert replace(found, rule="", category="") == OF_RULE[rule.name]


def test_the_table_has_a_question_a_rule_and_reaches_every_category():
    assert list(OF_RULE) == [rule.name for rule in RULES] and {rule.category for rule in RULES} == set(CATEGORIES)


@pytest.mark.parametrize(("question", "category"), [
    *((asked("mine", facts=n), c) for n, c in zip(range(2, 12), ["Two-Hop Reasoning", "Three-Hop Reasoning", "Three-Hop Reasoning", *["Long Context"] * 5,
                                                                 "Stress Test", "Stress Test"], strict=True)),
    *((asked("mine", hops=n, facts=12), "Three-Hop Reasoning") for n in (3, 4, 5)),
    *((asked("squad", context=long(n), hops=1, facts=1), c) for n, c in (
        (149, "Simple Recall"), (150, "Long Context"), (299, "Long Context"), (300, "Stress Test"))),
    *((asked("squad", context=" ".join(["So."] * n), hops=1, facts=1), c) for n, c in (
        (4, "Simple Recall"), (5, "Long Context"), (9, "Long Context"), (10, "Stress Test"))),
    (asked("squad", context=" ".join([long(60) + "."] * 6), hops=1, facts=1), "Long Context"),  # sentences come before words
    *((asked("hotpotqa", context=TEN, facts=n), "Three-Hop Reasoning") for n in (4, 5, 9, 10, 12)),  # a comparison of many sentences
    (asked("hotpotqa", context=TEN, question="Is it the same?"), "Two-Hop Reasoning"),  # no rule of another set's category counts
    (asked("musique", hops=4, facts=4), "Three-Hop Reasoning")])
def test_the_bounds_of_the_rules(question, category):
    assert classify(question).category == category


@pytest.mark.parametrize(("source", "rule", "words"), [
    ("drop", "reasoning words", "how many, how much, how long, how old, how far, more, less, fewer, most, least, first, last, longer, longest, shorter, "
     "shortest, difference, total, combined, compare, compared, before, after, between, percent, percentage, average"),
    ("hotpotqa", "chain words", "whose, both, same, of the film that, by the man who, in the town which, in the year where, of the wife of, who also, who later")])
def test_every_cue_word_is_looked_for_as_a_word(source, rule, words):
    for cue in words.split(", "):
        for question in (f"So {cue} it is?", f"{cue.capitalize()} it is?"):
            assert classify(asked(source, question)).rule == rule, cue
    for none in ("Who mores?", "Was it beforehand?", "Who is everybothy?", "Is the firstling here?", "Who is at the man?"):
        if source == "drop":
            assert classify(asked(source, none)).rule == "drop"
        else:
            with pytest.raises(Unusable):
                classify(asked(source, none))


@pytest.mark.parametrize("question", [asked("natural_questions", context="Short.", hops=1, facts=1), asked("hotpotqa", facts=1), asked("mine")])
def test_a_question_that_no_rule_takes_is_skipped_in_words(question):
    with pytest.raises(Unusable, match="^no rule for .* fires$"):
        classify(question)


@pytest.mark.parametrize(("text", "count"), [
    ("", 0), ("One", 1), ("One. Two! Three?", 3), ("Mr. A met J. B. Oru at St. Zed.", 1), ('He said "Go." Then left.', 2), ("大江は作家だ。彼は住む。", 2),
    ("It cost 3.5 million.", 1), ("Wait... what?", 2)])
def test_sentences_are_counted_roughly(text, count):
    assert sentences(text) == count


def of(source, category, count):
    return [replace(asked(source), question_id=f"{source}-{i:03d}", category=category, rule="r") for i in range(count)]


def test_the_first_pass_is_an_equal_share_and_the_second_fills_what_is_left():
    two = "Two-Hop Reasoning"
    for hotpot, musique, target, expected in [(50, 50, 20, (10, 10)), (50, 4, 20, (16, 4)), (3, 4, 20, (3, 4)), (50, 50, 5, (3, 2)), (1, 50, 1, (1, 0))]:
        found = fill({"hotpotqa": of("hotpotqa", two, hotpot), "musique": of("musique", two, musique)}, target, 0)
        count = Counter(each.source for each in found)
        assert (count["hotpotqa"], count["musique"]) == expected and len({each.question_id for each in found}) == len(found)


def test_the_seed_draws_who_is_kept_and_the_order_is_of_categories_sets_and_records():
    made = {"squad": [*of("squad", "Stress Test", 30), *[replace(each, question_id=f"s-{each.question_id}") for each in of("squad", "Simple Recall", 30)]],
            "triviaqa": of("triviaqa", "Query Dataset Tasks", 30)}
    first, again, other = fill(made, 5, 0), fill(made, 5, 0), fill(made, 5, 1)
    assert first == again != other and [each.category for each in first] == ["Simple Recall"] * 5 + ["Stress Test"] * 5 + ["Query Dataset Tasks"] * 5
    for lo in (0, 5, 10):
        ids = [each.question_id for each in first[lo:lo + 5]]
        assert ids == sorted(ids) and ids != [each.question_id for each in made["squad"][:5]]


def test_every_set_has_its_documented_categories():
    short = {"Simple Recall": "S", "Two-Hop Reasoning": "2", "Three-Hop Reasoning": "3", "Long Context": "L", "Combined Reasoning + Memory": "C",
             "Stress Test": "X", "Query Dataset Tasks": "Q"}
    assert {name: "".join(short[c] for c in found) for name, found in CATEGORIES_OF.items()} == {
        "squad": "SLX", "natural_questions": "LX", "hotpotqa": "23", "triviaqa": "Q", "musique": "23", "drop": "C"}
