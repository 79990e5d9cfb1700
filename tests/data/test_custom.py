"""The user's own prompts in every format, what is wrong with a file in one line, and what is asked without one."""
import json
from collections import Counter

import pytest

from mamba_mi import models
from mamba_mi.config import UserError
from mamba_mi.data import custom
from mamba_mi.data.generation import LEVELS, MAKERS, generate, lexicon_of
from mamba_mi.data.questions import Question, asked

RECORDS = [
    {"id": "one", "prompt": "The anthem of Velmora is in", "expected": "Danish", "alternatives": ["the Danish", "no"], "category": "Simple Recall"},
    {"id": "two", "question": "Where does Zoë live?", "context": "Zoë lives in Bo.", "expected": "Bo", "category": "my own kind"},
    {"id": "three", "question": "How many?", "expected": "no"},
]
YAML = """\
- {id: one, prompt: The anthem of Velmora is in, expected: Danish, alternatives: [the Danish, no], category: Simple Recall}
- id: two
  question: Where does Zoë live?
  context: Zoë lives in Bo.
  expected: Bo
  category: my own kind
- {id: three, question: "How many?", expected: no, alternatives: null, category: ~}
"""
CSV = """\
id,prompt,question,context,expected,alternatives,category
one,The anthem of Velmora is in,,,Danish,the Danish | no,Simple Recall
two,,Where does Zoë live?,Zoë lives in Bo.,Bo,,my own kind
three,,How many?,,no,,
"""


def file(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("name", "content"), [
    ("mine.json", RECORDS), ("mine.yaml", YAML), ("mine.yml", YAML), ("mine.csv", CSV),
    ("mine.jsonl", "\n".join(json.dumps(record) for record in RECORDS))])
def test_every_format_gives_the_same_prompts(tmp_path, tokenizer, name, content):
    dataset = custom.of_file(file(tmp_path, name, content), tokenizer, 0)
    found = {prompt.prompt_id: prompt for prompt in dataset.prompts}
    assert not dataset.dropped and set(found) == {"custom-one", "custom-two", "custom-three"}
    one, two, three = (found[f"custom-{name}"] for name in ("one", "two", "three"))
    assert (one.text, one.target, one.source["alternatives"]) == ("The anthem of Velmora is in", " Danish", ["the Danish", "no"])
    assert two.text == asked("Where does Zoë live?", "Zoë lives in Bo.") and two.source["category"] == "my own kind"
    assert three.target == " no" and three.source["category"] == custom.NAMELESS and three.source["alternatives"] == []


@pytest.mark.parametrize("written", ["1990", "1.10", "true", "yes", "2020-01-01", "0x10", "1_000"])
def test_an_answer_in_yaml_is_what_is_written(tmp_path, tokenizer, written):
    [prompt] = custom.of_file(file(tmp_path, "a.yaml", f"- {{prompt: When, expected: {written}}}"), tokenizer, 0).prompts
    assert prompt.target.strip() == written


def test_a_byte_order_mark_is_no_part_of_a_json_file(tmp_path, tokenizer):
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "a", "expected": "b"}]', encoding="utf-8-sig")
    assert len(custom.of_file(str(path), tokenizer, 0).prompts) == 1


def test_numbers_in_json_are_answers_and_alternatives_of_a_text_are_divided(tmp_path, tokenizer):
    [prompt] = custom.of_file(file(tmp_path, "a.json", [{"prompt": "How many?", "expected": 7, "alternatives": "seven|VII | seven|", "cluster": 3}]),
                              tokenizer, 0).prompts
    assert prompt.cluster == "3" and prompt.target == " 7" and prompt.source["alternatives"] == ["seven", "VII"]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.json", [{"prompt": "a"}], "no column expected; it has prompt"),
    ("a.json", [{"expected": "a", "promt": "b"}], "no column prompt; it has expected, promt; did you mean 'promt'"),
    ("a.json", [], "the file holds no records"), ("a.yaml", "", "the file holds no records"), ("a.csv", "prompt,expected\n", "the file holds no"),
    ("a.json", "{", r"not a readable .json file \("), ("a.json", {"a": 1}, "not a list of records"),
    ("a.yaml", "- {prompt: [", r"not a readable .yaml file \(line 1: "), ("a.yaml", "prompt: a", "not a list of records"),
    ("a.yaml", "- {prompt: !!python/object:os.system a}", r"not a readable .yaml file \(line 1: could not determine a constructor"),
    ("a.csv", 'prompt,expected\n"a"b,c\n', "not a readable .csv file"), ("a.csv", "prompt,expected\na,b,c\n", "line 2: more than"),
    ("a.csv", "prompt;expected\na;b\n", "its fields are divided by ';'; save it with commas"), ("a.csv", "prompt\texpected\n", "divided by '.t'"),
    ("a.txt", "x", "cannot read .txt; give a file that ends in .parquet, .jsonl, .json, .yaml"),
    ("a.json", [{"prompt": "a", "expected": "b", "category": "Two Hop Reasoning"}],
     "record 1 has the category 'Two Hop Reasoning'; did you mean 'Two-Hop Reasoning'"),
    ("a.json", [{"prompt": "a", "expected": "b", "alternative": "c"}], "column 'alternative' would be ignored; did you mean 'alternatives'"),
    ("a.yaml", "- {prompt: a, ~: b}", "no column expected; it has prompt, None"),
    ("a.yaml", "- {prompt: a, expected: b, ids: c}", "column 'ids' would be ignored; did you mean 'id'"),
    ("a.json", [{"prompt": "a", "expected": "b", "id": 1}, {"prompt": "c", "expected": "b", "id": "1"}], "id '1' is there more than once"),
])
def test_a_wrong_file_is_one_line(tmp_path, tokenizer, name, content, message):
    with pytest.raises(UserError, match=f"^method.path=.*{message}") as error:
        custom.of_file(file(tmp_path, name, content), tokenizer, 0)
    assert "\n" not in str(error.value)


def test_a_path_that_leads_nowhere_is_one_line(tmp_path, tokenizer):
    file(tmp_path, "mine.json", RECORDS)
    with pytest.raises(UserError, match=r"^method.path=.*mine.jso: no such file; did you mean 'mine.json'\?$"):
        custom.of_file(str(tmp_path / "mine.jso"), tokenizer, 0)


def test_a_record_that_cannot_be_used_is_dropped_with_its_reason(tmp_path, tokenizer):
    good = {"prompt": "a", "expected": "b"}
    bad = [good, good, {"prompt": "b", "expected": ""}, {"prompt": "", "expected": "b"}, {"prompt": "c", "expected": ["b"]}, {"prompt": "d", "expected": True},
           {"prompt": "e", "expected": "b", "alternatives": {"x": 1}}, {"prompt": "f", "expected": "b", "alternatives": "[b"},
           {"prompt": "j", "context": "k", "expected": "b"}, {"prompt": "g\ud800", "expected": "b"}, {"prompt": "h", "expected": None}, {"question": ["x"], "prompt": "i", "expected": "b"}]
    dataset = custom.of_file(file(tmp_path, "a.json", bad), tokenizer, 0)
    assert Counter(each.why for each in dataset.dropped) == {
        "an earlier record has the same prompt": 1, "expected is empty": 2, "question is empty": 1, "expected is not text": 2,
        "alternatives are neither a text nor a list of texts": 1, "alternatives begin with [ and are no JSON list": 1,
        "a context beside a prompt that does not hold it (give question instead of prompt)": 1,
        "prompt is not valid Unicode (half of a surrogate pair)": 1, "question is not text": 1}
    assert [prompt.text for prompt in dataset.prompts] == ["a"]


def test_what_a_tokenizer_cannot_write_is_dropped(tmp_path):
    tokenizer = models.load("tiny").tokenizer
    records = [{"prompt": "the king of Avaria has a house in", "expected": "Nordenby"}, {"prompt": "the queen of Avaria", "expected": "Nordenby"},
               {"prompt": "the capital city of Avaria is", "expected": "Paris"}]
    dataset = custom.of_file(file(tmp_path, "a.json", records), tokenizer, 0)
    assert [each.why for each in dataset.dropped] == ["the prompt holds words outside the tokenizer's vocabulary",
                                                     "the answer holds words outside the tokenizer's vocabulary"]
    assert [prompt.text for prompt in dataset.prompts] == [records[0]["prompt"]]


def test_only_the_embedded_models_prompts_begin_with_bos_unless_asked(tmp_path, tokenizer):
    path = file(tmp_path, "a.json", [{"prompt": "the capital city of Avaria is", "expected": "Nordenby"}, {"prompt": "<kv> k1 v2 k1", "expected": "v2"}])
    ids = {bos: {p.text[0]: p.token_ids for p in custom.of_file(path, models.load("tiny").tokenizer, 0, bos).prompts} for bos in (None, True, False)}
    assert ids[None] == ids[True] and ids[None]["t"] == (2, *ids[False]["t"]) and ids[None]["<"] == ids[False]["<"] and ids[None]["<"][0] == 3
    begun = {bos: [p.token_ids[0] for p in custom.of_file(path, tokenizer, 0, bos).prompts] for bos in (None, True)}
    assert set(begun[True]) == {tokenizer.convert_tokens_to_ids("<|endoftext|>")} != set(begun[None])


def test_the_order_is_the_seed_s(tmp_path, tokenizer):
    path = file(tmp_path, "a.json", [{"prompt": f"number {i}", "expected": str(i)} for i in range(20)])
    orders = [[p.prompt_id for p in custom.of_file(path, tokenizer, seed).prompts] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])


def test_without_a_file_the_generator_s_levels_are_asked_in_the_words_of_the_model(tokenizer):
    assert {lexicon_of(models.load(name).tokenizer) for name in models.EMBEDDED} == {"world"}
    told = Counter(p.source["category"] for p in custom.shipped(models.load("tiny").tokenizer, 0).prompts)
    assert told == {LEVELS[level]: 100 for level in MAKERS["world"]}
    english, marked = custom.shipped(tokenizer, 0), custom.shipped(tokenizer, 0, bos=True)
    assert Counter(p.source["category"] for p in english.prompts) == dict.fromkeys(LEVELS.values(), 100)
    assert custom.shipped(tokenizer, 1).fingerprint != english.fingerprint == marked.fingerprint
    assert {p.token_ids[0] for p in marked.prompts} == {tokenizer.convert_tokens_to_ids("<|endoftext|>")}
    with pytest.raises(UserError, match="^method.bos=true: the prompts made for the embedded models bring their mark"):
        custom.shipped(models.load("tiny").tokenizer, 0, bos=True)


def test_the_file_of_classified_questions_is_one_of_prompts(tmp_path, tokenizer):
    question = Question("squad-1", "Who?", "Zoë", ("Zoe",), context="Zoë came.", category="Simple Recall", rule="short", cluster="article")
    whole = {"settings": {}, "sources": {}, "judged": [], "records": [question.record()]}
    [prompt] = custom.of_file(file(tmp_path, "classified_questions.json", whole), tokenizer, 0).prompts
    assert (prompt.prompt_id, prompt.text, prompt.target, prompt.cluster) == ("custom-squad-1", question.prompt, " Zoë", "article")
    assert (prompt.source["category"], prompt.source["alternatives"]) == ("Simple Recall", ["Zoe"])


@pytest.mark.parametrize("lexicon", MAKERS)
def test_a_file_that_the_generator_wrote_is_one_of_prompts(tmp_path, tokenizer, lexicon):
    made = generate(lexicon, ["simple_recall", "two_hop"], 4, seed=0)
    reads = models.load("tiny").tokenizer if lexicon == "world" else tokenizer
    dataset = custom.of_file(file(tmp_path, "made.json", [each.record() for each in made]), reads, 0)
    found = {p.prompt_id: p for p in dataset.prompts}
    assert not dataset.dropped and set(found) == {f"custom-{each.question.question_id}" for each in made}
    for each in made:
        asked_of = found[f"custom-{each.question.question_id}"]
        assert (asked_of.text, asked_of.target.strip()) == (each.question.prompt, each.question.expected)
        assert asked_of.source["category"] == each.question.category
