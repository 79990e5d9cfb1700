"""Indirect object identification, in sentences of our own: two people are named, one again, and the other gets something.

The task is Wang et al.'s (2023). IO is the one who is named once, S1 and S2 are the two times of the other; the corrupted
side names IO where S2 stands, so that S1 gets it. In form ABBA IO comes first, in BABA S1.
"""
from __future__ import annotations

from dataclasses import dataclass

from mamba_mi.config import UserError, did_you_mean, stream
from mamba_mi.data import written
from mamba_mi.data.facts.tasks import Draw
from mamba_mi.data.generation.words import NAMES
from mamba_mi.data.prompt import Dataset
from mamba_mi.data.questions import Question
from mamba_mi.data.single_tokens import enough, single
from mamba_mi.data.written import Written, filled

TEMPLATES = (
    "In the {place}, {one} ran into {two}. A little later {S2} passed the {object} to",
    "Last week {one} and {two} cleaned the {place}. When all was done, {S2} handed the {object} to",
    "In the {place} sat {one} beside {two}. Without a word {S2} offered the {object} to",
    "It was late when {one} found {two} in the {place}. In the end {S2} lent the {object} to",
    "Both {one} and {two} like the {place}. After lunch {S2} sold the {object} to",
    "The {place} was empty but for {one} and {two}. With a smile {S2} showed the {object} to",
)
PLACES = "kitchen garden library museum station office harbour market".split()
OBJECTS = "key book coin ring cup map hat letter".split()
FORMS = {"ABBA": ("IO", "S1"), "BABA": ("S1", "IO")}  # who is named first, who second
DRAWN, LEAST = 1024, 8  # prompts; names


@dataclass(frozen=True)
class Knobs:
    """`form` is both, ABBA or BABA."""

    name: str = "ioi"
    form: str = "both"
    n: int | None = 200
    only_correct: bool = True
    bos: bool = False


def load(knobs: Knobs, tokenizer, seed: int) -> Dataset:
    """Pairs with names that are single tokens, half of them in each form."""
    known = ("both", *FORMS)
    if knobs.form not in known:
        raise UserError(f"dataset.form={knobs.form}: there are {', '.join(known)}{did_you_mean(knobs.form, known)}")
    names = enough(single(NAMES, tokenizer), LEAST, tokenizer, "dataset=ioi")
    forms = list(FORMS) if knobs.form == "both" else [knobs.form]
    draw, found = Draw(stream(seed, "ioi")), {}
    for number in range(DRAWN):
        record = _record(f"ioi-{{}}-s{seed}-{number:04d}", forms[number % len(forms)], draw, names)
        found.setdefault(record.clean, record)
    records = list(found.values())
    return written.dataset("ioi", records, tokenizer, bos=knobs.bos, seed=seed)


def _record(name: str, form: str, draw: Draw, names: list[str]) -> Written:
    number = draw.below(len(TEMPLATES))
    io, subject = draw.some_of(names, 2)
    first, second = FORMS[form]
    role = {"IO": io, "S1": subject}
    told = {"one": role[first], "two": role[second], "place": draw.one_of(PLACES), "object": draw.one_of(OBJECTS)}
    (clean, at), (corrupt, corrupt_at) = (filled(TEMPLATES[number], S2=again, **told) for again in (subject, io))
    spans, corrupt_spans = ({first: where["one"], second: where["two"], "S2": where["S2"], "subject": where["S2"]}
                            for where in (at, corrupt_at))
    name, cluster = name.format(form), f"{io} {subject}"
    sources = [Question(name, "", answer, source="ioi", category=f"indirect object, {form}", rule="made for it", cluster=cluster,
                        prompt=text).record() for answer, text in ((io, clean), (subject, corrupt))]
    return Written(name, clean, corrupt, f" {io}", f" {subject}", spans, corrupt_spans, cluster, f"ioi {form} {number}", *sources)
