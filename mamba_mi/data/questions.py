"""Questions with their answers: what the question-answering sets, the generator and a user's own file all become.

A question is text and knows no tokenizer; `prompts` makes a model's prompts of it, which keep the record as their `source`.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from mamba_mi.data.encoding import bos_ids, check_known, encode, encode_targets, following, prompt
from mamba_mi.data.prompt import Dropped, Prompt
from mamba_mi.data.reading import Unusable, sift
from mamba_mi.data.spans import token_span

CATEGORIES = ("Simple Recall", "Two-Hop Reasoning", "Three-Hop Reasoning", "Long Context", "Combined Reasoning + Memory",
              "Stress Test", "Query Dataset Tasks")


@dataclass(frozen=True)
class Question:
    """One question. `alternatives` are other answers that are as right as `expected`; `prompt` is what a model reads, made
    by `asked` where nothing else is given; `cluster` is what the statistics resample together (an article, a template).

    `category` is one of CATEGORIES and `rule` the name of the rule that put it there; both are empty before `classify`.
    `kind` is what the data set calls the question or its answer: bridge, comparison, number, date.
    """

    question_id: str
    question: str
    expected: str
    alternatives: tuple[str, ...] = ()
    context: str = ""
    source: str = ""
    num_facts: int | None = None
    num_hops: int | None = None
    supporting_facts: tuple[str, ...] = ()
    category: str = ""
    rule: str = ""
    cluster: str = ""
    prompt: str = ""
    kind: str = ""

    def __post_init__(self):
        if not self.prompt:
            object.__setattr__(self, "prompt", asked(self.question, self.context))

    def record(self) -> dict:
        """As it is written down, in the order of the fields."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def asked(question: str, context: str = "") -> str:
    """Question, facts and the question again, for a model that reads once from left to right knows first what to keep."""
    told = f"Question: {question}\nFacts: {context}\n" if context else ""
    return f"{told}Question: {question}\nAnswer:"


def bare(questions: Sequence[Question]) -> tuple[list[Question], list[Dropped]]:
    """The questions without their facts; of those that are the same then the first."""
    seen: set[str] = set()

    def make(each: Question) -> Question:
        if each.question in seen:
            raise Unusable("without the facts an earlier record has the same prompt")
        seen.add(each.question)
        return replace(each, prompt=asked(each.question))

    return sift([each.question_id for each in questions], [each.question for each in questions], questions, make)


def of_record(record: Mapping) -> Question:
    """The question that `Question.record` wrote; keys that it does not have are passed over."""
    known = {each.name for each in fields(Question)}
    return Question(**{key: tuple(value) if isinstance(value, list) else value for key, value in record.items() if key in known})


def prompts(questions: Sequence[Question], tokenizer, *, bos: bool = False) -> tuple[list[Prompt], list[Dropped]]:
    """Each question as a prompt of this tokenizer, its spans `question` (the last time it is asked) and `facts`; and those that
    it cannot write, with the reason."""
    texts = [each.prompt for each in questions]
    encoded, before = encode(texts, tokenizer), bos_ids(tokenizer, bos)
    targets = [following(each.prompt, each.expected) for each in questions]

    def make(item) -> Prompt:
        each, tokens, target, target_ids = item
        check_known(tokens.ids, tokenizer, "the prompt")
        check_known(target_ids, tokenizer, "the answer")
        spans = {name: token_span(tokens.offsets, *where) for name, where in characters(each).items()}
        return prompt(each.question_id, each.prompt, tokens.ids, target, target_ids, spans, bos=before,
                      cluster=each.cluster or each.question_id, template=each.category or each.source, source=each.record())

    items = zip(questions, encoded, targets, encode_targets(texts, encoded, targets, tokenizer), strict=True)
    return sift([each.question_id for each in questions], texts, items, make)


def characters(each: Question) -> dict[str, tuple[int, int]]:
    """Where the facts and the last question stand in the prompt, where they do."""
    head = f"Question: {each.question}\nFacts: "  # whose question may hold all that the facts say
    begin = len(head) if each.prompt.startswith(head) else 0
    found = {"facts": (each.prompt.find(each.context, begin), len(each.context)),
             "question": (each.prompt.rfind(each.question), len(each.question))}
    return {name: (start, start + length) for name, (start, length) in found.items() if length and start >= 0}
