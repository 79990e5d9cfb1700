"""Capability assessment: every number against one made again by other means, runs killed and gone on with, and what it refuses."""
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from mamba_mi import data, models
from mamba_mi.config import UserError
from mamba_mi.data import Dataset, Dropped, Prompt
from mamba_mi.data.questions import Question, prompts
from mamba_mi.experiments import Setting
from mamba_mi.experiments._evaluate_candidates import candidates, category, golds
from mamba_mi.experiments.evaluate import Evaluate, Knobs
from mamba_mi.interventions import Edit, Scale
from mamba_mi.measure.effects import PREDICTION
from mamba_mi.measure.scoring import Said
from mamba_mi.measure.stats import wilson
from mamba_mi.report import evaluate_words as words
from mamba_mi.trace import Site, Trace
from tests.data.conftest import train_bpe
from tests.experiments.test_paths_runs import launch, only_run

QUICK = ["dataset.n=null", "method.max_per_category=6", "method.batch=5", "method.resamples=50", "method.shuffles=60", "threads=1"]


def prompt(name: str, text: str = "x", target: str = " y", **more) -> Prompt:
    return Prompt(name, text, (1, 2), target, 3, target_ids=(3,), **more)


def made(lm, kind=Evaluate, n=12, **knobs):
    """The experiment on custom prompts and `n` facts, and its effects."""
    experiment = kind(Knobs(**{"max_per_category": 6, "batch": 5, "shuffles": 200, "resamples": 50} | knobs), lm, Setting(0, 1 << 30))
    experiment.check()
    dataset = experiment.candidates(lambda: data.load({"name": "facts", "n": n}, lm.tokenizer, 0))
    effects = pa.concat_tables([experiment.step(batch) for batch in experiment.batches(dataset.prompts)])
    return experiment, dataset.prompts, effects


@pytest.mark.parametrize("name", models.EMBEDDED)
def test_every_number_is_what_whole_passes_and_plain_comparison_give(name):
    lm = models.load(name)
    experiment, prompts, effects = made(lm, max_new_tokens=3)
    table = effects.to_pandas()
    marks = table[(table.metric != PREDICTION)].set_index(["prompt_id", "metric"])
    assert len(prompts) == 5 * 6 + 6 * 4
    for prompt in prompts[::3]:
        with torch.no_grad():
            log_p = lm(torch.tensor([[*prompt.token_ids]]))[0][0, -1].double().log_softmax(-1)
        first = log_p.argmax().item()
        said = lm.tokenizer.decode([first, lm(torch.tensor([[*prompt.token_ids, first]]))[0][0, -1].argmax().item()]).split(" ")[0]
        right = prompt.target.strip()
        assert marks.value[prompt.prompt_id, "first_token"] == (first == prompt.target_id)
        assert marks.value[prompt.prompt_id, "exact_match"] == marks.value[prompt.prompt_id, "f1"] == (said == right)
        assert marks.value[prompt.prompt_id, "target_logprob"] == pytest.approx(log_p[prompt.target_id].item(), abs=1e-4)
        of = experiment.chosen.kind[prompt.prompt_id], experiment.chosen.category[prompt.prompt_id]
        others = [p.target.strip() for p in prompts if p != prompt and of == (experiment.chosen.kind[p.prompt_id], experiment.chosen.category[p.prompt_id])]
        assert len(others) == 5 and marks.baseline[prompt.prompt_id, "exact_match"] == pytest.approx(others.count(said) / 5, abs=0.12)


def permuted(answers, key, draws=400):
    """The middle 95% of the share that is right when right answers are permuted within their category, and the p of the true one."""
    kind, name = key
    mine = answers[(answers.prompts == kind) & ((answers.category == name) | (name == words.ALL))]
    random = np.random.default_rng(0)
    parts = [(part.expected.to_numpy(), part.answer.to_numpy()) for _, part in mine.groupby("category")]
    shares = np.array([sum((random.permutation(right) == said).sum() for right, said in parts) / len(mine) for _ in range(draws)])
    return *np.quantile(shares, [0.025, 0.975]), (1 + (shares >= mine.exact_match.mean() - 1e-9).sum()) / (1 + draws)


def test_a_summary_counts_what_is_right_and_what_shuffled_answers_reach(tmp_path, monkeypatch):
    launch(monkeypatch, "experiment=evaluate", *QUICK, f"paths.logs={tmp_path}")
    folder = only_run(tmp_path)
    answers = pd.DataFrame(json.loads((folder / "artifacts" / "answers.json").read_text()))
    summary = json.loads((folder / "summary.json").read_text())
    assert set(answers.prompts) == {"custom", "dataset"} and 0 < answers.exact_match.mean() < 1
    by_category = answers.groupby(["prompts", "category"]).exact_match
    whole = answers.groupby("prompts").exact_match
    expected = {**{key: x for key, x in by_category}, **{(kind, words.ALL): x for kind, x in whole}}
    rows = words.levels(summary, "exact_match")
    assert set(rows) == set(expected)
    for key, x in expected.items():
        row = rows[key]
        assert (row["n"], row["hits"], row["mean"]) == (len(x), x.sum(), pytest.approx(x.mean()))
        assert (row["wilson_low"], row["wilson_high"]) == pytest.approx([float(end) for end in wilson(x.sum(), len(x))])
        low, high, p = permuted(answers, key)
        assert (row["control_low"], row["control_high"], row["control_p"]) == (
            pytest.approx(low, abs=0.2), pytest.approx(high, abs=0.2), pytest.approx(p, abs=0.15)) and row["p"] is None
    assert rows["custom", words.ALL]["control_p"] == pytest.approx(1 / 61) and max(row["control_p"] for row in rows.values()) > 0.1
    test = next(row for row in summary if row["metric"] == "exact_match" and row["conditions"] == {
        "prompts": "custom", "category": words.ALL, "against": words.SHUFFLED})
    assert test["mean"] == pytest.approx(rows["custom", words.ALL]["mean"] - rows["custom", words.ALL]["control_mean"])
    levels = words.levels(summary, "target_logprob")
    assert levels["dataset", words.ALL]["mean"] == pytest.approx(answers[answers.prompts == "dataset"].target_logprob.mean())
    report = (folder / "report.html").read_text()
    assert "custom prompts (made by the generator, as no file was given), and prompts of the data set facts" in report
    assert "levels left out (combined, as the embedded world has no numbers" in report
    assert "Answers that are wrong" in report and "Three-Hop Reasoning" in report and "capability_profile" in {f.stem for f in (folder / "figures").iterdir()}


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    command = ["experiment=evaluate", "model=tiny-mamba1", *QUICK]
    launch(monkeypatch, *command, f"paths.logs={tmp_path / 'whole'}")
    steps, step = [], Evaluate.step

    def killed(self, batch):
        steps.append(batch.key)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(self, batch)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(Evaluate, "step", killed)
        launch(monkeypatch, *command, f"paths.logs={tmp_path / 'killed'}")
    folder, whole = only_run(tmp_path / "killed"), only_run(tmp_path / "whole")
    assert ended.value.code == 130 and len(list((folder / "parts").glob("*.parquet"))) == 3
    launch(monkeypatch, *command, f"paths.logs={tmp_path / 'killed'}")
    for name in ("effects.parquet", "summary.json", "prompts.json", "artifacts/answers.json", "figures/capability_profile.png"):
        assert (whole / name).read_bytes() == (folder / name).read_bytes(), name


class Dimmed(Evaluate):
    """Everything the last layers read is scaled down, in prompt and answer."""

    def interventions(self, batch):
        return (Edit(Site(2, "resid"), "all", Scale(0.2)),)


def test_interventions_act_on_all_and_the_clean_run_stands_beside():
    lm = models.load("tiny")
    (_, prompts, clean), (experiment, _, both) = made(lm), made(lm, Dimmed)
    clean, both = clean.to_pandas(), both.to_pandas()
    alone = both[both.against != words.CLEAN].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, clean)
    beside = both[both.against == words.CLEAN]
    marks = beside[beside.metric != PREDICTION].set_index(["prompt_id", "metric"])
    without = clean[clean.metric != PREDICTION].set_index(["prompt_id", "metric"]).value
    assert marks.baseline.sort_index().equals(without.sort_index().rename("baseline"))
    assert set(beside[beside.metric == PREDICTION].prompt_id) == {p.prompt_id for p in prompts}
    for prompt in prompts[:20]:
        with Trace(interventions=experiment.interventions(None)) as trace:
            log_p = lm(torch.tensor([prompt.token_ids]), trace=trace)[0][0, -1].log_softmax(-1)
        assert marks.value[prompt.prompt_id, "first_token"] == (log_p.argmax().item() == prompt.target_id)
        assert marks.value[prompt.prompt_id, "target_logprob"] == pytest.approx(log_p[prompt.target_id].item(), abs=1e-4)
    assert (marks.value - marks.baseline).abs().max() > 1 and experiment.setting.ledger.edits["resid"] > 0
    groups = Dimmed.in_groups(pa.Table.from_pandas(both, preserve_index=False)).to_pandas()
    whole = groups[(groups.category == words.ALL) & (groups.against == words.CLEAN) & (groups.metric == "f1")]
    assert sorted(whole.prompt_id) == sorted(p.prompt_id for p in prompts)


def test_the_orders_are_the_seed_s_and_the_cost_is_counted():
    lm, said = models.load("tiny"), Said(0, "Nordenby")
    known = [prompt(f"p{i}", f"x {i}", target) for i, target in enumerate(("Nordenby", "Selbrin") * 4)]
    drawn = []
    for seed in (0, 0, 1):
        experiment = Evaluate(Knobs(prompts="dataset", max_new_tokens=5), lm, Setting(seed, 1 << 30))
        [batch] = experiment.batches(experiment.candidates(lambda: Dataset("a", tuple(known), "1")).prompts)
        drawn.append(experiment.shuffled.scores("p0", said)[:, 1].tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    # of 8 prompts of 2 tokens: read once, and gone on from 4 times; an answer of one token is told by the prompt's reading
    assert experiment.cost(batch) == (8, 8 * (2 + 4) * lm.config.n_layer)


@pytest.mark.parametrize(("more", "said"), [
    (["method.prompts=costum"], "method.prompts=costum: there are custom, dataset, both; did you mean 'custom'?"),
    (["method.path=mine.json", "method.prompts=dataset"], "method.path with method.prompts=dataset"),
    (["method.bos=true", "method.prompts=dataset"], "method.bos with method.prompts=dataset"),
    (["dataset=generated"], "method.prompts=both: every prompt of dataset=generated is a custom prompt as well"),
    (["method.path=[a,b]"], "method.path=['a', 'b']: give one value"),
    (["method.path=nowhere.json"], "method.path=nowhere.json: no such file"),
    (["method.stop=[]"], "method.stop=[]: give a list of texts"), (["method.stop=[3]"], "method.stop=[3]: give a list of texts"),
    (["method.max_new_tokens=0"], "method.max_new_tokens=0: give at least 1"), (["method.shuffles=3"], "method.shuffles=3: give at least 20"),
    (["dataset.only_correct=true"], "dataset.only_correct=true: method=evaluate counts right and wrong answers; give experiment=evaluate without it, or"),
])
def test_a_mistake_is_one_line_and_nothing_is_written(more, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        launch(monkeypatch, "experiment=evaluate", *more, f"paths.logs={tmp_path}")
    told = capsys.readouterr().err
    assert ended.value.code == 1 and told.startswith(f"error: {said}") and told.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_file_of_the_user_s_own_is_assessed(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.csv"
    path.write_text("prompt,expected,category,alternatives\nthe capital city of Avaria is,Nordenby,capitals,Torvik | Orfell\n"
                    "the capital city of Boreland is,Selbrin,capitals,\nthe queen of Avaria is,Paris,queens,\nthe people of Drovia speak,Drovian,alone,\n")
    launch(monkeypatch, "experiment=evaluate", "method.prompts=custom", f"method.path={path}", "method.resamples=50", "method.stop=[.]",
           "method.max_new_tokens=1", f"paths.logs={tmp_path}")
    folder = only_run(tmp_path)
    dropped = [p for p in json.loads((folder / "prompts.json").read_text()) if not p["kept"]]
    assert [p["why"] for p in dropped] == ["the prompt holds words outside the tokenizer's vocabulary"]
    rows = json.loads((folder / "artifacts" / "answers.json").read_text())
    assert not any(a["ended"] for a in rows) and sorted(a["alternatives"] for a in rows) == [[], [], ["Torvik", "Orfell"]]
    answers = {a["prompt"]: (a["answer"], a["exact_match"]) for a in rows}
    assert answers["the capital city of Avaria is"] == ("Nordenby", 1) and answers["the capital city of Boreland is"][1] == 0
    summary = json.loads((folder / "summary.json").read_text())
    alone = words.levels(summary, "exact_match")["custom", "alone"]
    assert alone["n"] == 1 and "control_mean" not in alone
    assert not [row for row in summary if row["conditions"]["category"] == "alone" and row["conditions"]["against"] == words.SHUFFLED]
    assert any("Nothing to shuffle with: 'alone'" in line for line in words.caveats(summary, 16)) and "'alone'" in (folder / "report.html").read_text().replace("&#39;", "'")


def test_categories_are_taken_by_turns_and_at_most_so_many_of_each():
    first = Dataset("a", tuple(prompt(f"a{i}", source={"category": "x" if i < 5 else "y"}) for i in range(7)), "1")
    second = Dataset("b", tuple(prompt(f"b{i}", "other", template="job-3") for i in range(4)), "2", dropped=(Dropped("gone", "text", "why"),))
    found = candidates({"custom": first, "dataset": second}, 3)
    assert Counter((found.kind[p.prompt_id], found.category[p.prompt_id]) for p in found.dataset.prompts) == {
        ("custom", "x"): 3, ("custom", "y"): 2, ("dataset", "profession"): 3}
    assert [p.prompt_id for p in found.dataset.prompts] == ["a0", "a5", "b0", "a1", "a6", "b1", "a2", "b2"]
    assert {found.category[p.prompt_id] for p in found.dataset.prompts[:3]} == {"x", "y", "profession"}
    assert found.left_out == {("custom", "x"): 2, ("custom", "y"): 0, ("dataset", "profession"): 1}
    assert [each.prompt_id for each in found.dataset.dropped] == ["gone"]
    assert candidates({"custom": first}, None).left_out == {("custom", "x"): 0, ("custom", "y"): 0}
    assert len({candidates(parts, 3).dataset.fingerprint for parts in ({"custom": first}, {"dataset": first}, {"custom": second})}) == 3


def test_two_sets_may_use_the_same_ids_and_an_answer_of_nothing_is_dropped():
    one, two = Dataset("a", (prompt("p"),), "1"), Dataset("b", (prompt("p", "other"), prompt("q", target=" The !")), "2")
    found = candidates({"custom": one, "dataset": two}, None)
    assert {p.prompt_id: p.text for p in found.dataset.prompts} == {"p": "x", "dataset p": "other"}
    assert [each.why for each in found.dataset.dropped] == ["the right answer is nothing but punctuation and articles"]
    with pytest.raises(UserError, match=r"^method.prompts: none of 1 custom prompts can be used: 1 times the right answer is nothing but"):
        candidates({"custom": Dataset("c", (prompt("q", target="?"),), "3")}, None)
    with pytest.raises(UserError, match="^custom prompts: 'all categories' is what the report calls them together"):
        candidates({"custom": Dataset("c", (prompt("q", source={"category": words.ALL}),), "3")}, None)


def test_where_a_data_set_came_from_is_kept_and_what_is_used_is_not_dropped_as_well():
    mine = Dataset("custom", (prompt("p", "mine"),), "1")
    theirs = Dataset("b", (prompt("q"), prompt("r")), "2", dropped=(Dropped("q", "x", "makes no pair"), Dropped("s", "x", "why")),
                     origin={"split": "train", "commit": "abc"})
    found = candidates({"custom": mine, "dataset": theirs}, None).dataset
    assert found.origin == {"split": "train", "commit": "abc"} and [each.prompt_id for each in found.dropped] == ["s"]


def test_the_same_prompts_are_not_assessed_twice():
    mine = Dataset("generated", (prompt("p", "one"), prompt("q", "two")), "1")
    with pytest.raises(UserError, match="^method.prompts=both: every prompt of dataset=pairs is a custom prompt as well"):
        candidates({"custom": mine, "dataset": Dataset("pairs", (prompt("r", "two"),), "2")}, None)
    assert len(candidates({"custom": mine, "dataset": Dataset("pairs", (prompt("r", "two"), prompt("s", "x")), "2")}, None).dataset.prompts) == 4


def test_a_prompt_leaves_room_for_its_answer_where_a_model_takes_only_so_many_tokens():
    lm = models.load("tiny-hyena")
    most, filler = lm.config.max_length, ["the"] * 2 * lm.config.max_length
    lengths = {"short": most - 15, "long": most - 14}  # a token of 16 is read off the prompt itself
    of = Dataset("pairs", tuple(prompt(name, " ".join(filler[:n])) for name, n in lengths.items()), "1")
    of = replace(of, prompts=tuple(replace(p, token_ids=(7,) * len(p.text.split())) for p in of.prompts))
    experiment = Evaluate(Knobs(prompts="dataset", max_new_tokens=16, stop=["never"]), lm, Setting(0, 1 << 30))
    [kept] = experiment.candidates(lambda: of).prompts
    assert kept.prompt_id == "short" and [(d.prompt_id, d.why) for d in experiment.chosen.dataset.dropped] == [
        ("long", f"longer than the {most} tokens this model takes")]
    [batch] = experiment.batches([kept])
    assert len(experiment.step(batch).filter(pc.field("metric") == PREDICTION)) == 16


@pytest.mark.parametrize(("given", "said"), [
    (dict(source={"category": "Stress Test", "relation": "r"}), "Stress Test"), (dict(source={"relation": "The anthem of {} is in"}), "The anthem of … is in"),
    (dict(source={"category": "mine", "relation_id": "P103"}), "mine"),
    (dict(source={"relation_id": "P103", "relation": "The mother tongue of {} is"}), "mother tongue"), (dict(source={"relation_id": "P9"}), "P9"),
    (dict(template="birth_country-2"), "country of birth (two facts)"), (dict(template="mqar8"), "recall among 8 pairs"),
    (dict(template="{} is in"), "pairs"), (dict(template="thing-2"), "pairs"), ({}, "pairs")])
def test_a_category_is_the_record_s_or_else_its_relation_or_the_data_set(given, said):
    assert category(prompt("p", **given), "pairs") == said


def test_an_alias_is_right_by_its_own_first_token():
    tokenizer = train_bpe(trim_offsets=True)
    [one, two], _ = prompts([Question("1", "", "Danish", ("German", "the Danish"), prompt="The anthem of Velmora is in"),
                             Question("2", "", "French", prompt="The anthem of Velmora is")], tokenizer)
    found = golds([one, two], tokenizer)
    expected = {tokenizer(f"The anthem of Velmora is in {word}")["input_ids"][len(one.token_ids)] for word in ("Danish", "German", "the Danish")}
    assert found["1"].firsts == expected and len(expected) == 3 and found["1"].texts == ("Danish", "German", "the Danish")
    assert found["2"].firsts == {two.target_id}


def test_an_alternative_of_nothing_or_of_unknown_words_makes_no_token_right():
    tokenizer = models.load("tiny").tokenizer
    [one], _ = prompts([Question("1", "", "Nordenby", ("the", "?", "", "Paris", "Selbrin"), prompt="the capital city of Avaria is")], tokenizer)
    found = golds([one], tokenizer)["1"]
    assert found.texts == ("Nordenby", "Paris", "Selbrin") and tokenizer.unk_token_id not in found.firsts
    assert found.firsts == {tokenizer.convert_tokens_to_ids(word) for word in ("Nordenby", "Selbrin")}


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    launch(monkeypatch, "experiment=evaluate", "method.prompts=custom", "dry_run=true", f"paths.logs={tmp_path}")
    assert "500 of 500 candidates" in capsys.readouterr().out and not list(tmp_path.iterdir())
