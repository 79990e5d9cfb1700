"""How the records of a file are read, a reader for each ending; a ValueError says what is wrong with the file.

All but a record's own flaws: those are for whoever makes something of the record.
"""
from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any


def _parquet(file: Path) -> list[dict]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file).read().to_pylist()
    except pa.ArrowException as e:  # some are neither ValueError nor OSError
        raise ValueError(str(e)) from None


def _jsonl(file: Path) -> list[dict]:
    # not splitlines, which also cuts at U+2028 inside a string
    lines = file.read_text(encoding="utf-8-sig").split("\n")
    return [_record(line, f"line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _json(file: Path) -> list[dict]:
    return _list_of_records(json.loads(file.read_text(encoding="utf-8-sig") or "[]"))


def _yaml(file: Path) -> list[dict]:
    """Every value as the text that is written: `no`, `1990` and `1.10` are answers, not false, a number and 1.1."""
    import yaml

    class Texts(yaml.SafeLoader):
        yaml_implicit_resolvers = {first: [(tag, form) for tag, form in known if tag.endswith(":null")]
                                   for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    try:
        return _list_of_records(yaml.load(file.read_text(encoding="utf-8-sig"), Loader=Texts) or [])
    except yaml.MarkedYAMLError as e:
        where = f"line {e.problem_mark.line + 1}: " if e.problem_mark else ""
        raise ValueError(f"{where}{e.problem or e.context}") from None
    except yaml.YAMLError as e:  # a character that no YAML file may hold
        raise ValueError(str(e).splitlines()[0]) from None


def _list_of_records(content: Any) -> list[dict]:
    if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
        raise ValueError("not a list of records")
    return content


def _record(line: str, where: str) -> dict:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as e:
        raise ValueError(f"{where}: {e.msg}, column {e.colno}") from None
    if type(record) is not dict:
        raise ValueError(f"{where}: not a record in braces")
    return record


def _csv(file: Path) -> list[dict]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader, records = csv.DictReader(lines, strict=True), []
        for mark in ";\t":
            if len(reader.fieldnames or ()) == 1 and mark in reader.fieldnames[0]:
                raise ValueError(f"its fields are divided by {mark!r}; save it with commas")
        for record in reader:
            if None in record:
                raise ValueError(f"line {reader.line_num}: more than the header's {len(reader.fieldnames)} "
                                 "fields; put quotes around a field with a comma")
            records.append(record)
    return records


READERS = {".parquet": _parquet, ".jsonl": _jsonl, ".json": _json, ".yaml": _yaml, ".yml": _yaml, ".csv": _csv}
