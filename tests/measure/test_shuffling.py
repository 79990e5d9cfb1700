"""Shuffled answers against all pairs, one by one."""
import numpy as np
import pytest

from mamba_mi.measure.scoring import Gold, Said, scores
from mamba_mi.measure.shuffling import Shuffled


def golds(*answers: str) -> dict[str, Gold]:
    return {f"p{i}": Gold(frozenset({ord(text[0])}), (text,)) for i, text in enumerate(answers)}


def shuffled(known, groups=None, draws=3000, seed=0):
    return Shuffled(known, groups or dict.fromkeys(known, "all"), draws=draws, seed=seed)


def test_the_baseline_is_the_mean_over_the_other_prompts_of_the_group():
    known = golds("red fox", "red cat", "blue", "green", "blue")
    known |= {"q0": Gold(frozenset({1}), ("red",))}
    groups = {name: name[0] for name in known}
    found = shuffled(known, groups)
    for name, said in (("p0", Said(ord("r"), "red fox")), ("p2", Said(ord("b"), "blue")), ("p3", Said(0, "red"))):
        exact = np.mean([scores(said, gold) for other, gold in known.items() if other != name and other[0] == "p"], axis=0)
        assert found.baseline(name, said) == pytest.approx(exact, abs=0.03)
    assert found.baseline("q0", Said(1, "red")) is None and (found.scores("q0", Said(1, "red")) == 1).all()


def test_one_word_said_to_everything_is_seen_through():
    known = golds(*["blue"] * 4, *["red", "green"] * 3)
    found, said = shuffled(known), Said(ord("b"), "blue")
    observed = np.mean([scores(said, gold) for gold in known.values()], axis=0)
    in_draws_SM = np.mean([found.scores(name, said) for name in known], axis=0)
    assert np.allclose(in_draws_SM, observed) and observed == pytest.approx([0.4] * 3)


def test_a_draw_gives_every_right_answer_to_one_prompt():
    known = golds(*"bcdefgh")
    found = shuffled(known, draws=50)
    taken_NNS = np.array([[found.scores(name, Said(0, answer))[:, 1] for answer in "bcdefgh"] for name in known])
    assert (taken_NNS.sum(axis=0) == 1).all() and (taken_NNS.sum(axis=1) == 1).all()
    own_S = np.trace(taken_NNS)
    assert 0.6 < own_S.mean() < 1.4  # of random orders one answer on average stays where it is


def test_groups_are_shuffled_apart_from_each_other():
    known = golds(*"bcdefghi")
    known |= {f"q{name}": gold for name, gold in known.items()}
    found = shuffled(known, {name: name[0] for name in known}, draws=50)
    first, second = (np.array([found.scores(f"{of}p{i}", Said(0, "b"))[:, 1] for i in range(8)]) for of in ("", "q"))
    assert first.any() and (first != second).any()


def test_draws_are_the_seed_s_and_a_group_s_own():
    known, said = golds(*"bcdbcdbc"), Said(ord("b"), "b")
    first = shuffled(known, draws=99).scores("p3", said)
    assert (first == shuffled(known, draws=99).scores("p3", said)).all()
    assert (first != shuffled(known, draws=99, seed=1).scores("p3", said)).any()
    assert (first == shuffled(dict(reversed(known.items())), draws=99).scores("p3", said)).all()
    more = known | {"q0": known["p0"]}
    assert (first == shuffled(more, {name: {"p": "all"}.get(name[0], "q") for name in more}, draws=99).scores("p3", said)).all()
