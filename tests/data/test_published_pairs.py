"""The published sets of indirect objects and of years beside ours: read as pairs, they have the roles, spans and answers of ours."""
import csv
import json
import re

from mamba_mi.data import batches, load, written
from mamba_mi.data.greater_than import endings
from mamba_mi.data.written import Written


def read(path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def orders(pairs, names) -> set[tuple]:
    """In which orders these spans stand."""
    return {tuple(sorted(names, key=lambda name: pair.clean.spans[name])) for pair in pairs}


def likeness(pair) -> tuple:
    """What patching sees of a pair, besides its words: the spans, how many tokens the subject is, which of them differ, the answers' lengths."""
    start, end = pair.clean.spans["subject"]
    differ = [i - start for i, (a, b) in enumerate(zip(pair.clean.token_ids, pair.corrupt.token_ids, strict=True)) if a != b]
    return tuple(sorted(pair.clean.spans)), end - start, tuple(differ), len(pair.clean.target_ids), len(pair.corrupt.target_ids)


def test_indirect_objects_are_read_as_pairs_that_are_like_ours(shared, neox, tmp_path):
    rows = []
    for record in read(shared("ioi/ioi_llama.csv")):
        names = list(re.finditer(r"(?<= )[A-Z][a-z]+", record["clean"]))
        assert len(names) == 3 and len({name[0] for name in names}) == 2
        subject, [io] = names[2][0], {name[0] for name in names} - {names[2][0]}
        spans = {"IO" if name[0] == io else f"S{1 + (name is names[2])}": list(name.span()) for name in names}
        start = names[2].start()
        corrupt = record["corrupted_hard"]
        assert corrupt == record["clean"][:start] + io + record["clean"][names[2].end():]  # IO where S2 stood, as in ours
        at = {"S2": [start, start + len(io)]}
        rows.append({"clean": record["clean"], "corrupt": corrupt, "answer": io, "wrong_answer": subject,
                     "spans": spans | {"subject": spans["S2"]}, "corrupt_spans": at})
    assert len(rows) == 499
    path = tmp_path / "ioi.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, ours = load({"name": "pairs", "path": str(path), "n": None}, neox, 0), load({"name": "ioi", "n": None}, neox, 0)
    assert len(found.pairs) + len(found.dropped) == 499 and len(found.pairs) >= 380
    whys = {"clean and corrupt differ in their number of tokens", "an earlier record is the same"}
    assert {each.why for each in found.dropped} <= whys
    assert {likeness(pair) for pair in ours.pairs} == {likeness(pair) for pair in found.pairs if likeness(pair)[1] == 1}
    assert orders(found.pairs, ("IO", "S1", "S2")) == orders(ours.pairs, ("IO", "S1", "S2")) == {("IO", "S1", "S2"), ("S1", "IO", "S2")}
    for pair in (*found.pairs, *ours.pairs):
        name = {span: neox.decode(pair.clean.token_ids[slice(*pair.clean.spans[span])]) for span in ("IO", "S1", "S2")}
        assert (name["IO"], name["S1"]) == (pair.clean.target, pair.corrupt.target) and name["S1"] == name["S2"]
        assert neox.decode(pair.corrupt.token_ids[slice(*pair.clean.spans["S2"])]) == name["IO"] and re.search(r"\w$", pair.clean.text)
    assert batches(found.pairs, 16)


def test_years_are_written_as_ours_are_and_their_labels_are_the_endings(shared, neox):
    records, known = read(shared("greater_than/greater_than_data.csv")), {}
    made = []
    for number, record in enumerate(records):
        years = [re.search(r"\b(\d\d)(\d\d)\b.* (\d\d)$", record[side]) for side in ("clean", "corrupted")]
        clean, corrupt = years
        assert clean[1] == clean[3] == corrupt[1] == corrupt[3]
        assert int(record["label"]) == int(clean[2]) and corrupt[2] == "01"  # the label has no 0 before a digit
        late = [ending for ending in known.setdefault(clean[1], endings(int(clean[1]), neox)) if ending > int(clean[2])]
        spans = [{"year": year.span(1)[:1] + year.span(2)[1:], "subject": year.span(2), "century": year.span(3)} for year in years]
        wrong = min(known[clean[1]][2:])
        made.append(Written(f"year-{number:04d}", record["clean"], record["corrupted"], f"{(late or [99])[0]:02d}", f"{wrong:02d}", *spans))
    pairs, dropped = written.pairs(made, neox, False)
    ours = load({"name": "greater_than", "n": None}, neox, 0).pairs
    assert len(pairs) + len(dropped) == len(records) == 1000 and len(pairs) >= 700
    [own] = {likeness(pair) for pair in ours}
    alike = [pair for pair in pairs if likeness(pair) == own]  # the others' first digits are no token of their own
    assert len(alike) >= 0.9 * len(pairs)
    assert orders(pairs, ("year", "century")) == {("year", "century")} <= orders(ours, ("year", "century"))
    for pair in (*alike, *ours):
        first, last = pair.clean.spans["century"]
        assert last == len(pair.clean.token_ids) and neox.decode(pair.clean.token_ids[first:last]).strip() == pair.clean.text[-2:]
