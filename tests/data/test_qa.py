"""Six sets, each in its published shape: what a record becomes, what cannot be used, and where the records come from."""
import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from mamba_mi import data
from mamba_mi.config import UserError
from mamba_mi.data import hub, qa
from mamba_mi.data.questions import asked
from mamba_mi.data.reading import Unusable
from tests.data import published
from tests.data.published import MADE, write

SETS = sorted(MADE)
NO_ANSWER = "no answer is given: the question is unanswerable, or its answer is withheld"


@pytest.fixture
def read(tmp_path):
    """The questions of these records, and why the others are none."""
    def these(name, records, suffix=".parquet", seed=0, **knobs):
        module = importlib.import_module(f"mamba_mi.data.{name}")
        path = write(tmp_path / f"{name}{suffix}", name, records)
        return qa.questions(module.SET, module.Knobs(path=path, **knobs), seed)
    return these


def one(found):
    assert not found.dropped
    [question] = found.questions
    return question


def whys(found) -> Counter:
    return Counter(each.why for each in found.dropped)


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_the_same_questions_from_every_format_and_from_datasets_own_reading(name, read, tmp_path):
    records = [MADE[name](question=f"{word} does Zoë 大江 live?") for word in ("Where", "How", "Why")]
    found = {suffix: read(name, records, suffix) for suffix in (".parquet", ".jsonl", ".json")}
    asked_for = [each.record() for each in found[".parquet"].questions]
    assert [each["question_id"] for each in asked_for] == [f"{name}-{row:06d}" for row in range(3)]
    assert all(each["source"] == name and each["expected"] and each["cluster"] for each in asked_for)
    for other in found.values():
        assert [each.record() for each in other.questions] == asked_for and not other.dropped
    datasets = pytest.importorskip("datasets")
    again = datasets.load_dataset("parquet", data_files=str(tmp_path / f"{name}.parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    question = importlib.import_module(f"mamba_mi.data.{name}").SET.question
    assert [question(record).expected for record in again.to_list()] == [each["expected"] for each in asked_for]


def test_squad_is_one_hop_and_one_fact(read):
    question = one(read("squad", [published.squad(answers=("Zed", "in Zed", "Zed"))]))
    assert (question.expected, question.alternatives) == ("Zed", ("in Zed",))
    assert (question.num_hops, question.num_facts, question.cluster) == (1, 1, "Oru")
    assert question.prompt == asked("Where does Oru live?", "Oru lives in Zed.")


def test_what_no_question_can_be_made_of_is_dropped_and_counted(read):
    records = [published.squad(answers=()), published.squad(question="  "), {**published.squad(), "question": None},
               {**published.squad(), "answers": None}, published.squad(answers=("",)), published.squad(), published.squad(),
               published.squad(question="Who?", context="")]
    found = read("squad", records)
    assert len(found.questions) == 2 and found.questions[1].prompt == "Question: Who?\nAnswer:"
    assert whys(found) == {NO_ANSWER: 1, "question is empty": 2, "answers.text is missing": 1, "answers.text is empty": 1,
                           "an earlier record has the same prompt": 1}


def test_half_a_surrogate_pair_is_dropped_not_fatal(read, tmp_path):
    records = [published.squad(question="Who is \ud83d?"), published.squad(answers=("\udc00",)), published.squad()]
    found = read("squad", records, ".jsonl")
    assert len(found.questions) == 1
    assert whys(found) == {f"{name} is not valid Unicode (half of a surrogate pair)": 1 for name in ("question", "answers.text")}
    assert found.dropped[0].text == "Who is ??"


@pytest.mark.parametrize(("name", "record", "why"), [
    ("squad", published.squad(title="\ud83d"), "cluster"), ("drop", published.drop(section="\ud83d"), "cluster"),
    ("drop", published.drop(types=("\ud83d",)), "kind"), ("natural_questions", published.natural_questions(title="\ud83d"), "cluster"),
    ("triviaqa", {**published.triviaqa(), "answer": {"value": "Oru", "normalized_value": "\ud83d"}}, "cluster"),
    ("hotpotqa", published.hotpotqa(context=(("\ud83d", ("Oru.",)),)), "context.title"), ("hotpotqa", published.hotpotqa(facts=(("\ud83d", 0),)), "cluster"),
    ("musique", {**published.musique(), "paragraphs": [{"title": "\ud83d", "paragraph_text": "Oru.", "is_supporting": False}]}, "context")])
def test_half_a_surrogate_pair_in_a_name_is_dropped_before_it_is_written(name, record, why, read):
    found = read(name, [record, MADE[name](question="Who else?")], ".jsonl")
    assert len(found.questions) == 1 and whys(found) == {f"{why} is not valid Unicode (half of a surrogate pair)": 1}


def test_hotpot_facts_are_distinct_sentences_and_a_bridge_is_two_hops(read):
    record = published.hotpotqa(facts=(("A", 0), ("B", 1), ("A", 0), ("A", 1), ("B", 7)))
    question = one(read("hotpotqa", [record]))
    assert (question.num_hops, question.num_facts, question.kind, question.cluster) == (2, 4, "bridge", "A")
    assert question.supporting_facts == ("A was founded by Oru.", "Oru was born in Zed.", "It is old.")
    assert question.context == "A: A was founded by Oru. It is old.\nB: Oru is a person. Oru was born in Zed."
    assert one(read("hotpotqa", [published.hotpotqa(type="comparison")])).num_hops is None
    untold = one(read("hotpotqa", [published.hotpotqa(facts=())]))
    assert (untold.num_facts, untold.supporting_facts, untold.cluster) == (None, (), "")
    assert one(read("musique", [published.musique(supporting=0)])).num_facts is None


def test_hotpots_raw_json_is_the_same_as_the_hubs_parquet(read):
    records = [published.hotpotqa(), published.hotpotqa(type="comparison", question="Which is older, A or B?")]
    raw = read("hotpotqa", [published.raw_hotpotqa(record) for record in records], ".json")
    assert raw.questions == read("hotpotqa", records).questions
    assert "_id" in json.dumps(published.raw_hotpotqa(records[0])) and published.raw_hotpotqa(records[0])["supporting_facts"] == [["A", 0], ["B", 1]]


def test_hotpots_test_split_has_no_answers(read):
    found = read("hotpotqa", [{**published.hotpotqa(facts=()), "answer": None}, {**published.hotpotqa(), "context": None},
                              {**published.hotpotqa(), "supporting_facts": {"title": ["A"], "sent_id": []}}])
    assert whys(found) == {"answer is empty": 1, "context.title is missing": 1,
                           "supporting_facts: title, sent_id differ in length": 1}


def test_trivia_aliases_are_alternatives_and_no_answer_is_offered_twice(read):
    question = one(read("triviaqa", [published.triviaqa()]))
    assert (question.expected, question.alternatives, question.context) == ("Oru", ("Oru of Zed", "ÓRU"), "")
    assert question.prompt == "Question: Who painted the Blue Door?\nAnswer:" and question.cluster == "oru"
    assert one(read("triviaqa", [published.triviaqa(pages=["Oru painted.", "Another page."])])).context == "Oru painted."
    assert whys(read("triviaqa", [published.triviaqa(value="<unk>", aliases=())])) == {NO_ANSWER: 1}


@pytest.mark.parametrize("hops", [2, 3, 4])
def test_musique_hops_are_its_steps_or_what_its_id_says(read, hops):
    question = one(read("musique", [published.musique(hops, supporting=hops)]))
    assert (question.num_hops, question.num_facts, question.alternatives) == (hops, hops, ("City of Zed",))
    assert question.cluster == f"T{hops - 1}" and question.supporting_facts[0] == "Paragraph 0."
    assert question.context.startswith("T0: Paragraph 0.\nT1: Paragraph 1.") and question.context.count("\n") == 4 + hops
    assert one(read("musique", [published.musique(2, id=f"{hops}hop1__5_6", decomposed=False)])).num_hops == hops
    assert one(read("musique", [published.musique(2, id="no number", decomposed=False)])).num_hops is None


def test_musique_clusters_are_the_article_of_the_last_step_if_it_is_there(read):
    for at, cluster in ((0, "T0"), (4, "T4"), (99, "T1"), (-1, "T1"), (None, "T1")):
        record = published.musique(2)
        record["question_decomposition"][-1]["paragraph_support_idx"] = at
        assert one(read("musique", [record])).cluster == cluster


def test_musique_unanswerable_twins_are_dropped(read):
    found = read("musique", [published.musique(), published.musique(answerable=False)])
    assert len(found.questions) == 1 and whys(found) == {NO_ANSWER: 1}


def test_drop_answers_are_numbers_dates_or_one_span(read):
    records = [published.drop(), published.drop("When?", ("8 May 1945",), ("date",)), published.drop("Who?", ("Oru", "Oru"), ("span", "span"))]
    kinds = [(each.kind, each.expected, each.num_hops, each.num_facts, each.cluster) for each in read("drop", records).questions]
    assert kinds == [("number", "7", None, None, "sec1"), ("date", "8 May 1945", None, None, "sec1"), ("span", "Oru", None, None, "sec1")]
    both = one(read("drop", [published.drop(spans=("2", "two"), types=("number", "span"))]))
    assert (both.expected, both.alternatives, both.kind) == ("2", ("two",), "number")
    found = read("drop", [published.drop(spans=("Oru", "Zed"), types=("span", "span")), published.drop(spans=(), types=())])
    assert whys(found) == {"several different spans: whether they are one answer or several is not published": 1, NO_ANSWER: 1}


def test_natural_questions_answers_count_tokens_and_leave_tags_out(read):
    question = one(read("natural_questions", [published.natural_questions()]))
    assert (question.expected, question.context, question.cluster) == ("Zed", "Oru lives in Zed .", "Oru")
    over_tags = published.natural_questions([(0, 13, 0, ((4, 10), (1, 2)), -1)])  # of 13 tokens: a span over </P> <Ul> <Li>
    question = one(read("natural_questions", [over_tags]))
    assert (question.expected, question.alternatives) == ("Zed . Oru", ("Oru",))
    assert question.context == "Oru lives in Zed . Oru paints ."
    assert one(read("natural_questions", [published.natural_questions([(0, 14, 0, ((9, 14),), -1)])])).expected == "Oru paints ."  # to the page's end


def test_natural_questions_annotators_who_found_nothing_are_passed_over(read):
    nothing, long_only = (-1, -1, -1, (), -1), (0, 7, 0, (), -1)
    question = one(read("natural_questions", [published.natural_questions([nothing, long_only, (0, 7, 0, ((4, 5),), -1), (0, 7, 0, ((1, 2),), -1)])]))
    assert (question.expected, question.alternatives) == ("Zed", ("Oru",))
    yes = one(read("natural_questions", [published.natural_questions([(0, 7, 0, (), 1)])]))
    no = one(read("natural_questions", [published.natural_questions([(0, 7, 0, (), 0)])]))
    assert (yes.expected, no.expected) == ("yes", "no") and yes.context == "Oru lives in Zed ."
    found = read("natural_questions", [published.natural_questions([nothing]), published.natural_questions([long_only]),
                                       published.natural_questions([(0, 7, 0, ((4, 99),), -1)])])
    assert whys(found) == {NO_ANSWER: 1, "only a long answer is given": 1, "an answer's tokens lie outside the page": 1}


def spoilt(value):
    """Every copy of a nested value in which one thing is missing or of another kind."""
    yield from (None, 7, "", "x", [], [None], [7], {}, True)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: other} for other in spoilt(inner))
    if isinstance(value, list) and value:
        yield value[1:]
        yield from ([other, *value[1:]] for other in spoilt(value[0]))


@pytest.mark.parametrize("name", SETS)
def test_no_field_that_is_missing_or_of_another_kind_is_a_crash_or_silent(name):
    question = importlib.import_module(f"mamba_mi.data.{name}").SET.question
    made, reasons = 0, Counter()
    for record in spoilt(MADE[name]()):
        if not isinstance(record, dict):
            continue  # no file holds such a record
        try:
            found = question(record)
        except Unusable as why:
            reasons[str(why)] += 1
            continue
        made += 1
        assert found.question.strip() and found.expected.strip() and all(isinstance(each, str) for each in found.supporting_facts)
        json.dumps(found.record())
    assert made and len(reasons) >= 4 and all(reasons)


def test_the_seed_draws_the_records_and_the_same_ones_from_every_format(read):
    records = [published.squad(question=f"Number {i}?") for i in range(40)]
    drawn = [read("squad", records, suffix, seed=seed, samples=10) for seed in (0, 1) for suffix in (".parquet", ".jsonl")]
    ids = [[each.question_id for each in found.questions] for found in drawn]
    assert ids[0] == ids[1] != ids[2] == ids[3] and len(ids[0]) == 10 and ids[0] == sorted(ids[0])
    assert all(each.question == f"Number {int(each.question_id[6:])}?" for each in drawn[0].questions)


def test_a_downloaded_folder_gives_the_shards_of_its_split(tmp_path):
    module = importlib.import_module("mamba_mi.data.squad")
    for shard, numbers in {"validation-00000-of-00002": (0, 1), "validation-00001-of-00002": (2, 3), "train-00000-of-00001": (9,)}.items():
        write(tmp_path / "copy" / "plain_text" / f"{shard}.parquet", "squad", [published.squad(question=f"Number {i}?") for i in numbers])
    found = qa.questions(module.SET, module.Knobs(path=str(tmp_path / "copy")), 0)
    assert [each.question for each in found.questions] == [f"Number {i}?" for i in range(4)]
    assert one(qa.questions(module.SET, module.Knobs(path=str(tmp_path / "copy"), split="train"), 0)).question == "Number 9?"
    with pytest.raises(UserError, match="no file of split test; it has train, validation; download it with `hf download rajpurkar/squad"):
        qa.questions(module.SET, module.Knobs(path=str(tmp_path / "copy"), split="test"), 0)


def test_a_folder_is_read_as_the_download_leaves_it(tmp_path):
    module, copy = importlib.import_module("mamba_mi.data.hotpotqa"), tmp_path / "copy"
    ask = lambda **more: qa.questions(module.SET, module.Knobs(path=str(copy), **more), 0)  # noqa: E731
    for config in ("distractor", "fullwiki"):
        alone = write(copy / config / "validation-00000-of-00001.parquet", "hotpotqa", [published.hotpotqa(question=f"In {config}?")])
        write(copy / config / ".cache" / "validation.parquet", "hotpotqa", [published.hotpotqa(question="Half of it?")])
        found = ask(config=config)
        assert one(found).question == f"In {config}?" and found.fingerprint == hashlib.sha256(Path(alone).read_bytes()).hexdigest()
    write(copy / "fullwiki" / "validation-b.parquet", "hotpotqa", [published.hotpotqa(question="And in b?")])
    both = ask(config="fullwiki")
    assert len(both.questions) == 2
    write(copy / "fullwiki" / "validation-b.parquet", "hotpotqa", [published.hotpotqa(question="Or in b?")])
    assert len({both.fingerprint, found.fingerprint, ask(config="fullwiki").fingerprint}) == 3
    write(copy / "fullwiki" / "hotpot_dev_fullwiki_v1.json", "hotpotqa", [published.hotpotqa()])
    with pytest.raises(UserError, match="split validation is there in several formats .*; give one file"):
        ask(config="fullwiki")
    copy = tmp_path / "raw"
    for split in ("train", "dev"):
        write(copy / f"hotpot_{split}_v1.json", "hotpotqa", [published.raw_hotpotqa(published.hotpotqa(question=f"In {split}?"))])
    assert one(ask()).question == "In dev?" and one(ask(split="train")).question == "In train?"


@pytest.mark.parametrize("name", SETS)
def test_a_folder_stands_in_for_the_hub_and_a_large_set_is_streamed(name, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    records = [MADE[name](question=f"Number {i}?") for i in range(8)]
    path = write(tmp_path / "repository" / "validation-00000-of-00001.parquet", name, records)
    module = importlib.import_module(f"mamba_mi.data.{name}")
    from_file = qa.questions(module.SET, module.Knobs(path=path, samples=None), 0)
    knobs = {"hub": str(tmp_path / "repository"), "config": None}
    from_hub = qa.questions(module.SET, module.Knobs(**knobs, samples=None), 0)
    assert from_hub.questions == from_file.questions and from_hub.origin["split"] == "validation"
    few = qa.questions(module.SET, module.Knobs(**knobs, samples=3), 0)
    assert len(few.questions) == 3 and few.fingerprint != from_hub.fingerprint
    assert module.SET.streamed == (name in ("triviaqa", "natural_questions"))
    if module.SET.streamed:
        assert [each.question for each in few.questions] == ["Number 0?", "Number 1?", "Number 2?"]
    with pytest.raises(UserError, match="dataset.hub=.*not to be had .*nope.*repository --repo-type dataset --revision v2 --local-dir FOLDER"):
        qa.questions(module.SET, module.Knobs(**knobs, split="nope", revision="v2"), 0)


def test_streaming_reads_no_more_records_than_asked_for(tmp_path):
    datasets = pytest.importorskip("datasets")
    read = []

    def records():
        for i in range(1000):
            read.append(i)
            yield {"question": f"Number {i}?"}

    class Builder:
        config, hash = datasets.BuilderConfig(), "0" * 40
        as_streaming_dataset = staticmethod(lambda split: datasets.IterableDataset.from_generator(records))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "_builder", lambda *_: Builder)
        found = hub.beginning("a/b", 5, split="validation")
    assert len(found.records) == 5 and len(read) <= 6 and found.origin["commit"] == "0" * 40


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """What each set says to who is offline and has nothing in the cache, and to who gives a path that leads nowhere."""
    pytest.importorskip("datasets")
    code = ("from mamba_mi.data import load\nfrom mamba_mi.config import UserError\n"
            f"for name in {SETS}:\n  for more in ({{}}, {{'path': 'no/such.parquet'}}):\n"
            "    try: load({'name': name, **more}, None, 0)\n    except UserError as e: print(e)")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("home"))}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 2 * len(SETS)
    return {name: said[2 * i:2 * i + 2] for i, name in enumerate(SETS)}


@pytest.mark.parametrize("name", SETS)
def test_offline_or_with_a_wrong_path_one_line_says_what_to_do(name, offline):
    hubs, config = (lambda knobs: (knobs.hub, knobs.config))(importlib.import_module(f"mamba_mi.data.{name}").Knobs())
    alone = f" --include '{config}/*'" if config else ""  # all of TriviaQA is 16 GB, of Natural Questions 45
    said = offline[name]
    assert said[1].startswith("dataset.path=no/such.parquet: no such file")
    for part in (f"dataset.hub={hubs}", "dataset.path is not set", "HF_HUB_OFFLINE=1"):
        assert part in said[0]
    for line in said:
        assert f"`hf download {hubs} --repo-type dataset{alone} --local-dir FOLDER`" in line


@pytest.mark.parametrize(("files", "digest", "commit"), [
    ([f"hf://datasets/a/b@{'c' * 40}/x.parquet"], "d" * 40, "c" * 40), (None, "d" * 40, "d" * 40), ([], "d" * 40, "d" * 40), (["/my/x.parquet"], "default-1a", None)])
def test_the_commit_is_that_of_the_files_or_of_the_cache(files, digest, commit):
    data_files = None if files is None else {"train": files}
    assert hub.commit(SimpleNamespace(config=SimpleNamespace(data_files=data_files), hash=digest)) == commit


def test_why_the_hub_did_not_answer_is_said_and_not_that_its_cache_was_asked_instead(monkeypatch):
    pytest.importorskip("datasets")
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no route to it")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(UserError, match=r"^dataset.hub=nobody/nothing: not to be had \(OSError: no route to it\)"):
        hub.whole("nobody/nothing", split="train")


@pytest.mark.parametrize(("knobs", "message"), [
    ({"samples": 0}, "^dataset.samples=0: give at least 1"), ({"longest": 0}, "^dataset.longest=0: give at least 1"),
    ({"split": "train"}, None), ({"context": "perhaps"}, "dataset.context")])
def test_a_knob_out_of_bounds_is_one_line(knobs, message, tmp_path, tokenizer):
    told = {"name": "squad", "path": write(tmp_path / "x.parquet", "squad", [published.squad()]), **knobs}
    if message is None:
        assert data.load(told, tokenizer, 0).prompts  # a single file is of the split its user says
        return
    with pytest.raises(UserError, match=message):
        data.load(told, tokenizer, 0)


def test_an_empty_file_is_one_line(tmp_path, tokenizer):
    with pytest.raises(UserError, match="^dataset.path=.*x.parquet: it holds no records$"):
        data.load({"name": "squad", "path": write(tmp_path / "x.parquet", "squad", [])}, tokenizer, 0)


def test_a_file_of_another_set_is_refused_by_its_columns(tmp_path, tokenizer):
    path = write(tmp_path / "x.parquet", "drop", [published.drop()])
    with pytest.raises(UserError, match="^dataset.path=.*no column context, answers; it has section_id"):
        data.load({"name": "squad", "path": path}, tokenizer, 0)


def test_prompts_have_the_facts_and_the_question_as_spans_and_keep_the_record(tmp_path, tokenizer):
    path = write(tmp_path / "x.parquet", "squad", [published.squad(), published.squad(question="Who lives in Zed?", answers=("Oru",))])
    told, bare = (data.load({"name": "squad", "path": path, "context": context}, tokenizer, 0) for context in (True, False))
    assert {tuple(p.spans) for p in told.prompts} == {("facts", "question")} and {tuple(p.spans) for p in bare.prompts} == {("question",)}
    prompt = next(p for p in told.prompts if p.target == " Zed")
    assert prompt.source["context"] == "Oru lives in Zed." and prompt.cluster == "Oru" and prompt.template == "squad"
    assert {p.text for p in bare.prompts} == {"Question: Where does Oru live?\nAnswer:", "Question: Who lives in Zed?\nAnswer:"}


def test_without_facts_no_prompt_is_there_twice(tmp_path, tokenizer):
    records = [published.squad(), published.squad(context="Oru lives in Velmora.", answers=("Velmora",)), published.squad(question="Who?")]
    path = write(tmp_path / "x.parquet", "squad", records)
    told, bare = (data.load({"name": "squad", "path": path, "context": context}, tokenizer, 0) for context in (True, False))
    assert len(told.prompts) == 3 and not told.dropped
    assert {p.prompt_id: p.target for p in bare.prompts} == {"squad-000000": " Zed", "squad-000002": " Zed"}
    assert [(d.prompt_id, d.why) for d in bare.dropped] == [("squad-000001", "without the facts an earlier record has the same prompt")]
