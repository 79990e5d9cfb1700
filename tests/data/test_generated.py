"""Generated prompts: every answer worked out again from the text alone, levels that hold what they say, and fair pairs."""
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mamba_mi.config import UserError
from mamba_mi.data import batches, facts, generated, generation, load
from mamba_mi.data.facts.vocabulary import BOS
from mamba_mi.data.facts.world import world
from mamba_mi.data.generation import LEVELS, generate
from mamba_mi.data.generation.draft import read
from mamba_mi.data.generation.words import NAMES, ROOMS
from mamba_mi.data.questions import CATEGORIES, of_record
from tests.oracles import prompts as solver

from .conftest import train_bpe

REPO = Path(__file__).resolve().parents[2]
SOLVE = {"english": solver.english, "world": solver.in_world}
FACTS = {"simple_recall": (2, 4), "two_hop": (3, 4), "three_hop": (4, 4), "long_context": (5, 7), "combined": (3, 4), "stress_test": (10, 16)}
HOPS = {"simple_recall": {1}, "two_hop": {2}, "three_hop": {3}, "long_context": {1}, "combined": {None}, "stress_test": {1, 2}}


@pytest.fixture(scope="module", params=[("english", 0), ("english", 1), ("world", 0), ("world", 1)], ids=lambda p: f"{p[0]} seed {p[1]}")
def made(request):
    """A set of six levels by a hundred, as it is made for one lexicon and seed."""
    return generate(request.param[0], list(LEVELS), 100, request.param[1])


@pytest.fixture(scope="module")
def english():
    return generate("english", list(LEVELS), 100, 0)


@pytest.fixture(scope="module")
def words():
    """A byte-level tokenizer that has most words of the prompts as one token."""
    return train_bpe(True, 900, [item.question.prompt for item in generate("english", list(LEVELS), 40, 3)])


def level_of(item) -> str:
    return next(level for level, category in LEVELS.items() if category == item.question.category)


def test_every_answer_is_the_solvers_on_both_sides(made):
    for item in made:
        solve = SOLVE[item.lexicon]
        assert solve(item.question.prompt) == item.question.expected, item.question.prompt
        assert solve(item.corrupt.prompt) == item.corrupt.expected, item.corrupt.prompt
        assert item.question.expected != item.corrupt.expected


def answer_without(fact: str, text: str) -> str | None:
    """What the text says without that fact, if anything."""
    try:
        return solver.english(text.replace(f"{fact} ", "").replace(f" {fact}", ""))
    except solver.Unsolvable:
        return None


def test_there_are_a_hundred_of_each_level_and_no_text_twice(made):
    levels = [level_of(item) for item in made]
    sayable = [level for level in LEVELS if made[0].lexicon == "english" or level != "combined"]
    assert {level: levels.count(level) for level in sayable} == dict.fromkeys(sayable, 100) and set(levels) == set(sayable)
    assert len({item.question.prompt for item in made}) == len({item.question.question_id for item in made}) == len(made)


def test_the_facts_told_are_as_many_as_the_level_says(made):
    for item in made:
        low, high = FACTS[level_of(item)]
        if item.lexicon == "english":
            told = len(solver.facts_of(item.question.prompt))
        else:
            told = solver.told_in_world(item.question.prompt) if item.question.context else 0
            low, high = (low, high) if item.question.context else (0, 0)
        assert low <= told <= high and item.question.num_facts == told
        assert item.question.num_hops in HOPS[level_of(item)]


def test_the_answer_follows_from_the_chained_facts_and_from_no_fewer(english):
    """Without one of them the text no longer says it; without all others it does."""
    for item in english:
        question, needed = item.question, item.question.supporting_facts
        told = solver.facts_of(question.prompt)
        assert set(needed) <= set(told)
        alone = question.prompt.replace(question.context, " ".join(fact for fact in told if fact in needed))
        assert solver.english(alone) == question.expected
        if question.num_hops is not None:
            assert len(needed) == question.num_hops
            for fact in needed:
                assert answer_without(fact, question.prompt) != question.expected, (fact, question.prompt)


def test_what_the_world_tells_once_is_the_fact_that_is_named():
    for item in generate("world", ["long_context", "stress_test"], 100, 0):
        question = item.question
        [fact] = question.supporting_facts
        key, *_, value = [word for word in fact.removesuffix(" .").split() if word not in ("in", "the")]
        assert f" {fact} " in f" {question.context} " and value == question.expected and key in question.question.split()
        assert question.context.split().count(value) == 1


def test_the_recall_levels_tell_of_others_what_is_asked_of_one(english):
    """An answer that is the only word of its kind could be had without reading who it is told of."""
    for item in (item for item in english if item.pattern.startswith("people")):
        value = item.question.expected
        [asked] = {re.sub(rf"^\w+ |{value}", "", fact) for fact in item.question.supporting_facts if value in fact}
        same = [fact for fact in solver.facts_of(item.question.prompt) if re.fullmatch(rf"\w+ {asked}".replace(" .", r" (\w+)\."), fact)]
        assert len(same) >= 2, item.question.prompt


def test_a_partner_differs_in_one_fact_and_in_the_marked_words_alone(made):
    for item in made:
        clean, corrupt = item.question, item.corrupt
        (a, b), (c, d) = item.subject, item.corrupt_subject
        assert clean.prompt[:a] == corrupt.prompt[:c] and clean.prompt[b:] == corrupt.prompt[d:]
        assert clean.prompt[a:b] != corrupt.prompt[c:d]
        if clean.context:
            assert clean.question == corrupt.question
            assert a >= clean.prompt.find(clean.context) and b <= clean.prompt.find(clean.context) + len(clean.context)
        if item.lexicon == "english":
            changed = [x != y for x, y in zip(solver.facts_of(clean.prompt), solver.facts_of(corrupt.prompt), strict=True)]
            assert sum(changed) == 1


def test_the_needed_facts_stand_anywhere_among_the_others(english):
    for level in LEVELS:
        mine = [item for item in english if level_of(item) == level and not item.is_original and item.pattern not in ("comparing", "ordering")]
        for place in (0, -1):
            told = [solver.facts_of(item.question.prompt)[place] in item.question.supporting_facts for item in mine]
            assert 0.05 < sum(told) / len(told) < 0.95, (level, place)
    compared = [solver.facts_of(item.question.prompt) for item in english if item.pattern == "comparing"]
    first = [facts[0] == max(facts, key=lambda fact: int(re.search(r"\d+", fact)[0])) for facts in compared]
    assert 0 < sum(first) < len(first)


def test_no_value_is_told_of_two_and_no_number_is_below_two(made):
    """Else who read only where a word stands once would be right."""
    for side in (side for item in made for side in ((item.question, item.pattern), (item.corrupt, item.pattern))):
        question, pattern = side
        if pattern.startswith("people") or pattern == "things, 1 hop":
            bare = [re.sub(r"^(The )?\w+ ", "", fact) for fact in solver.facts_of(question.prompt)]
            assert len(set(bare)) == len(bare), question.prompt
        if pattern == "boxes":
            things = [fact.split()[-1] for fact in question.context.removesuffix(" .").split(" . ")]
            assert len(set(things)) == len(things), question.prompt
        if pattern == "list":
            assert len(question.question.split()) >= 2  # one word would not say that it is a second copy
        if question.expected.lstrip("-").isdigit():
            assert int(question.expected) >= 2 or pattern == "subtracting", question.prompt


def test_a_prompt_is_of_its_persons_cluster_and_an_answer_may_be_put_in_other_ways(made):
    for item in made:
        (a, b), (c, d) = item.subject, item.corrupt_subject
        own = (item.question.prompt[a:b], item.corrupt.prompt[c:d]) if " of a person" in item.pattern else (item.question.question_id,) * 2
        assert (item.question.cluster, item.corrupt.cluster) == own
        for side in (item.question, item.corrupt):
            assert all(side.expected in form and form != side.expected for form in side.alternatives)
            assert side.alternatives or not item.pattern.startswith("things")


PATTERNS = {"simple_recall": {"people, 1 hop", "things, 1 hop"}, "two_hop": {"people, 2 hops", "things, 2 hops"},
            "three_hop": {"people, 3 hops", "things, 3 hops"}, "long_context": {"people, 1 hop", "things, 1 hop"},
            "combined": {"spending: what is left", "spending: in all", "adding", "subtracting", "comparing", "ordering"},
            "stress_test": {"people, 1 hop", "people, 2 hops"}}


def test_a_level_has_every_pattern_and_a_chain_is_changed_at_either_of_its_last_two_links(english):
    changed = {}
    for item in (item for item in english if not item.is_original and item.question.num_hops != 1):
        partner = solver.facts_of(item.corrupt.prompt)
        at = [i for i, fact in enumerate(item.question.supporting_facts) if fact not in partner]
        changed.setdefault(item.pattern, set()).update(at)
    assert all(changed[pattern] == {hops - 2, hops - 1} for level, hops in (("two_hop", 2), ("three_hop", 3)) for pattern in PATTERNS[level])
    assert {level: {item.pattern for item in english if level_of(item) == level and not item.is_original} for level in LEVELS} == PATTERNS


def test_the_others_are_many_people_and_things_in_boxes(english):
    people = []
    for item in english:
        told = solver.facts_of(item.question.prompt)
        if item.pattern == "things, 2 hops":
            assert sum(fact.split()[-1].rstrip(".") in ROOMS for fact in told) == 2  # the thing's and the other box's
        if level_of(item) == "stress_test" and not item.is_original:
            people.append(len({word for word in re.findall(r"\w+", " ".join(told)) if word in NAMES}) - item.question.num_hops)
    assert max(people) >= 4


def test_what_a_persons_answer_follows_from_begins_with_the_person_and_ends_with_the_answer():
    for hops, level in enumerate(("simple_recall", "two_hop", "three_hop"), 1):
        for item in generate("world", [level], 30, 0):
            facts_of = item.question.supporting_facts
            assert len(facts_of) == hops and facts_of[0].startswith(item.question.cluster) and facts_of[-1].split()[-1] == item.question.expected
            assert all(one.split()[-1] == other.split()[0] for one, other in zip(facts_of, facts_of[1:]))
            unseen = {saying.subject.join(saying.parts) for saying in world().sayings(item.pattern.split()[0], "heldout")}
            assert {side.prompt.removeprefix(f"{BOS} ") for side in (item.question, item.corrupt)} <= unseen


def test_each_level_is_drawn_by_itself():
    """Levels that share a maker do not begin with the same people."""
    for seed in range(6):
        recall, long = (next(item for item in generate("english", [level], 4, seed) if not item.is_original) for level in ("simple_recall", "long_context"))
        assert recall.question.supporting_facts != long.question.supporting_facts


def test_a_text_that_is_there_already_is_drawn_again_or_refused(monkeypatch):
    [by_hand, *_] = generation.ORIGINALS["two_hop"]
    for level in ("two_hop", "three_hop"):
        monkeypatch.setitem(generation.MAKERS["english"], level, (lambda draw: by_hand,))
    with pytest.raises(UserError, match="gave 3 different prompts of two_hop"):
        generate("english", ["two_hop"], 4, 0)
    with pytest.raises(RuntimeError, match="lexicon english, seed 0: two levels made the same prompt"):
        generate("english", ["two_hop", "three_hop"], 3, 0)


def test_hand_written_prompts_are_kept_and_marked(english):
    for level in LEVELS:
        flags = [item.is_original for item in english if level_of(item) == level]
        assert 2 <= sum(flags) <= 5 and flags == sorted(flags, reverse=True)
    assert [item.is_original for item in generate("english", ["two_hop"], 2, 0)] == [True, True]


def test_a_level_alone_and_fewer_of_it_are_the_beginning_of_the_same_prompts(made):
    lexicon, seed = made[0].lexicon, int(re.search(r"-s(\d)-", made[-1].question.question_id)[1])
    for level in ("long_context", "stress_test"):
        of_all = [item for item in made if level_of(item) == level]
        assert generate(lexicon, [level], 30, seed) == of_all[:30]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_prompts(english):
    again = generate("english", list(LEVELS), 100, 0)
    assert generated.digest_of(again) == generated.digest_of(english)
    other = {item.question.prompt for item in generate("english", list(LEVELS), 100, 1) if not item.is_original}
    assert len(other & {item.question.prompt for item in english}) <= 6


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(english):
    """One whose sets and dicts of text have another order than this one's."""
    code = ("import json; from mamba_mi.data.generation import LEVELS, generate\n"
            "print([hash('a') % 1000, json.dumps([i.record() for l in ('english', 'world') for i in generate(l, list(LEVELS), 100, 0)])])")
    hash_seed = "1" if hash("a") % 1000 != 1 else "2"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=120, cwd=REPO, text=True,
                         env={"PYTHONPATH": str(REPO), "PYTHONHASHSEED": hash_seed, "PATH": ""}).stdout
    other, written = ast.literal_eval(out)
    here = [*english, *generate("world", list(LEVELS), 100, 0)]
    assert written == json.dumps([item.record() for item in here]) and len(here) == 1100 and other != hash("a") % 1000


def test_a_record_is_read_again_and_is_a_questions_record_too(made):
    for item in made:
        record = json.loads(json.dumps(item.record()))
        assert read(record) == item and of_record(record) == item.question
        assert record["category"] in CATEGORIES[:6] and record["lexicon"] == item.lexicon


@pytest.fixture(scope="module")
def tokenizer_and_set(request, words):
    tokenizer = {"small": words, "world": facts.tokenizer(), "neox": None}[request.param]
    if tokenizer is None:
        tokenizer = request.getfixturevalue("neox")
    return tokenizer, load({"name": "generated", "n": None}, tokenizer, 0)


@pytest.mark.parametrize("tokenizer_and_set, share", [("small", 0.6), ("world", 1.0), ("neox", 1.0)], indirect=["tokenizer_and_set"])
def test_pairs_are_of_one_layout_and_their_spans_the_words_that_differ(tokenizer_and_set, share):
    tokenizer, dataset = tokenizer_and_set
    assert len(dataset.prompts) in (500, 600) and len(dataset.pairs) >= share * len(dataset.prompts)
    assert {p.prompt_id for p in dataset.prompts} == {
        *(pair.clean.prompt_id for pair in dataset.pairs), *(d.prompt_id for d in dataset.dropped if d.text)}
    for pair in dataset.pairs:
        clean, corrupt, record = pair.clean, pair.corrupt, pair.clean.source
        assert clean.layout == corrupt.layout and clean.target_id != corrupt.target_id
        (a, b), (start, end) = record["subject"], clean.spans["subject"]
        assert tokenizer.decode(clean.token_ids[start:end]).strip() == record["prompt"][a:b]
        differ = [i for i, (x, y) in enumerate(zip(clean.token_ids, corrupt.token_ids)) if x != y]
        assert differ and set(differ) <= set(range(start, end))
        first, last = clean.spans["question"]
        assert tokenizer.decode(clean.token_ids[first:last]).strip() == record["question"]
        assert clean.target.strip() == record["expected"] and corrupt.target.strip() == record["corrupt"]["expected"]
        assert clean.template == corrupt.template and record["category"] in clean.template
        assert (clean.cluster, corrupt.cluster) == (record["cluster"], record["corrupt"]["cluster"])
    assert batches(dataset.pairs, 16)


def test_english_given_to_a_small_vocabulary_is_refused_and_so_is_the_world_to_others(words):
    with pytest.raises(UserError, match="none of 600 records can be used: 600 times clean holds words outside"):
        load({"name": "generated", "lexicon": "english"}, facts.tokenizer(), 0)
    with pytest.raises(UserError, match="dataset.lexicon=world is about made-up people"):
        load({"name": "generated", "lexicon": "world"}, words, 0)


def test_what_the_world_cannot_say_is_left_out_by_name():
    dataset = load({"name": "generated", "per_level": 4}, facts.tokenizer(), 0)
    assert [d.why for d in dataset.dropped] == ["levels left out (combined, as the embedded world has no numbers, sums or comparisons to reason with)"]
    assert {p.prompt_id.split("-")[0] for p in dataset.prompts} == {"world"} and len(dataset.prompts) == 20


def test_bos_of_the_worlds_prompts_is_a_span_of_its_own_and_never_twice():
    tokenizer = facts.tokenizer()
    for prompt in load({"name": "generated", "per_level": 20, "n": None}, tokenizer, 0).prompts:
        assert prompt.token_ids.count(tokenizer.bos_token_id) == ("bos" in prompt.spans)
        assert prompt.spans.get("bos", (0, 1)) == (0, 1)
    [item] = generate("world", ["simple_recall"], 1, 0)
    assert generated._written(item).spans["bos"] == (0, len(BOS)) and item.question.prompt.startswith(BOS + " ")


@pytest.fixture
def written(tmp_path, english):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([item.record() for item in english]))
    return path


def test_a_file_gives_what_the_seed_gives_and_chooses_levels(written, words):
    whole = load({"name": "generated", "path": str(written), "n": None}, words, 0)
    assert [p for p in whole.prompts] == [p for p in load({"name": "generated", "n": None}, words, 0).prompts]
    some = load({"name": "generated", "path": str(written), "level": ["combined"]}, words, 0)
    assert {p.source["category"] for p in some.prompts} == {LEVELS["combined"]}
    assert sum(d.why == "of a level that was not asked for" for d in some.dropped) == 500


def test_a_record_without_its_partner_is_dropped_with_the_reason(written, words):
    records = json.loads(written.read_text())
    del records[0]["corrupt"], records[1]["lexicon"]
    wrong = [("prompt", None, "prompt is empty"), ("expected", 7, "expected is not text"), ("question", 7, "question is not text"),
             ("subject", [5], "subject is not [start, end] within the prompt's characters"), ("subject", 7, "subject is not a list"),
             ("subject", ["a", "b"], "subject is not [start, end] within the prompt's characters"), ("alternatives", "the A", "alternatives is not a list"),
             ("alternatives", [7], "alternatives is not text"),
             *(("subject", empty, "subject is not [start, end] within the prompt's characters") for empty in ([5, 5], [-1, 5])),
             ("subject", [0, 10 ** 6], "subject is not [start, end] within the prompt's characters"), ("category", ["Simple Recall"], "of a level that was not asked for")]
    for record, (key, value, _) in zip(records[2:], wrong):
        record[key] = value
    for record, (key, value, _) in zip(records[20:], wrong[:-1]):
        record["corrupt"][key] = value
    written.write_text(json.dumps(records))
    dropped = {d.prompt_id: d.why for d in load({"name": "generated", "path": str(written)}, words, 0).dropped}
    assert dropped[records[0]["question_id"]] == "it has no corrupted partner"
    assert dropped[records[1]["question_id"]] == "a key of a generated prompt is missing"
    assert [dropped[record["question_id"]] for record in records[2:2 + len(wrong)]] == [why for *_, why in wrong]
    assert [dropped[record["question_id"]] for record in records[20:19 + len(wrong)]] == [why for *_, why in wrong[:-1]]


def test_a_partner_whose_words_stand_elsewhere_than_the_file_says_makes_no_pair(written, words):
    records = json.loads(written.read_text())[:40]
    wrong = records[3]["corrupt"]
    wrong["subject"] = [0, 8]
    written.write_text(json.dumps(records))
    dataset = load({"name": "generated", "path": str(written)}, words, 0)
    assert {d.prompt_id: d.why for d in dataset.dropped}[records[3]["question_id"]] == "corrupt_spans: 'subject' is on other tokens than in clean"
    assert records[4]["question_id"] in {pair.clean.prompt_id for pair in dataset.pairs}


def test_a_file_with_an_id_twice_is_refused(written, words):
    records = json.loads(written.read_text())
    written.write_text(json.dumps([*records, records[5]]))
    with pytest.raises(UserError, match=f"question_id '{records[5]['question_id']}' is there more than once"):
        load({"name": "generated", "path": str(written)}, words, 0)


@pytest.mark.parametrize(("knobs", "message"), [
    ({"level": "two_hops"}, r"dataset.level=two_hops: there are all, simple_recall.*did you mean 'two_hop'\?"),
    ({"level": []}, "at least one, and each once"),
    *(({"level": asked}, "dataset.level=.*: there are all, simple_recall") for asked in (None, 5, [5], [["two_hop"]], {"two_hop": 1})),
    ({"level": ["combined", "combined"]}, "each once"),
    ({"level": "combined"}, r"dataset.level=combined: lexicon=world cannot say it .*there are simple_recall"),
    ({"lexicon": "latin"}, "dataset.lexicon=latin: there are auto, english, world"),
    ({"per_level": 0}, "dataset.per_level=0: give at least 1"),
    ({"level": "two_hop", "per_level": 201}, "dataset.per_level=201: .* gave 200 different prompts of two_hop; ask for no more"),
    ({"bos": True}, "dataset.bos=true: prompts of lexicon=world begin with the mark"),
    ({"path": "nowhere.json"}, "dataset.path=nowhere.json: no such file"),
])
def test_a_mistake_is_one_line(knobs, message):
    with pytest.raises(UserError, match=message) as error:
        load({"name": "generated", **knobs}, facts.tokenizer(), 0)
    assert "\n" not in str(error.value)
