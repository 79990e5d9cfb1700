"""experiment=classify through the command line's own door: made once, reused, refused, read by dataset=classified."""
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from mamba_mi import data
from mamba_mi.cli import main
from mamba_mi.config import UserError
from mamba_mi.data import hub, qa
from mamba_mi.data.questions import CATEGORIES
from mamba_mi.experiments import Setting, _classified_file, classify
from tests.data import published
from tests.data.conftest import train_bpe

REPO = Path(__file__).resolve().parents[2]
SENTENCES = " ".join(["Oru lives in Zed."] * 6)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A small file of each set; some records of them are no questions."""
    folder, count = tmp_path_factory.mktemp("sources"), 12
    records = {
        "squad": [published.squad(f"Where is {i}?", SENTENCES if i % 3 else "Oru lives in Zed.", () if i == 4 else ("Zed",), title=f"T{i % 4}") for i in range(count)],
        "hotpotqa": [published.hotpotqa(f"Where is {i}?", type="bridge" if i % 2 else "comparison", facts=(("A", 0), ("B", 1), ("B", 0))) for i in range(count)],
        "triviaqa": [published.triviaqa(f"Who is {i}?") for i in range(count)],
        "musique": [published.musique(2 + i % 3, answerable=i > 2, question=f"Where is {i}?") for i in range(count)],
        "drop": [published.drop(f"How many are {i}?") for i in range(count)],
        "natural_questions": [published.natural_questions(question=f"who is {i}") for i in range(count)],  # all short: skipped
    }
    return {name: published.write(folder / f"{name}.parquet", name, records[name]) for name in records}


@pytest.fixture
def launch(monkeypatch, capsys, tmp_path, sources):
    def go(*words):
        paths = [f"method.paths.{name}={path}" for name, path in sources.items()]
        monkeypatch.setattr(sys, "argv", ["launch.py", "experiment=classify", "method.target_per_category=6", "method.resamples=20", *paths,
                                          f"paths.logs={tmp_path / 'logs'}", "threads=1", *words])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        return code, capsys.readouterr()
    go.file = tmp_path / "logs" / "classified_questions.json"
    return go


@pytest.fixture
def made(tmp_path, sources):
    """`made(seed=1, force=True, …)` is the experiment after its check and its fit, on these sources."""
    def experiment(seed=0, force=False, **knobs):
        told = {"paths": sources, "file": str(tmp_path / "classified_questions.json"), "target_per_category": 6, **knobs}
        found = classify.Classify(classify.Knobs(**told), None, Setting(seed, 1 << 30, force=force))
        found.check()
        found.fit((), tmp_path)
        return found
    experiment.file = tmp_path / "classified_questions.json"
    return experiment


def test_it_is_made_once_reused_refused_and_made_again(made, sources, tmp_path):
    whole, first = made().whole, made.file.read_bytes()
    assert json.loads(first) == whole
    beside = made.file.with_suffix(".parquet")
    assert parquet.read_table(beside).to_pylist() == whole["records"]
    stamp, stamp_beside = made.file.stat().st_mtime_ns, beside.stat().st_mtime_ns
    assert made().whole == whole and beside.stat().st_mtime_ns == stamp_beside
    beside.unlink()
    moved = {**sources, "squad": str(shutil.copy(sources["squad"], tmp_path / "moved.parquet"))}  # the same bytes elsewhere
    assert made(resamples=30, paths=moved).whole == whole and made.file.stat().st_mtime_ns == stamp and beside.is_file()
    other = published.write(tmp_path / "other.parquet", "squad", [published.squad()])
    for knobs, said in (({"seed": 1}, "seed was 0 and is 1"), ({"target_per_category": 7}, "target_per_category was 6 and is 7"),
                        ({"sets": ["squad"]}, "sets was .squad, hotpotqa,.* and is .squad."), ({"samples_per_dataset": None}, "samples_per_dataset was 1000 and is null"),
                        ({"paths": {**sources, "squad": None}}, "squad was read from a file of .* and is the hub's rajpurkar/squad at its newest commit now"),
                        ({"paths": {**sources, "squad": other}}, "squad was read from a file of sha256 .* and is a file of")):
        with pytest.raises(UserError, match=f"made with other settings: {said}.*force=true$"):
            made(**knobs)
        assert made.file.read_bytes() == first
    assert made(seed=1, force=True).whole["records"] != whole["records"]  # every record is read: the seed draws whom the second pass takes
    assert made(force=True) and made.file.read_bytes() == first


def test_a_file_from_the_hub_is_reused_without_asking_for_its_commit(made, sources):
    whole = made().whole
    whole["sources"]["squad"]["origin"] = {"hub": "rajpurkar/squad", "config": "plain_text", "split": "validation", "commit": "c" * 40}
    made.file.write_text(json.dumps(whole))
    assert made(paths={**sources, "squad": None}).whole == whole
    with pytest.raises(UserError, match="squad was read from the hub's rajpurkar/squad at its newest commit and is a file of sha256"):
        made()
    pinned = {"paths": {**sources, "squad": None}, "revisions": {"squad": "c" * 40}}
    assert made(**pinned).whole == whole  # the very commit that was read
    with pytest.raises(UserError, match="at its newest commit and is the hub's rajpurkar/squad at revision v2 now"):
        made(**{**pinned, "revisions": {"squad": "v2"}})
    whole["sources"]["squad"]["origin"]["revision"] = "v2"
    made.file.write_text(json.dumps(whole))
    assert made(**{**pinned, "revisions": {"squad": "v2"}}).whole == whole == made(**pinned).whole
    with pytest.raises(UserError, match="at revision v2 and is the hub's rajpurkar/squad at its newest commit now"):
        made(**{**pinned, "revisions": {}})


def test_the_manifest_names_what_each_set_was_read_from_and_a_pinned_revision_is_asked_of_the_hub(launch, sources, monkeypatch, tmp_path):
    asked, records = [], [published.squad(f"Where is {i}?") for i in range(3)]

    def whole(name, *, split, config, revision, key, choose):
        asked.append((name, revision))
        return hub.Found(choose(3), records, "f" * 64, {"hub": name, "config": config, "split": split, "commit": "c" * 40})
    monkeypatch.setattr(hub, "whole", whole)
    folder = tmp_path / "drop" / "validation.parquet"
    folder.parent.mkdir()
    shutil.copy(sources["drop"], folder)
    words = ("method.paths.squad=null", "method.revisions.squad=v2", f"method.paths.drop={folder.parent}")
    assert launch(*words)[0] == 0 and asked == [("rajpurkar/squad", "v2")]
    manifest = json.loads(next(launch.file.parent.glob("classify/tiny/*/manifest.json")).read_text())
    own = {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in sources.items()} | {"squad": "f" * 64}
    where = {name: {"path": path, "split": None} for name, path in sources.items()} | {"drop": {"path": str(folder.parent), "split": "validation"}}
    where["squad"] = {"hub": "rajpurkar/squad", "config": "plain_text", "split": "validation", "commit": "c" * 40, "revision": "v2"}
    assert manifest["data"] == {name: {**where[name], "fingerprint": own[name], "records": 3 if name == "squad" else 12} for name in sources}
    assert own.items() < manifest["fingerprints"].items()
    assert "already done" in launch(*words)[1].out and len(asked) == 1
    launch.file.unlink()
    folder.write_bytes(Path(published.write(tmp_path / "other.parquet", "drop", [published.drop()])).read_bytes())
    code, out = launch(*words)
    assert code == 1 and "the drop's fingerprint was" in out.err and not launch.file.exists()


def test_a_file_is_read_once(made, monkeypatch):
    read, questions = [], qa.questions
    monkeypatch.setattr(qa, "questions", lambda of, *more: read.append(of.name) or questions(of, *more))
    assert made().whole and sorted(read) == sorted(classify.SETS)


def test_a_run_that_goes_on_says_what_was_read_too(made, sources):
    before = made().read_from
    assert made().read_from == before == made(force=True).read_from and before["squad"]["path"] == sources["squad"]


@pytest.mark.parametrize("key", ["paths", "revisions"])
def test_a_set_that_nobody_knows_is_refused_wherever_it_is_named(made, key):
    with pytest.raises(UserError, match=f"method.{key}: no set squadd; there are .*did you mean 'squad'"):
        made(**{key: {"squadd": "x"}})


def test_a_file_of_other_rules_is_refused(made, monkeypatch):
    made()
    monkeypatch.setattr(_classified_file, "RULES", _classified_file.RULES[1:])
    with pytest.raises(UserError, match="the rules were others"):
        made()


def test_the_counts_add_up_and_the_report_shows_them(launch):
    launch()
    whole = json.loads(launch.file.read_text())
    folder = next(launch.file.parent.glob("classify/tiny/*/"))
    account = json.loads((folder / "artifacts" / "classified.json").read_text())
    cells = {(cell["dataset"], cell["category"]): (cell["found"], cell["kept"]) for cell in account["cells"]}
    assert cells["squad", "Simple Recall"] == (4, 4) and cells["squad", "Long Context"] == (7, 6) and cells["squad", "skipped"] == (1, 0)
    assert cells["hotpotqa", "Two-Hop Reasoning"][0] == cells["hotpotqa", "Three-Hop Reasoning"][0] == 6  # a comparison of three facts
    assert cells["musique", "skipped"] == (3, 0) and cells["natural_questions", "skipped"] == (12, 0)
    assert sum(found for found, _ in cells.values()) == len(whole["judged"]) == 72
    assert sum(kept for _, kept in cells.values()) == len(whole["records"]) and sum(rule["kept"] for rule in account["rules"]) == len(whole["records"])
    summary = {tuple(row["conditions"].values()): row for row in json.loads((folder / "summary.json").read_text())}
    for cell, (found, kept) in cells.items():
        row = summary[cell]
        assert (row["n"], row["found"], row["kept"], row["p"]) == (12, found, kept, None) and row["mean"] == pytest.approx(found / 12)
        assert row["n_clusters"] == 5 or cell[0] != "squad"  # four articles, and the record that could not be read
    report = (folder / "report.html").read_text()
    for said in ("Natural Questions</td>", "no rule for Long Context or Stress Test fires", "Stress Test: 0 of 6", "5-9 sentences", "figure"):
        assert said in report
    assert str(launch.file.parent) not in json.dumps(whole)


def test_another_process_gives_the_same_bytes(made, tmp_path, sources):
    whole = made(seed=3, samples_per_dataset=9, target_per_category=4).whole
    for name, source in whole["sources"].items():
        ids = [each["question_id"] for each in whole["judged"] if each["source"] == name]
        assert source["records"] == len(ids) == 9 and ids == sorted(ids) and not source["origin"]
    code = ("import sys, json; from mamba_mi.experiments import _classified_file as f; from mamba_mi.experiments.classify import Knobs\n"
            "f.make(Knobs(paths=json.loads(sys.argv[1]), file=sys.argv[2], target_per_category=4, samples_per_dataset=9), 3, {})")
    other = tmp_path / "other" / "classified_questions.json"
    subprocess.run([sys.executable, "-c", code, json.dumps(sources), str(other)], check=True, cwd=REPO,
                   env={**os.environ, "PYTHONPATH": str(REPO), "PYTHONHASHSEED": "2"})
    for suffix in (".json", ".parquet"):
        assert other.with_suffix(suffix).read_bytes() == made.file.with_suffix(suffix).read_bytes()


def test_a_run_that_is_done_runs_again_from_its_own_files_and_the_command_line_refuses_in_a_line(launch):
    assert launch()[0] == 0
    first = launch.file.read_bytes()
    code, out = launch()
    assert code == 0 and "already done" in out.out and "Simple Recall: 4 of 6 questions (SQuAD 4)" in out.out
    code, out = launch("seed=1")
    assert code == 1 and out.err.count("\n") == 1 and "seed was 0 and is 1" in out.err and launch.file.read_bytes() == first


@pytest.mark.parametrize(("words", "said"), [
    (["method.sets=[squadd]"], "method.sets: no set squadd; there are squad, natural_questions, .*did you mean 'squad'"),
    (["method.sets=[squad,squad]"], "at least one, and each once"), (["method.sets=[]"], "method.sets=.*: at least one, and each once"), (["method.target_per_category=0"], "target_per_category=0: give at least 1"),
    (["method.file=x.txt"], "its name must end in .json"),
    (["method.paths.squad=no/such.parquet"], "method.paths.squad=no/such.parquet: no such file; download it with `hf download rajpurkar/squad .*method.paths.squad=FOLDER"),
    (["method.paths.squad=README.md"], "method.paths.squad=README.md: cannot read .md; give a file"),
    (["method.paths.squad=conf"], "method.paths.squad=conf: no file of split validation; it has train; download it"),
    (["method.paths.squad=conf/config.yaml"], "method.paths.squad=conf/config.yaml: not a readable .yaml file .not a list of records"),
    (["method.paths.squad={hotpotqa}"], "method.paths.squad=.*hotpotqa.parquet: no column answers; it has"),
    (["method.paths.squad=3"], "method.paths.squad=3: no such file"),
    (["method.revisions.squad=main"], "method.revisions.squad=main: the hub's copy has revisions, method.paths.squad=.*parquet none; leave one of them out"),
    (["method.sets=[natural_questions]"], "none of 12 records of natural_questions is of a category")])
def test_what_cannot_be_done_is_one_line_before_there_is_a_run_and_of_a_dry_run_too(launch, words, said, sources):
    for more in ([], ["dry_run=true"]) if "paths" in words[0] else ([],):
        code, out = launch(*(word.format(**sources) for word in words), *more)
        assert code == 1 and re.search(said, out.err) and out.err.count("\n") == 1
        assert not launch.file.exists() and not launch.file.parent.exists()


def test_the_examples_are_two_a_category_of_two_sets_where_there_are_two_and_fit_a_line():
    def record(category, source, number, **more):
        return {"category": category, "source": source, "rule": "r", "question": f"{source} {number}", "expected": "Zed", "context": "", **more}
    records = [*(record("A", "hotpotqa", i) for i in range(3)), *(record("A", "musique", i) for i in range(3)),
               record("B", "drop", 0, context=" ".join(["word"] * 20)), record("B", "drop", 1, context="x" * 60), record("B", "drop", 2)]
    found = classify._examples(records)
    assert [each["question"] for each in found] == ["hotpotqa 0", "musique 0", "drop 0", "drop 1"]
    assert found[2]["context"] == "word " * 11 + "word…" and found[3]["context"] == "x" * 60


def test_another_file_in_its_place_is_not_overwritten(made):
    made.file.write_text('{"mine": 1}')
    with pytest.raises(UserError, match="a file that experiment=classify did not make"):
        made()
    assert made.file.read_text() == '{"mine": 1}'


@pytest.mark.parametrize("said", ["", "[]", '{"settings": [], "sources": {}, "judged": [], "records": []}'])
def test_a_file_of_another_shape_is_one_line_too(made, said):
    made.file.write_text(said)
    with pytest.raises(UserError, match="a file that experiment=classify did not make"):
        made()


def test_a_power_cut_leaves_no_half_of_it(made, monkeypatch):
    def cut(path, whole):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_classified_file, "write_parquet", cut)
        made()
    assert not made.file.exists() and made() and made.file.exists()


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(trim_offsets=True)


def test_the_data_set_reads_what_was_kept(made, tokenizer, tmp_path):
    whole = made().whole
    found = data.load({"name": "classified", "path": str(made.file)}, tokenizer, 0)
    records = {each["question_id"]: each for each in whole["records"]}
    assert {p.prompt_id: p.source for p in found.prompts} == records and not found.dropped
    assert {p.template for p in found.prompts} == {each["category"] for each in whole["records"]} <= set(CATEGORIES)
    orders = [[p.prompt_id for p in data.load({"name": "classified", "path": str(made.file)}, tokenizer, seed).prompts] for seed in (0, 1)]
    assert orders[0] == [p.prompt_id for p in found.prompts] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    table = data.load({"name": "classified", "path": str(made.file.with_suffix(".parquet"))}, tokenizer, 0)
    assert table.prompts == found.prompts
    one = data.load({"name": "classified", "path": str(made.file), "categories": ["Two-Hop Reasoning"], "context": False}, tokenizer, 0)
    assert {p.source["category"] for p in one.prompts} == {"Two-Hop Reasoning"} and all(set(p.spans) == {"question"} for p in one.prompts)
    with pytest.raises(UserError, match="dataset.categories=Two-Hop: there are Simple Recall, .*did you mean 'Two-Hop Reasoning'"):
        data.load({"name": "classified", "path": str(made.file), "categories": ["Two-Hop"]}, tokenizer, 0)
    with pytest.raises(UserError, match=r"dataset.categories=\[\]: at least one, or null"):
        data.load({"name": "classified", "path": str(made.file), "categories": []}, tokenizer, 0)
    twice = tmp_path / "twice.jsonl"
    twice.write_text(2 * (json.dumps(whole["records"][0]) + "\n"))
    with pytest.raises(UserError, match="^dataset.path=.*: question_id 'squad-.*' is there more than once"):
        data.load({"name": "classified", "path": str(twice)}, tokenizer, 0)
    with pytest.raises(UserError, match="no such file.*experiment=classify` makes it"):
        data.load({"name": "classified", "path": str(tmp_path / "nowhere.json")}, tokenizer, 0)


def test_records_that_are_none_are_dropped_with_their_reason(tokenizer, tmp_path):
    good = {"question": "Who?", "expected": "Zed", "category": "Simple Recall"}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([good, {**good, "category": "Riddles"}, {**good, "expected": " "}, {"question": "Who?"}, {**good, "context": 7},
                                {**good, "context": None, "question": "And who?", "alternatives": ["of Zed"]}, {**good, "context": "Zed."}]))
    found = data.load({"name": "classified", "path": str(path)}, tokenizer, 0)
    assert len(found.prompts) == 3
    for name in ("alternatives", "supporting_facts"):
        path.write_text(json.dumps([good, {**good, name: "Zed", "question": "And?"}, {**good, name: [7], "question": "Or?"}, {**good, "num_hops": "2"}]))
        other = data.load({"name": "classified", "path": str(path)}, tokenizer, 0)
        assert [d.why for d in other.dropped] == [f"{name} is not a list", f"{name} is not text", "num_hops is not a number"]
    path.write_text(json.dumps([good, {**good, "question": "And who?"}, {**good, "context": "Zed."}]), encoding="utf-8-sig")
    bare = data.load({"name": "classified", "path": str(path), "context": False}, tokenizer, 0)
    assert {p.text for p in bare.prompts} == {"Question: Who?\nAnswer:", "Question: And who?\nAnswer:"} and len(bare.prompts) == 2
    assert bare.dropped[-1].why == "without the facts an earlier record has the same prompt"
    assert [d.why for d in found.dropped] == ["category is none of the seven", "expected is empty", "expected is empty", "context is not text"]
