"""What is said of a capability assessment: every number from the rows, and nothing that was not tested."""
from dataclasses import replace

from mamba_mi.experiments.evaluate import Knobs
from mamba_mi.report import evaluate_words as say
from mamba_mi.report.evaluate_words import ALL

from .synthetic_evaluate import against, evaluate_summary, level


def custom(*rows) -> list[dict]:
    whole = [level("custom", ALL, metric, hits, 50, **(dict(empty=2, unfinished=3, begun_only=9) if metric == "exact_match" else {}))
             for metric, hits in (("first_token", 40), ("exact_match", 31), ("f1", 36))]
    more = [{**row, "metric": metric} for row in rows for metric in ("first_token", "f1")]
    return [*whole, *rows, *more]


SIMPLE, HARD = level("custom", "Simple Recall", "exact_match", 25, 25), level("custom", "my own", "exact_match", 6, 25, p_shuffled=0.31)


def test_the_whole_its_parts_and_what_chance_reaches_are_said():
    told = say.findings([*custom(SIMPLE, HARD), against(SIMPLE), against(HARD, 0.2)])
    assert told[0] == ("Of the custom prompts, the model answers 62.0% [48.2, 74.1] (31 of 50) rightly, word for word. Held against other "
                       "prompts' right answers, the same answers would be right on 10.0% (permutation p = .001).")
    assert "80.0% [67.0, 88.8] (40 of 50)" in told[1] and "it reaches 0.72 [0.62, 0.82]" in told[1]
    assert told[2] == "Most is right in 'Simple Recall': 100% [86.7, 100] (25 of 25); least in 'my own': 24.0% [11.5, 43.4] (6 of 25)."
    assert told[3].startswith("No better than shuffled answers") and "'my own'." in told[3] and "Simple" not in told[3]
    assert told[4] == ("Of 50 answers to the custom prompts, 9 began with the right token and went wrong or on after it; 2 were empty, which "
                       "counts as wrong; 3 had not ended when they were cut off (method.max_new_tokens, method.stop).")


def test_what_is_below_chance_is_no_better_and_what_was_not_tested_is_not_said_to_be():
    worse = {**against(HARD, 0.001), "mean": -0.2}
    sure = {**HARD, "p_shuffled": 0.001}
    assert any("No better" in line and "'my own'" in line for line in say.findings([*custom(SIMPLE, sure), worse, against(SIMPLE)]))
    pooled = evaluate_summary({"custom": ("one", "two")}, counted=False)
    untested = [row | {"p_adjusted": None} for row in pooled]
    assert not any("No better" in line for line in say.findings(untested)) and "(n = 200)" in say.findings(untested)[0]
    weak = [row | {"p_adjusted": 0.3} if row["conditions"]["against"] == say.SHUFFLED else row for row in pooled]
    assert any("No better" in line and "'one', 'two'" in line for line in say.findings(weak))


def test_categories_of_one_share_are_named_together():
    full = [level("custom", name, "exact_match", 25, 25) for name in ("a", "b")]
    told = say.findings([*custom(*full, HARD), *map(against, (*full, HARD))])
    assert "Most is right in 'a', 'b': 100% each; least in 'my own': 24.0% [11.5, 43.4] (6 of 25)." in told


def test_equal_categories_are_not_ranked():
    same = [level("custom", name, "exact_match", 5, 25) for name in ("a", "b")]
    assert "No category stands out: 20.0% in each of the 2." in say.findings([*custom(*same), *map(against, same)])


def test_interventions_are_said_in_points_beside_the_clean_run():
    row = {**against(level("custom", ALL, "exact_match", 31, 50)), "mean": -0.25, "ci_low": -0.4, "ci_high": -0.1, "p": 0.01}
    row["conditions"] = {**row["conditions"], "against": say.CLEAN}
    assert say.findings([*custom(), row])[-1] == (
        "The interventions change the share of the custom prompts that is answered rightly by −25.0 [−40.0, −10.0] points (n = 50; p = .010).")


def test_the_setting_says_where_prompts_are_from_how_answers_end_and_what_was_left_out():
    knobs = Knobs()
    assert say.data(knobs, "facts") == "custom prompts (made by the generator, as no file was given), and prompts of the data set facts"
    assert say.data(replace(knobs, prompts="custom", path="a.csv"), "facts") == "custom prompts (the file a.csv)"
    assert say.data(replace(knobs, prompts="dataset"), "pairs (a.jsonl)") == "prompts of the data set pairs (a.jsonl)"
    assert say.setting(knobs, ["\n", " ", "."], {("custom", "a"): 1200, ("dataset", "b"): 0}) == {
        "answers": "the most probable token each time, up to a new line, the next word, '.', at most 16",
        "shuffled": "1,000 random orders of the right answers within a category",
        "left out": "1,200 prompts beyond 100 of their category"}
    assert "left out" not in say.setting(knobs, ["."], {("custom", "a"): 0})


def test_a_table_s_row_has_every_metric_and_what_shuffled_answers_reach():
    rows = say.profile(evaluate_summary())
    assert [row["conditions"]["category"] for row in rows[:4]] == [ALL, "Simple Recall", "Two-Hop Reasoning", "Three-Hop Reasoning"]
    assert [row["conditions"]["category"] for row in rows[8:]] == [ALL, "capital", "place of birth", "profession"]
    first = rows[0]
    assert (first["mean"], first["first_token"], first["f1"], first["shuffled"]) == (0.7, 0.9, 0.8, 0.1) and first["ci_low"] > 0.65
    assert (first["effect_size"], first["p_shuffled"]) == (1.4, 0.004)
    pooled = [{**row, "p_adjusted": 0.02} for row in evaluate_summary(counted=False)]
    assert {row["p_shuffled"] for row in say.profile(pooled)} == {0.02}


def test_few_prompts_and_lonely_ones_are_named():
    few, lonely = level("custom", "few", "exact_match", 3, 5), level("custom", "lonely", "exact_match", 1, 1)
    del lonely["control_mean"]
    told = say.caveats(custom(few, lonely), 16)
    assert "Fewer than 10 prompts: 'few', 'lonely'. Read their shares with their intervals or not at all." in told
    assert "Nothing to shuffle with: 'lonely', each with one prompt." in told and any("more than 16 tokens" in line for line in told)


def test_examples_show_some_of_each_category_right_and_wrong():
    answers = [{"prompt_id": f"p{i}", "prompts": "custom", "category": "ba"[i % 2], "prompt": f"Facts: x\nWhat is {i}? " + "long " * 40 * (i == 2),
                "expected": f"right {i}", "alternatives": ["other" * (1 + 19 * (i == 2))], "answer": "said\n" if i < 6 else "right", "ended": True, "first_token": 1.0,
                "exact_match": float(i >= 6), "f1": 0.5, "target_logprob": -1.5} for i in range(10)]
    (right, one), (wrong, two) = say.examples(answers)
    assert right == "Answers that are right (4 of 4, all in artifacts/answers.json)" and wrong.startswith("Answers that are wrong (4 of 6,")
    assert [row[0] for row in two.rows] == ["a", "a", "b", "b"] and two.rows[2][1:4] == ["Facts: x ⏎ What is 0? ", "right 0 | other", "'said\\n'"]
    assert two.rows[3][1].startswith("… ") and len(two.rows[3][1]) == say.LONG + 2 and two.rows[3][2] == f"{('right 2 | ' + 'other' * 20)[:say.LONG]} …"
    assert two.rows[0][4:] == ["1", "0.50", "−1.50"]
    assert say.examples([answers[0]])[0][0].startswith("Answers that are wrong (1 of 1") and say.examples([]) == []
