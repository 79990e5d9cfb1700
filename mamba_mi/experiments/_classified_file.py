"""classified_questions.json: made once, reused as it is, and refused where it was made with other settings.

It holds the settings, what each set was read from, every record's judgement, and the questions kept; questions with all
columns but the judgements are in the .parquet beside it as well. It names no path: equal sources give equal bytes.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from mamba_mi.config import UserError
from mamba_mi.data import classified, hub, local, qa
from mamba_mi.data.classify import RULES, classify, fill
from mamba_mi.data.questions import Question
from mamba_mi.data.reading import Unusable
from mamba_mi.runs import files
from mamba_mi.runs.store import parquet_bytes

SCHEMA_VERSION = 1


class Classified(NamedTuple):
    """A set's questions with a category, the judgement on each of its records, and what they were read from."""

    questions: list[Question]
    judged: list[dict]
    source: dict


def settings(knobs, seed: int) -> dict:
    """What decides the file's contents, besides the sources."""
    return {"schema_version": SCHEMA_VERSION, "seed": seed, "sets": list(knobs.sets), "samples_per_dataset": knobs.samples_per_dataset,
            "target_per_category": knobs.target_per_category, "rules": [[rule.name, rule.when, rule.category] for rule in RULES]}


def kept(knobs, seed: int) -> dict | None:
    """The file's contents, None where there is none; a UserError where it was made with other settings or from other sources."""
    path = Path(knobs.file).expanduser()
    if not path.is_file():
        return None
    found = classified.read(knobs.file, "method.file")
    if found is None:
        raise UserError(f"method.file={knobs.file}: a file that experiment=classify did not make; "
                        "force=true overwrites it, or give another place")
    then, now = found["settings"], settings(knobs, seed)
    differ = [_differs(key, then.get(key), now[key]) for key in now if then.get(key) != now[key]]
    differ = differ or [f"{name} was read from {_said(before)} and is {_said(after)} now" for name in knobs.sets
                        if (before := _identity(found["sources"][name])) != (after := _now(knobs, name, found["sources"][name]))]
    if differ:
        raise UserError(f"{knobs.file} was made with other settings: {'; '.join(differ)}. Go back to those, give another method.file=, "
                        "or make it again with force=true")
    return found


def local_sets(knobs, seed: int) -> dict[str, Classified]:
    """The sets that are read from a file, classified; a UserError for a file that cannot be used, and where no set has more."""
    found = {name: _classified(knobs, name, seed) for name in knobs.sets if knobs.paths.get(name)}
    if len(found) == len(knobs.sets):
        _refuse_none(found)
    return found


def make(knobs, seed: int, known: Mapping[str, Classified]) -> dict:
    """Read the sets that are not `known`, classify their records, keep up to the target of each category, and write all of it."""
    found = {name: known[name] if name in known else _classified(knobs, name, seed) for name in knobs.sets}
    _refuse_none(found)
    chosen = fill({name: each.questions for name, each in found.items()}, knobs.target_per_category, seed)
    whole = {"settings": settings(knobs, seed), "sources": {name: each.source for name, each in found.items()},
             "judged": [each for of in found.values() for each in of.judged], "records": [each.record() for each in chosen]}
    path = Path(knobs.file).expanduser()
    write_parquet(path, whole)
    files.write_json(path, whole)  # the last: where it is, the other is
    return whole


def _refuse_none(found: Mapping[str, Classified]) -> None:
    if not any(each.questions for each in found.values()):
        raise UserError(f"experiment=classify: none of {sum(len(each.judged) for each in found.values())} records of {', '.join(found)} "
                        "is of a category")


def described(knobs, name: str, source: Mapping) -> dict:
    """What a manifest says of a set's source: the hub's name or the file, split, commit and revision, fingerprint, records."""
    path, split = knobs.paths.get(name), _module(name).Knobs().split
    where = {"path": path, "split": split if Path(path).expanduser().is_dir() else None} if path else source["origin"]
    return {**where, "fingerprint": source["fingerprint"], "records": source["records"]}


def write_parquet(path: Path, whole: Mapping) -> None:
    """The questions kept, a column a field."""
    files.write_bytes(path.with_suffix(".parquet"), parquet_bytes(pa.Table.from_pylist(whole["records"], schema=COLUMNS)))


COLUMNS = pa.schema([(name, {"num_facts": pa.int64(), "num_hops": pa.int64(), "alternatives": pa.list_(pa.string()),
                             "supporting_facts": pa.list_(pa.string())}.get(name, pa.string())) for name in Question.__dataclass_fields__])


def _classified(knobs, name: str, seed: int) -> Classified:
    module, revision = _module(name), knobs.revisions.get(name)
    asked = module.Knobs(path=knobs.paths.get(name), samples=knobs.samples_per_dataset, revision=revision)
    found = qa.questions(module.SET, asked, seed, f"method.paths.{name}")
    questions, judged = [], [_judgement(each.prompt_id, name, "", why=each.why) for each in found.dropped]
    for each in found.questions:
        try:
            questions.append(classify(each))
            judged.append(_judgement(each.question_id, name, each.cluster, questions[-1].category, questions[-1].rule))
        except Unusable as why:
            judged.append(_judgement(each.question_id, name, each.cluster, why=str(why)))
    origin = {**found.origin, "revision": revision} if found.origin else {}
    source = {"fingerprint": found.fingerprint, "origin": origin, "records": len(judged)}
    return Classified(questions, sorted(judged, key=lambda each: each["question_id"]), source)


def _judgement(question_id: str, source: str, cluster: str, category: str = "", rule: str = "", why: str = "") -> dict:
    return {"question_id": question_id, "source": source, "cluster": cluster, "category": category, "rule": rule, "why": why}


def _module(name: str):
    return import_module(f"mamba_mi.data.{name}")


def _identity(source: Mapping) -> dict | str:
    """What can be told of a source without reading it: a file's fingerprint, or the hub's name and the revision asked for; the
    commit is not looked up again."""
    origin = {key: value for key, value in source["origin"].items() if key != "commit"}
    return {"revision": None, **origin} if origin else source["fingerprint"]


def _now(knobs, name: str, before: Mapping) -> dict | str:
    defaults, path, revision = _module(name).Knobs(), knobs.paths.get(name), knobs.revisions.get(name)
    where = {"config": defaults.config, "split": defaults.split}
    if path:
        key = f"method.paths.{name}"
        return local.identity(path, **where, key=key, otherwise=hub.download(defaults.hub, defaults.config, key))
    if revision is not None and revision == before["origin"].get("commit"):
        revision = before["origin"].get("revision")  # whoever now asks for the commit that was read has it
    return {"hub": defaults.hub, **where, "revision": revision}


def _differs(key: str, then: object, now: object) -> str:
    return "the rules were others" if key == "rules" else f"{key} was {_value(then)} and is {_value(now)}"


def _value(value: object) -> str:
    if value is None:
        return "null"
    return f"[{', '.join(map(str, value))}]" if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _said(source: Mapping | str) -> str:
    return f"a file of sha256 {source[:12]}" if isinstance(source, str) else f"the hub's {source['hub']} at {_revision(source)}"


def _revision(source: Mapping) -> str:
    return "its newest commit" if source["revision"] is None else f"revision {source['revision']}"
