"""experiment=prompts: what it writes is what it says, the same bytes twice, and what patching and knockouts can be run on."""
import csv
import json
import sys

import pyarrow.parquet as pq
import pytest

from mamba_mi import UserError, load
from mamba_mi.cli import main
from mamba_mi.data import batches
from mamba_mi.data import load as load_data
from mamba_mi.data.generation import LEVELS
from mamba_mi.experiments import Setting
from mamba_mi.experiments.prompts import Knobs, Prompts


def command(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["launch.py", "model=tiny", "device=cpu", "debug=fast", *words])
    main()


def folder_of(logs, experiment: str):
    [folder] = (logs / experiment / "tiny").iterdir()
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        command(patch, "experiment=prompts", "method.lexicon=english", f"paths.logs={logs}")
    return folder_of(logs, "prompts")


@pytest.fixture(scope="module")
def records(written):
    return json.loads((written / "artifacts" / "generated_prompts.json").read_text())


def test_the_table_counts_what_the_file_holds(written, records):
    told = json.loads((written / "artifacts" / "generation.json").read_text())
    assert told["duplicates"] == len(records) - len({record["prompt"] for record in records}) == 0
    assert [each["level"] for each in told["levels"]] == list(LEVELS)
    for each in told["levels"]:
        mine = [record for record in records if record["category"] == each["category"]]
        assert len(mine) == each["n"] == 10 and sum(record["is_original"] for record in mine) == each["originals"] >= 2
        for name, of in (("facts", lambda r: r["num_facts"]), ("words", lambda r: len(r["prompt"].split()))):
            assert each[name] == [min(map(of, mine)), max(map(of, mine))]
        assert sum(each["answers"].values()) == 10 and set(each["answers"]) == {record["expected"] for record in mine}
    assert told["left_out"] == {} and (told["lexicon"], told["seed"]) == ("english", 0)


def test_the_effects_are_the_counts_prompt_by_prompt(written, records):
    rows = {(row["prompt_id"], row["metric"]): row for row in pq.read_table(written / "effects.parquet").to_pylist()}
    for record in records:
        assert rows[record["question_id"], "facts"]["value"] == record["num_facts"]
        assert ((record["question_id"], "hops") in rows) == (record["num_hops"] is not None)
    summary = json.loads((written / "summary.json").read_text())
    stress, = (row for row in summary if row["metric"] == "facts" and row["conditions"] == {"task": "stress_test"})
    facts = [record["num_facts"] for record in records if record["category"] == LEVELS["stress_test"]]
    assert (stress["n"], stress["least"], stress["most"], stress["p"]) == (10, min(facts), max(facts), None) and min(facts) >= 10


def test_the_table_file_has_the_same_records(written, records):
    with (written / "artifacts" / "generated_prompts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == [record["prompt"] for record in records]
    assert [json.loads(row["alternatives"]) for row in rows] == [record["alternatives"] for record in records]


def test_the_report_shows_each_level_and_one_prompt_of_each_kind(written):
    page = (written / "report.html").read_text()
    for text in (*LEVELS.values(), "One prompt of each kind"):
        assert text in page
    told = json.loads((written / "artifacts" / "generation.json").read_text())["levels"][0]["answers"]
    three = ", ".join(f"{answer} ({count / 10:.0%})" for answer, count in list(told.items())[:3])
    assert "made by rule from the seed" in page and f"{three}</td>" in page and page.count(">by hand</td>") == 6
    assert "60 prompts of 6 levels, no text twice" in page and (written / "figures" / "prompts_levels.png").stat().st_size > 5000


def test_a_second_run_writes_the_same_bytes(written, monkeypatch, tmp_path):
    command(monkeypatch, "experiment=prompts", "method.lexicon=english", f"paths.logs={tmp_path}")
    for name in ("artifacts/generated_prompts.json", "artifacts/generated_prompts.csv", "artifacts/generation.json", "effects.parquet"):
        assert (folder_of(tmp_path, "prompts") / name).read_bytes() == (written / name).read_bytes()


def test_what_the_world_cannot_say_is_said_in_the_report(monkeypatch, tmp_path):
    command(monkeypatch, "experiment=prompts", f"paths.logs={tmp_path}")
    folder = folder_of(tmp_path, "prompts")
    assert json.loads((folder / "artifacts" / "generation.json").read_text())["left_out"].keys() == {"combined"}
    page = (folder / "report.html").read_text()
    assert "Combined is left out" in page and "the words of the embedded world" in page and "50 prompts of 5 levels" in page


@pytest.mark.parametrize(("knobs", "message"), [
    ({"per_level": 0}, "method.per_level=0: give at least 1"), ({"level": "comb"}, "method.level=comb: there are all"),
    ({"lexicon": "welt"}, "method.lexicon=welt: there are auto"), ({"level": "combined"}, "method.level=combined: lexicon=world cannot say it"),
    ({"level": "two_hop", "per_level": 201}, "method.per_level=201: .* gave 200 different prompts of two_hop"), ({"resamples": 1}, "method.resamples=1: give at least 20")])
def test_a_mistake_is_one_line(knobs, message):
    experiment = Prompts(Knobs(**knobs), load("tiny", device="cpu"), Setting(0, 1 << 30))
    with pytest.raises(UserError, match=message):
        experiment.check()  # before a run's folder is there


def test_duplicates_are_counted_and_prompts_of_one_person_are_a_cluster():
    experiment = Prompts(Knobs(per_level=3), load("tiny", device="cpu"), Setting(0, 1 << 30))
    experiment.check()
    experiment.made["two_hop"].append(experiment.made["two_hop"][0])
    assert experiment.artefacts()["generation"]["duplicates"] == 1
    [recall, *_] = experiment.made["simple_recall"]
    assert experiment.clusters(())[recall.question.question_id] == recall.question.cluster in recall.question.prompt


SMALL = {"patching": ["method.sites=[resid]", "method.directions=[denoising]", "method.tau=0"],
         "info_flow": ["method.sources=[none,subject,question]", "method.conv=[scan]", "method.windows=[2]"]}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", SMALL)
@pytest.mark.parametrize("dataset", ["generated", "toy"])
def test_patching_and_knockouts_run_on_it(experiment, dataset, monkeypatch, tmp_path):
    more = ["dataset.n=12", "dataset.only_correct=false" if dataset == "toy" else "dataset.level=long_context"]  # in few layouts
    knobs = [word.replace("question", "asked") if dataset == "toy" else word for word in SMALL[experiment]]
    command(monkeypatch, f"experiment={experiment}", f"dataset={dataset}", *more, *knobs, f"paths.logs={tmp_path}")
    folder = folder_of(tmp_path, experiment)
    assert json.loads((folder / "manifest.json").read_text())["status"] == "done"
    prompts = [each for each in json.loads((folder / "prompts.json").read_text()) if each["kept"]]
    assert len({each["prompt_id"] for each in prompts if "clean" in each["used_as"]}) == 12
    assert all("subject" in each["spans"] for each in prompts)
    if experiment == "patching":
        whole = [row for row in json.loads((folder / "summary.json").read_text()) if row["metric"] == "normalised_logit_difference"
                 and row["conditions"] == {"direction": "denoising", "site": "resid", "layer": 0, "role": "subject"}]
        assert whole[0]["mean"] == pytest.approx(1.0, abs=1e-4)  # the subject is all that differs


@pytest.mark.slow
def test_the_written_file_is_a_data_set_with_the_same_pairs(monkeypatch, tmp_path):
    command(monkeypatch, "experiment=prompts", f"paths.logs={tmp_path}")
    path = folder_of(tmp_path, "prompts") / "artifacts" / "generated_prompts.json"
    tokenizer = load("tiny", device="cpu").tokenizer
    of_file = load_data({"name": "generated", "path": str(path)}, tokenizer, 0)
    anew = load_data({"name": "generated", "per_level": 10}, tokenizer, 0)
    assert of_file.pairs == anew.pairs and len(of_file.pairs) == 50 and batches(of_file.pairs, 8)
