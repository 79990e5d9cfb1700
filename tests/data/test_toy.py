"""Toy tasks, indirect objects and years: answers worked out again from the text, words that are single tokens, fair pairs."""
from collections import Counter

import pytest
from tokenizers import normalizers

from mamba_mi.config import UserError
from mamba_mi.data import batches, facts, load, toy
from mamba_mi.data.generation.words import NAMES
from mamba_mi.data.greater_than import endings
from mamba_mi.data.single_tokens import drawn, enough
from mamba_mi.data.single_tokens import single as one_token
from mamba_mi.data.toy import TASKS
from mamba_mi.experiments import Setting, knobs_of
from mamba_mi.experiments.patching import Patching
from mamba_mi.measure.selection import select
from tests.oracles import prompts as solver
from tests.small import small

from .conftest import train_bpe

SENSELESS = ("river mountain window yellow summer silver garden winter market bridge castle forest island letter number planet rocket "
             "school ticket valley village wagon walnut whisper wonder castle candle butter").split()
CORPUS = [*(f"x {word} y" for word in (*SENSELESS, *NAMES)), "( ) [ ] { } ( [ { } ] ) .", *["in 17 to 16"] * 50, *(f"{y:02d}" for y in range(1, 100))] * 9


@pytest.fixture(scope="module")
def words():
    """A byte-level tokenizer with those words as one token each, brackets and the endings of years."""
    return train_bpe(True, 900, CORPUS)


@pytest.fixture(scope="module", params=["small", "world", "neox"])
def any_tokenizer(request, words):
    if request.param == "neox":
        return request.getfixturevalue("neox")
    return {"small": words, "world": facts.tokenizer()}[request.param]


@pytest.fixture(scope="module", params=["small", "neox"])
def reader(request, words):
    return words if request.param == "small" else request.getfixturevalue("neox")


def fair(dataset, tokenizer):
    """One layout, the subject exactly what differs, the wrong answer the partner's own."""
    assert len(dataset.pairs) == len(dataset.prompts) >= 150
    for pair in dataset.pairs:
        clean, corrupt = pair.clean, pair.corrupt
        assert clean.layout == corrupt.layout and clean.target_id != corrupt.target_id
        assert len(clean.target_ids) == len(corrupt.target_ids) == 1
        differ = [i for i, (a, b) in enumerate(zip(clean.token_ids, corrupt.token_ids)) if a != b]
        assert (differ[0], differ[-1] + 1) == clean.spans["subject"] and len(differ) == 1
        assert tokenizer(clean.text)["input_ids"] == list(clean.token_ids)
        assert clean.source["expected"] == clean.target.strip() and clean.source["prompt"] == clean.text
    assert {prompt.wrong_id for prompt in dataset.prompts} == {pair.corrupt.target_id for pair in dataset.pairs}
    assert batches(dataset.pairs, 16)


@pytest.mark.parametrize("task", TASKS)
def test_a_toy_task_is_the_solvers_on_both_sides(any_tokenizer, task):
    if task == "brackets" and any_tokenizer.get_vocab() == facts.vocabulary():
        with pytest.raises(UserError, match="dataset.task=brackets needs 2 different words that are single tokens.* has 0"):
            load({"name": "toy", "task": task}, any_tokenizer, 0)
        return
    dataset = load({"name": "toy", "task": task, "n": None}, any_tokenizer, 0)
    fair(dataset, any_tokenizer)
    for pair in dataset.pairs:
        for side in (pair.clean, pair.corrupt):
            assert solver.toy(task, side.text) == side.target.strip()
    if task == "delayed_match":
        first = [p.text.split()[-3] == p.target.strip() for p in dataset.prompts]
        assert 0.3 < sum(first) / len(first) < 0.7  # the place says nothing
    if task == "counting":
        assert 0.3 < sum(p.target == " ." for p in dataset.prompts) / len(dataset.prompts) < 0.7


def test_lengths_and_pairs_are_those_asked_for(words):
    for task, size in (("copying", 7), ("delayed_match", 7), ("counting", 7)):
        for prompt in load({"name": "toy", "task": task, "length": size}, words, 0).prompts:
            first, end = prompt.spans["delay" if task == "delayed_match" else "list"]
            assert end - first == size
    for prompt in load({"name": "toy", "task": "mqar", "pairs": 4}, words, 0).prompts:
        first, end = prompt.spans["pairs"]
        key, value = prompt.spans["key"], prompt.spans["subject"]
        told, asked = (part.split() for part in prompt.text.split(" ."))
        assert len(asked) == 3 and asked[:2] in [told[i:i + 2] for i in range(0, 8, 2)] and asked[0] != asked[2]
        assert end - first == 8 and value[0] == key[1] and prompt.token_ids[key[0]] == prompt.token_ids[-1]


def test_brackets_of_few_kinds_are_drawn_by_the_seed_and_none_twice(words):
    short, other = ([p.text for p in load({"name": "toy", "task": "brackets", "length": length, "n": None}, words, 0).prompts] for length in (3, 12))
    assert len(set(short)) == len(short) < 256 and all(len(text.split()) == 3 for text in short)
    assert set(other) != {p.text for p in load({"name": "toy", "task": "brackets", "n": None}, words, 1).prompts}


def test_a_span_is_of_its_words_alone():
    assert toy._characters(["ab", "c", "de"], 1, 3) == (4, 8) and " ab c de"[4:8] == "c de"


def test_every_word_of_a_toy_task_is_one_token(words):
    for prompt in load({"name": "toy", "task": ["mqar", "copying"]}, words, 0).prompts:
        assert len(prompt.text.split()) == len(prompt.token_ids) - ("." not in words.get_vocab() and 1)


def test_all_leaves_out_by_name_what_the_tokenizer_cannot_write():
    dataset = load({"name": "toy"}, facts.tokenizer(), 0)
    assert [d.why for d in dataset.dropped] == ["brackets: the tokenizer has not two kinds of them as single tokens"]
    assert {p.source["category"] for p in dataset.prompts} == set(TASKS) - {"brackets"}


@pytest.mark.parametrize("name", ["toy", "ioi", "greater_than"])
def test_the_seed_decides_and_nothing_else(words, name):
    one, again, other = (load({"name": name}, words, seed) for seed in (0, 0, 1))
    assert one == again and one.fingerprint != other.fingerprint
    assert len({p.prompt_id for p in one.prompts}) == len({p.text for p in one.prompts}) == len(one.prompts)
    assert not {p.prompt_id for p in one.prompts} & {p.prompt_id for p in other.prompts}


def test_the_receiver_is_the_solvers_on_both_sides_and_the_spans_hold_the_names(reader):
    dataset = load({"name": "ioi", "n": None}, reader, 0)
    fair(dataset, reader)
    forms = Counter()
    for pair in dataset.pairs:
        for side in (pair.clean, pair.corrupt):
            assert solver.indirect_object(side.text) == side.target.strip()
        clean = pair.clean
        name = {span: reader.decode(clean.token_ids[slice(*clean.spans[span])]).strip() for span in ("IO", "S1", "S2", "subject")}
        assert name["IO"] == clean.target.strip() and name["S1"] == name["S2"] == name["subject"] == pair.corrupt.target.strip()
        form = "ABBA" if clean.spans["IO"] < clean.spans["S1"] < clean.spans["S2"] else "BABA"
        assert form in clean.template and clean.cluster == f"{name['IO']} {name['S1']}"
        forms[form] += 1
    assert set(forms) == {"ABBA", "BABA"} and max(forms.values()) < 0.55 * forms.total()
    assert all("BABA" in p.template for p in load({"name": "ioi", "form": "BABA"}, reader, 0).prompts)


def test_an_ending_is_right_where_it_is_later_and_the_partners_is_not(reader):
    dataset = load({"name": "greater_than", "n": None}, reader, 0)
    fair(dataset, reader)
    for pair in dataset.pairs:
        clean, corrupt = (solver.later_endings(side.text) for side in (pair.clean, pair.corrupt))
        assert pair.clean.target in clean and pair.corrupt.target in corrupt - clean
        assert int(pair.corrupt.target) < int(min(clean)) - 1  # not the year itself either
        for side, right in ((pair.clean, clean), (pair.corrupt, corrupt)):
            told = {side.source["expected"], *side.source["alternatives"]}
            known = {f"{ending:02d}" for ending in endings(int(side.text[-2:]), reader)}
            assert told == right & known and side.source["expected"] not in side.source["alternatives"]
            noun, century = side.cluster.split()
            assert f" {noun} " in side.text and side.text.endswith(century)
        first, end = pair.clean.spans["year"]
        assert pair.clean.spans["subject"] == (end - 1, end) and end - first >= 2


def test_single_tokens_are_those_of_the_tokenizer(reader):
    found = one_token(["river", "qqzzxqj", "garden"], reader)
    assert found == ["river", "garden"] and all(len(reader(f" {word}")["input_ids"]) == 1 for word in found)
    assert one_token(["Anna", "Paul"], facts.tokenizer()) == []
    few, *more = (drawn(3, 5, reader, seed, "a game") for seed in (0, 0, 1))
    assert len(few) == 5 and few == more[0] != more[1] and enough(few, 5, reader, "a game") == few
    with pytest.raises(UserError, match="a game needs 6 different words"):
        enough(few, 6, reader, "a game")
    folding = train_bpe(True, 40, ["a river"] * 9)
    folding.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert one_token(["River", "river"], folding) == ["River"]  # one token, two words


@pytest.mark.parametrize("name", ["ioi", "greater_than"])
def test_patching_the_subject_at_the_embedding_makes_one_side_the_other(words, name):
    lm = small("mamba2", vocab_size=len(words))
    lm.tokenizer = words
    found = select(lm, load({"name": name}, words, 0), n=8, only_correct=False, pairs=True, seed=0, size=8)
    experiment = Patching(knobs_of(Patching, {"name": "patching", "sites": ["resid"], "roles": ["subject", "S2" if name == "ioi" else "century"]}),
                          lm, Setting(0, 1 << 30))
    rows = [row for batch in batches(found.items, 8) for row in experiment.step(batch).to_pylist() if row["layer"] == 0]
    asked = [row for row in rows if row["metric"] == "logit_difference" and row["role"] in ("subject", "S2")]
    assert len(asked) >= 16 and all(row["value"] == pytest.approx(row["full"], abs=1e-9) for row in asked)
    assert any(abs(row["full"] - row["baseline"]) > 1e-3 for row in asked)
    assert all(row["value"] == row["baseline"] for row in rows if row["role"] == "century")


@pytest.mark.parametrize(("knobs", "message"), [
    ({"name": "toy", "task": "mqarr"}, r"dataset.task=mqarr: there are all, .*did you mean 'mqar'\?"),
    ({"name": "toy", "task": []}, "at least one, and each once"), ({"name": "toy", "task": ["mqar", "mqar"]}, "at least one, and each once"),
    *(({"name": "toy", "task": asked}, "dataset.task=.*: there are all, copying") for asked in (None, 5, [5], [["mqar"]], {"mqar": 1})),
    ({"name": "toy", "length": 2}, "dataset.length=2: give at least 3"),
    ({"name": "toy", "pairs": 1}, "dataset.pairs=1: give at least 2"),
    ({"name": "toy", "task": "copying", "length": 500}, "dataset.task=copying needs 502 different words .* or a smaller dataset.length"),
    ({"name": "ioi"}, "dataset=ioi needs 8 different words that are single tokens"),
    ({"name": "ioi", "form": "abba"}, "dataset.form=abba: there are both, ABBA, BABA"),
    ({"name": "greater_than"}, "writes a year as two tokens"),
])
def test_a_mistake_or_a_vocabulary_too_small_is_one_line(knobs, message):
    with pytest.raises(UserError, match=message) as error:
        load(knobs, facts.tokenizer(), 0)
    assert "\n" not in str(error.value)


def test_a_model_without_a_tokenizer_is_told_so():
    for name in ("toy", "ioi", "greater_than", "generated"):
        with pytest.raises(UserError, match="came without a tokenizer"):
            load({"name": name}, None, 0)
