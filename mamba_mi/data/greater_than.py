"""Greater-than, in sentences of our own: something ends in a year after it began, and the model says the last two digits.

The task is Hanna et al.'s (2023). Every ending above the first year's is right: the target is one of them, drawn, and the
others are its `alternatives`. The corrupted side begins earlier; its answer is right there, and earlier than the clean one begins.
"""
from __future__ import annotations

from dataclasses import dataclass

from mamba_mi.config import UserError, stream
from mamba_mi.data import written
from mamba_mi.data.encoding import PLAIN, encode
from mamba_mi.data.facts.tasks import Draw
from mamba_mi.data.prompt import Dataset
from mamba_mi.data.questions import Question
from mamba_mi.data.written import Written, filled

TEMPLATES = (
    "The {noun} that opened in {begin} was closed for good in {century}",
    "Work on the {noun} began in {begin} and came to an end in {century}",
    "They founded the {noun} in the spring of {begin} and gave it up in the autumn of {century}",
    "First named in {begin}, the {noun} is last heard of in {century}",
)
NOUNS = "mill bridge school canal mine harbour theatre railway hospital market brewery garden tower chapel".split()
CENTURIES = range(11, 18)
DRAWN, LEAST = 1024, 40  # prompts; endings of a century that are single tokens


@dataclass(frozen=True)
class Knobs:
    """`only_correct` asks for the drawn ending as first choice, which few prompts meet: any later one is as right."""

    name: str = "greater_than"
    n: int | None = 200
    only_correct: bool = False
    bos: bool = False


def load(knobs: Knobs, tokenizer, seed: int) -> Dataset:
    """Pairs of years that the tokenizer writes as century and ending, a token each."""
    known = {century: found for century in CENTURIES if len(found := endings(century, tokenizer)) >= LEAST}
    if not known:
        raise UserError("dataset=greater_than needs a tokenizer that writes a year as two tokens, 17 and 32; this model's has no "
                        f"century with {LEAST} such years; give a model with GPT-NeoX's, such as mamba-130m")
    draw, found = Draw(stream(seed, "greater than")), {}
    for number in range(DRAWN):
        century = draw.one_of(list(known))
        record = _record(f"years-s{seed}-{number:04d}", century, known[century], draw)
        found.setdefault(record.clean, record)
    records = list(found.values())
    return written.dataset("greater_than", records, tokenizer, bos=knobs.bos, seed=seed)


def endings(century: int, tokenizer) -> list[int]:
    """The endings that are one token of their own after the century's."""
    encode([], tokenizer)
    years = [f" {century}{ending:02d}" for ending in range(100)]
    head, *rows = tokenizer([f" {century}", *years], **PLAIN)["input_ids"]
    found = {tuple(ids): ending for ending, ids in enumerate(rows)
             if len(ids) == len(head) + 1 and ids[:-1] == head and ids[-1] != tokenizer.unk_token_id}
    return sorted(found.values())


def _record(name: str, century: int, known: list[int], draw: Draw) -> Written:
    template, noun = draw.below(len(TEMPLATES)), draw.one_of(NOUNS)
    earlier, wrong = sorted(draw.some_of(range(1, len(known) - 2), 2))
    at = draw.between(wrong + 1, len(known) - 2)  # later than the wrong ending, and not the last one
    begin, late = known[at], known[at + 1:]
    target = draw.one_of(late)
    sides = [filled(TEMPLATES[template], noun=noun, begin=f"{century}{year:02d}", century=str(century)) for year in (begin, known[earlier])]
    spans = [{"year": where["begin"], "subject": (where["begin"][1] - 2, where["begin"][1]), "century": where["century"]} for _, where in sides]
    answers = [(target, late), (known[wrong], known[earlier + 1:])]
    sources = [Question(name, "", f"{answer:02d}", tuple(f"{other:02d}" for other in right if other != answer), source="greater_than",
                        category="greater than", rule="made for it", cluster=f"{noun} {century}", prompt=text).record()
               for (answer, right), (text, _) in zip(answers, sides)]
    return Written(name, sides[0][0], sides[1][0], f"{target:02d}", f"{known[wrong]:02d}", *spans, f"{noun} {century}",
                   f"greater than {template}", *sources)
