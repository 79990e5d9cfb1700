"""The prompts of an assessment: where each is from, what category it is of, what is right, and how many are used."""
from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest

from mamba_mi.config import UserError
from mamba_mi.data import Dataset, Dropped, Prompt
from mamba_mi.data.encoding import encode, encode_targets, following
from mamba_mi.measure.scoring import Gold, normalise
from mamba_mi.report.evaluate_words import ALL

# the embedded world's relations and tasks, as categories
RELATIONS = {"born": "place of birth", "job": "profession", "instrument": "instrument", "company": "employer",
             "in_country": "country of a city", "capital": "capital", "language": "language of a country", "money": "currency",
             "birth_country": "country of birth (two facts)", "mother_tongue": "mother tongue (three facts)",
             "mqar4": "recall among 4 pairs", "mqar8": "recall among 8 pairs", "box": "what is in a box", "repeat": "a repeated list"}
WIKIDATA = {  # CounterFact's, whose own names differ from sentence to sentence
    "P101": "field of work", "P103": "mother tongue", "P106": "occupation", "P108": "employer", "P127": "owner", "P1303": "instrument",
    "P131": "located in (place)", "P136": "genre", "P138": "named after", "P140": "religion", "P1412": "language spoken",
    "P159": "headquarters", "P17": "country", "P176": "manufacturer", "P178": "developer", "P19": "place of birth", "P190": "twin city",
    "P20": "place of death", "P264": "record label", "P27": "citizenship", "P276": "location", "P30": "continent", "P36": "capital",
    "P364": "original language", "P37": "official language", "P39": "position held", "P407": "language of a work",
    "P413": "position played", "P449": "first broadcaster", "P463": "member of", "P495": "country of origin", "P641": "sport",
    "P740": "founded in (place)", "P937": "place of work"}


@dataclass(frozen=True)
class Candidates:
    """All prompts as one data set, by turns of each category; `kind` (custom or dataset) and `category` by prompt_id, and
    how many prompts of each (kind, category) `max_per_category` left out."""

    dataset: Dataset
    kind: Mapping[str, str]
    category: Mapping[str, str]
    left_out: Mapping[tuple[str, str], int]


def candidates(parts: Mapping[str, Dataset], most: int | None) -> Candidates:
    """At most so many prompts of each category of each part, the first in the part's own order."""
    groups: dict[tuple[str, str], list[Prompt]] = defaultdict(list)
    dropped: list[Dropped] = []
    for (kind, part), taken in zip(parts.items(), _taken(parts), strict=True):
        usable = {prompt.prompt_id for prompt in _prompts(part)}  # of a pair that is none a side may be
        dropped += [_named(each, taken) for each in part.dropped if each.prompt_id not in usable]
        for prompt in (_named(each, taken) for each in _prompts(part)):
            if Gold(frozenset(), texts(prompt)).empty:
                dropped.append(Dropped(prompt.prompt_id, prompt.text, "the right answer is nothing but punctuation and articles"))
            else:
                groups[kind, category(prompt, part.name)].append(prompt)
    if not groups:
        raise UserError(_nothing(parts, dropped))
    _check_apart(parts)
    if taken := next((kind for kind, name in groups if name == ALL), None):
        raise UserError(f"{taken} prompts: {ALL!r} is what the report calls them together; give that category another name")
    used = {key: group[:most] for key, group in groups.items()}
    turns = [prompt for prompt in chain.from_iterable(zip_longest(*used.values())) if prompt is not None]
    of = {prompt.prompt_id: key for key, group in used.items() for prompt in group}
    origin = {key: value for part in parts.values() for key, value in part.origin.items()}  # a file of the user's has none
    dataset = Dataset(" and ".join(part.name for part in parts.values()), tuple(turns), _fingerprint(parts), dropped=tuple(dropped),
                      origin=origin)
    return Candidates(dataset, {i: kind for i, (kind, _) in of.items()}, {i: name for i, (_, name) in of.items()},
                      {key: len(group) - len(used[key]) for key, group in groups.items()})


def category(prompt: Prompt, otherwise: str) -> str:
    """The record's category, else its relation, else the template's, else the data set's name."""
    number = prompt.source.get("relation_id")
    named = prompt.source.get("category") or WIKIDATA.get(number, number) or prompt.source.get("relation")
    if named:
        return str(named).replace("{}", "…")
    stem, _, number = prompt.template.rpartition("-")
    relation = stem if number.isdigit() else prompt.template
    return RELATIONS.get(relation, otherwise)


def texts(prompt: Prompt) -> tuple[str, ...]:
    """Every answer that is right; an alternative nothing is left of when it is compared is none."""
    others = prompt.source.get("alternatives")
    others = map(str, others) if isinstance(others, list | tuple) else ()
    return (prompt.target.strip(), *(each for each in others if normalise(each)))


def golds(prompts: Sequence[Prompt], tokenizer) -> dict[str, Gold]:
    """What is right for each prompt, by prompt_id."""
    firsts = {prompt.prompt_id: {prompt.target_id} for prompt in prompts}
    more = [(prompt, other) for prompt in prompts for other in texts(prompt)[1:]]
    written = [prompt.text for prompt, _ in more]
    encoded = dict(zip(dict.fromkeys(written), encode(list(dict.fromkeys(written)), tokenizer), strict=True))
    ids = encode_targets(written, [encoded[text] for text in written], [following(p.text, other) for p, other in more], tokenizer)
    for (prompt, _), tokens in zip(more, ids, strict=True):
        firsts[prompt.prompt_id].update(set(tokens[:1]) - {tokenizer.unk_token_id})
    return {prompt.prompt_id: Gold(frozenset(firsts[prompt.prompt_id]), texts(prompt)) for prompt in prompts}


def _prompts(part: Dataset) -> Iterable[Prompt]:
    return part.prompts or [pair.clean for pair in part.pairs]


def _taken(parts: Mapping[str, Dataset]) -> Iterable[frozenset[str]]:
    """For each part the ids that parts before it have."""
    seen: set[str] = set()
    for part in parts.values():
        yield frozenset(seen)
        seen |= {each.prompt_id for each in (*_prompts(part), *part.dropped)}


def _named(each, taken: frozenset[str]):
    """A prompt whose id is another's as well gets one of its own."""
    return replace(each, prompt_id=f"dataset {each.prompt_id}") if each.prompt_id in taken else each


def _check_apart(parts: Mapping[str, Dataset]) -> None:
    custom, dataset = ({prompt.text for prompt in _prompts(parts[kind])} if kind in parts else set() for kind in ("custom", "dataset"))
    if dataset and dataset <= custom:
        raise UserError(f"method.prompts=both: every prompt of dataset={parts['dataset'].name} is a custom prompt as well and would be "
                        "counted twice; give method.prompts=dataset or custom")


def _fingerprint(parts: Mapping[str, Dataset]) -> str:
    several = [f"{kind} {part.fingerprint}" for kind, part in parts.items()]
    return hashlib.sha256("\n".join(several).encode()).hexdigest()


def _nothing(parts: Mapping[str, Dataset], dropped: Sequence[Dropped]) -> str:
    reasons = Counter(each.why for each in dropped).most_common(3)
    return (f"method.prompts: none of {len(dropped)} {' and '.join(parts)} prompts can be used: "
            + "; ".join(f"{count} times {why}" for why, count in reasons))
