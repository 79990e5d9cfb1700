"""A question is the same after it was written down, and a prompt is its text, its answer and where they stand."""
import json
from dataclasses import replace

from mamba_mi.data.questions import Question, asked, characters, of_record, prompts

FOUND = Question("q-1", "Where does Zoë Müller live?", "Danish", ("the Danish",), "Zoë Müller is German. The guitar is in.", "squad",
                 1, 1, ("Zoë Müller is German.",), "Simple Recall", "one fact", "Zoë")


def test_a_question_with_facts_is_asked_before_and_after_them():
    assert FOUND.prompt == ("Question: Where does Zoë Müller live?\nFacts: Zoë Müller is German. The guitar is in.\n"
                            "Question: Where does Zoë Müller live?\nAnswer:")
    assert asked("Who?") == "Question: Who?\nAnswer:"


def test_a_record_is_the_question_again():
    assert of_record(json.loads(json.dumps(FOUND.record()))) == FOUND
    assert of_record(FOUND.record() | {"is_original": True}) == FOUND


def test_a_prompt_says_where_the_facts_and_the_last_question_are(tokenizer):
    [prompt], dropped = prompts([FOUND], tokenizer)
    assert not dropped and prompt.target == " Danish" and prompt.source == FOUND.record() and prompt.cluster == "Zoë"
    said = {name: tokenizer.decode(prompt.token_ids[a:b]).strip() for name, (a, b) in prompt.spans.items()}
    assert said == {"facts": FOUND.context, "question": FOUND.question}
    assert prompt.spans["question"][0] > prompt.spans["facts"][1]
    assert [*prompt.token_ids, *prompt.target_ids] == tokenizer(FOUND.prompt + " Danish")["input_ids"]
    [alone], _ = prompts([replace(FOUND, cluster="", category="")], tokenizer)
    assert (alone.cluster, alone.template, prompt.template) == ("q-1", "squad", "Simple Recall")


def test_facts_that_the_question_repeats_are_those_after_it():
    each = Question("q", "Where does Oru live?", "Zed", context="Oru")
    where = {name: (each.prompt[:start], each.prompt[start:end]) for name, (start, end) in characters(each).items()}
    assert where == {"facts": ("Question: Where does Oru live?\nFacts: ", "Oru"),
                     "question": ("Question: Where does Oru live?\nFacts: Oru\nQuestion: ", "Where does Oru live?")}
    own = Question("q", "Who?", "Zed", context="Oru", prompt="Oru it is. Who?")
    assert characters(own) == {"facts": (0, 3), "question": (11, 15)} and characters(Question("q", "Who?", "Zed", prompt="Say:")) == {}
