import json

import pytest

from mamba_mi import data
from mamba_mi.config import UserError
from mamba_mi.data import facts


def test_the_data_sets_are_the_modules_that_have_knobs_and_load():
    assert {"counterfact", "pairs"} <= set(data.names())
    assert not {"prompt", "pairing", "spans", "reading", "encoding"} & set(data.names())


def test_a_new_file_is_a_new_data_set(tmp_path, monkeypatch):
    (tmp_path / "one_prompt_made_here.py").write_text("""
from dataclasses import dataclass
from mamba_mi.data.prompt import Dataset, Prompt

@dataclass(frozen=True)
class Knobs:
    name: str = ""
    text: str = "a"

def load(knobs, tokenizer, seed):
    return Dataset(knobs.name, (Prompt("p", knobs.text, (1,), "b", 2),), f"{seed}")
""")
    monkeypatch.setattr(data, "__path__", [*data.__path__, str(tmp_path)])
    made = data.load({"name": "one_prompt_made_here", "text": "hello"}, None, 7)
    assert (made.prompts[0].text, made.fingerprint) == ("hello", "7")
    assert "one_prompt_made_here" in data.names()


def test_prompts_longer_than_the_model_takes_are_dropped_and_counted(tmp_path):
    tokenizer, path = facts.tokenizer(), tmp_path / "mine.jsonl"
    rows = [{"clean": f"Mira works every day as {'a ' * n}".strip(), "corrupt": f"Petra works every day as {'a ' * n}".strip(),
             "answer": answer, "wrong_answer": wrong, "id": f"{n}"} for n, answer, wrong in (
                (1, "cook", "farmer"), (4, "cook", "farmer"), (5, "cook", "farmer"), (3, "cook cook cook", "farmer"), (2, "cook", "farmer cook cook cook"))]
    path.write_text("\n".join(map(json.dumps, rows)))
    knobs = {"name": "pairs", "path": str(path)}
    longest = len(tokenizer.encode(rows[1]["clean"]))
    made = data.load(knobs, tokenizer, 0, longest)
    assert {p.clean.prompt_id for p in made.pairs} == {p.prompt_id for p in made.prompts} == {"1", "4"}
    why = f"longer than the {longest} tokens this model takes"
    assert {(d.prompt_id, d.why) for d in made.dropped} == {("5", why), ("3", why), ("2", why)}  # two with an answer's tokens
    assert data.load(knobs, tokenizer, 0).dropped == ()
    path.write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "id": "none", "answer": ""}])))
    assert {(d.prompt_id, d.why) for d in data.load(knobs, tokenizer, 0, longest).dropped} == {*((n, why) for n in "532"), ("none", "answer is empty")}
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="dataset=pairs: none of 5 records can be used: 5 times longer than the 3 tokens"):
        data.load(knobs, tokenizer, 0, 3)


def test_the_knob_longest_is_a_limit_beside_the_models_and_the_smaller_counts(tmp_path):
    path, tokenizer = tmp_path / "mine.json", facts.tokenizer()
    path.write_text(json.dumps([{"question": prompt, "prompt": prompt, "expected": answer, "category": "Simple Recall", "question_id": prompt}
                                for prompt, answer in (("Mira works every day as a", "cook"), ("Mira works every day as a a", "cook"),
                                                       ("Petra works every day as a", "cook cook"))]))
    knobs, own = {"name": "classified", "path": str(path)}, {"longest": 6}
    for more, model, kept, why in (({}, None, 3, None), (own, None, 1, "of dataset.longest"), (own, 7, 1, "of dataset.longest"),
                                   ({"longest": 7}, 6, 1, "this model takes"), ({"longest": None}, 6, 1, "this model takes"), ({"bos": True}, 7, 1, "this model takes")):
        made = data.load(knobs | more, tokenizer, 0, model)
        assert len(made.prompts) == kept and {d.why for d in made.dropped} == ({f"longer than the {7 if 'bos' in more else 6} tokens {why}"} if why else set())
    with pytest.raises(UserError, match="^dataset.longest=0: give at least 1, or null for any length$"):
        data.load(knobs | {"longest": 0}, tokenizer, 0)


@pytest.mark.parametrize(("knobs", "message"), [
    ({"name": "counterfacts"}, r"no such data set; there are .*pairs.*; did you mean 'counterfact'\?"),
    ({"name": "prompt"}, "dataset.name=prompt: no such data set"),
    ({"name": None}, "dataset.name=None: no such data set"),
    ({}, "dataset.name=None: no such data set"),
    ({"name": "counterfact", "pth": "x"}, r"dataset.pth: no such key; .*did you mean 'path'\?"),
    ({"name": "counterfact", "bos": "perhaps"}, "dataset.bos"),
    ({"name": "counterfact", "n": 0}, "dataset.n=0: give at least 1"),
])
def test_a_mistake_is_one_line(knobs, message):
    with pytest.raises(UserError, match=message) as error:
        data.load(knobs, None, 0)
    assert "\n" not in str(error.value)


def test_running_text_is_told_from_prompts():
    assert [name for name in data.names() if data.is_corpus(name)] == ["pile"]
