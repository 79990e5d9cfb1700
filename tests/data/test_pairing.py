from collections import Counter

import pytest

from mamba_mi.config import UserError
from mamba_mi.data import Dataset, Prompt, divide, pair_up


def prompt(number, subject, target_id, *, template="t", length=5, start=1):
    return Prompt(f"p{number:03d}", f"{template} {subject}", tuple(range(length)), str(target_id), target_id,
                  {"subject": (start, start + 2)}, (target_id,), subject, template)


def world():
    return [prompt(i, f"s{i % 30}", i % 7, template=f"t{i % 3}", length=5 + i % 2, start=1 + (i % 4 == 0))
            for i in range(120)]


def test_partners_share_template_and_layout_and_differ_in_subject_and_answer():
    pairs, _ = pair_up(world(), seed=0)
    assert len(pairs) > 100
    for pair in pairs:
        assert pair.clean.template == pair.corrupt.template
        assert pair.clean.layout == pair.corrupt.layout
        assert pair.clean.cluster != pair.corrupt.cluster
        assert pair.clean.target_id != pair.corrupt.target_id


def test_a_prompt_is_dropped_exactly_where_trying_everyone_finds_nobody():
    prompts = world() + [prompt(200, "x", 1, template="alone"), prompt(201, "y", 4, length=9),
                         prompt(202, "y", 5, length=9), prompt(203, "u", 6, length=10), prompt(204, "v", 6, length=10)]
    pairs, dropped = pair_up(prompts, seed=3)

    def fits(a, b):
        return (a.template == b.template and a.layout == b.layout and a.cluster != b.cluster
                and a.target_id != b.target_id)

    alone = [a.prompt_id for a in prompts if not any(fits(a, b) for b in prompts)]
    assert [d.prompt_id for d in dropped] == alone == ["p200", "p201", "p202", "p203", "p204"]
    assert [p.clean.prompt_id for p in pairs] == [p.prompt_id for p in prompts if p.prompt_id not in alone]
    reasons = {d.prompt_id: d.why for d in dropped}
    assert reasons["p200"] == "no partner: no other prompt has its template, length and spans"
    assert "another subject and another first answer token" in reasons["p201"]
    assert reasons["p201"] == reasons["p203"]


def test_the_pairs_depend_on_the_seed_and_not_on_the_order():
    def partners(prompts, seed):
        return {p.clean.prompt_id: p.corrupt.prompt_id for p in pair_up(prompts, seed=seed)[0]}

    assert partners(world(), 0) == partners(world()[::-1], 0)
    assert partners(world(), 0) != partners(world(), 1)


def test_partners_take_turns():
    prompts = [prompt(i, f"s{i}", i % 4) for i in range(40)]
    served = Counter(pair.corrupt.prompt_id for pair in pair_up(prompts, seed=0)[0])
    assert max(served.values()) <= 2
    assert len(served) >= 36


def test_a_few_others_are_shared_evenly_by_a_majority_of_one_answer():
    prompts = [prompt(i, f"s{i}", 0 if i < 30 else i) for i in range(33)]  # 30 of one answer, three others
    pairs = pair_up(prompts, seed=0)[0]
    served = Counter(pair.corrupt.prompt_id for pair in pairs if pair.clean.target_id == 0)
    assert set(served) == {"p030", "p031", "p032"}
    assert max(served.values()) - min(served.values()) <= 2


def test_nobody_is_clean_twice_and_no_prompts_are_no_pairs():
    pairs, _ = pair_up(world(), seed=0)
    assert max(Counter(pair.clean.prompt_id for pair in pairs).values()) == 1
    assert pair_up([], seed=0) == ([], [])


def test_without_a_template_any_prompt_of_the_layout_may_be_the_partner():
    prompts = world() + [prompt(200, "x", 9, template="alone")]
    pairs, dropped = pair_up(prompts, seed=0, same_template=False)
    assert not dropped and all(pair.clean.layout == pair.corrupt.layout for pair in pairs)
    assert sum(pair.clean.template != pair.corrupt.template for pair in pairs) > 30
    assert "p200" in {pair.clean.prompt_id for pair in pairs}


def test_halves_share_no_subject_and_lose_no_prompt():
    dataset = Dataset("d", tuple(world()), "f")
    to_fit, to_measure = divide(dataset, seed=0)
    one, other = ({p.cluster for p in half.prompts} for half in (to_fit, to_measure))
    assert not one & other and len(one) == len(other) == 15
    assert sorted(p.prompt_id for half in (to_fit, to_measure) for p in half.prompts) == \
        sorted(p.prompt_id for p in dataset.prompts)
    assert {p.cluster for p in divide(dataset, seed=1)[0].prompts} != one


def test_pairs_with_a_subject_in_each_half_are_dropped_with_the_reason():
    pairs, _ = pair_up(world(), seed=0)
    halves = divide(Dataset("d", (), "f", tuple(pairs)), seed=0)
    subjects = [{side.cluster for pair in half.pairs for side in (pair.clean, pair.corrupt)} for half in halves]
    assert not subjects[0] & subjects[1] and all(half.pairs for half in halves)
    torn = [d for half in halves for d in half.dropped]
    assert len(torn) + sum(len(half.pairs) for half in halves) == len(pairs)
    assert {d.why for d in torn} == {"pair with a subject in each half"}


def test_one_subject_cannot_be_divided():
    with pytest.raises(UserError, match="all prompts share one subject"):
        divide(Dataset("d", (prompt(0, "s", 1), prompt(1, "s", 2)), "f"), seed=0)
