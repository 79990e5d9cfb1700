import csv
import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from mamba_mi.config import UserError
from mamba_mi.data import load, pair_up


def record(prefix, subject, suffix, target, relation="P1"):
    """A row as the published file has it: a suffix with "{}" at its head where the subject opens the sentence."""
    return {"relation": f"{prefix}{' ' * bool(prefix)}{{}}{suffix}", "relation_prefix": prefix,
            "relation_suffix": suffix if prefix else "{}" + suffix, "prompt": prefix + subject + suffix,
            "relation_id": relation, "target_false_id": "Q2", "target_true_id": "Q1", "target_true": target,
            "target_false": " Korean", "subject": subject}


RECORDS = [
    record("The mother tongue of", " Danielle Darrieux", " is", " French"),
    record("The mother tongue of", " Zoë Müller", " is", " German"),
    record("The mother tongue of", " 大江健三郎", " is", " Japanese"),
    record("", "Toko Yasuda", ", the", " guitar", "P2"),
    record("", "Zoë Müller", ", the", " piano", "P2"),
    record("The anthem of", " Velmora", " is in", " Old High Danish", "P3"),
]


def write(path: Path, records: list[dict]) -> str:
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    return str(path)


@pytest.fixture
def read(tmp_path, tokenizer):
    def load_these(records, seed=0, suffix=".parquet", tokenizer=tokenizer, **knobs):
        path = write(tmp_path / f"records{suffix}", records)
        return load({"name": "counterfact", "path": path, **knobs}, tokenizer, seed)

    return load_these


@pytest.mark.parametrize("bos", [False, True])
def test_spans_are_the_tokens_whose_bytes_are_the_subject_s(read, either_tokenizer, byte_span, bos):
    dataset = read(RECORDS, tokenizer=either_tokenizer, bos=bos)
    assert len(dataset.prompts) == len(RECORDS)
    for prompt in dataset.prompts:
        row = RECORDS[int(prompt.prompt_id.removeprefix("cf-"))]
        start = len(row["relation_prefix"])
        lo, hi = byte_span(either_tokenizer, prompt.token_ids[bos:], prompt.text, start, start + len(row["subject"]))
        assert prompt.spans == {"bos": (0, 1), "subject": (lo + 1, hi + 1)} if bos else {"subject": (lo, hi)}
        assert prompt.token_ids[bos:] == tuple(either_tokenizer(row["prompt"])["input_ids"])


def test_what_a_prompt_says_of_itself(read, tokenizer):
    prompts = {p.prompt_id: p for p in read(RECORDS).prompts}
    assert {p.cluster for p in prompts.values()} == {
        "Danielle Darrieux", "Zoë Müller", "大江健三郎", "Toko Yasuda", "Velmora"}
    assert prompts["cf-00000"].template == prompts["cf-00002"].template == "P1: The mother tongue of {} is"
    assert prompts["cf-00004"].template == "P2: {}, the"
    many = prompts["cf-00005"]
    assert many.target == " Old High Danish"
    assert tokenizer.decode([*many.token_ids, *many.target_ids]) == many.text + many.target
    assert many.target_id == many.target_ids[0]
    assert len(many.target_ids) > 1


def test_a_target_without_its_space_gets_it(read):
    plain, spaced = (read([{**RECORDS[0], "target_true": t}]).prompts[0] for t in ("French", " French"))
    assert plain == spaced


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_every_format_gives_the_same_prompts(read, suffix):
    assert read(RECORDS, suffix=suffix).prompts == read(RECORDS).prompts


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_the_mark_that_some_editors_put_before_a_file_is_no_part_of_it(tmp_path, read, tokenizer, suffix):
    path = Path(write(tmp_path / f"marked{suffix}", RECORDS))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    assert load({"name": "counterfact", "path": str(path)}, tokenizer, 0).prompts == read(RECORDS).prompts


def test_the_order_is_a_permutation_drawn_from_the_seed(read):
    records = [record("The anthem of", f" Land {i}", " is in", " Danish") for i in range(20)]
    orders = [[p.prompt_id for p in read(records, seed).prompts] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == [f"cf-{i:05d}" for i in range(20)]


def test_the_fingerprint_is_of_the_bytes(read, tmp_path):
    dataset = read(RECORDS)
    assert dataset.fingerprint == hashlib.sha256((tmp_path / "records.parquet").read_bytes()).hexdigest()
    assert read(RECORDS[:3]).fingerprint != dataset.fingerprint


def test_records_that_cannot_be_used_are_dropped_with_their_reason(read):
    bad = [
        {**RECORDS[0], "relation_suffix": " was"},
        {**RECORDS[1], "target_true": " Korean"},  # a second time, with another target
        {**RECORDS[3], "subject": None},
        {**RECORDS[3], "prompt": "half of a pair \ud83c"},
        {**RECORDS[4], "target_true": 7},
        {**RECORDS[5], "subject": "  "},
    ]
    dataset = read(RECORDS[:2] + bad, suffix=".json")
    assert [p.prompt_id for p in sorted(dataset.prompts, key=lambda p: p.prompt_id)] == ["cf-00000", "cf-00001"]
    assert [(d.prompt_id, d.why) for d in dataset.dropped] == [
        ("cf-00002", "the prompt is not relation_prefix + subject + relation_suffix"),
        ("cf-00003", "an earlier record has the same prompt"),
        ("cf-00004", "subject is empty"),
        ("cf-00005", "prompt is not valid Unicode (half of a surrogate pair)"),
        ("cf-00006", "target_true is not text"),
        ("cf-00007", "subject is empty")]
    assert dataset.dropped[0].text == RECORDS[0]["prompt"]
    json.dumps([d.text for d in dataset.dropped], ensure_ascii=False).encode()


def test_repeats_keeps_every_record_under_its_own_id(read):
    again = [*RECORDS[:2], {**RECORDS[1], "target_true": " Korean"}, RECORDS[1]]
    dataset = read(again, repeats=True)
    prompts = sorted(dataset.prompts, key=lambda p: p.prompt_id)
    assert [p.prompt_id for p in prompts] == [f"cf-{i:05d}" for i in range(4)] and not dataset.dropped
    assert [p.target for p in prompts[1:]] == [" German", " Korean", " German"]
    assert [p.source for p in prompts] == again


def test_text_outside_a_word_vocabulary_is_no_prompt(read):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"?": 0, "The": 1, "anthem": 2, "of": 3, "Velmora": 4, "is": 5, "in": 6,
                                        "Danish": 7}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tiny = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    known = record("The anthem of", " Velmora", " is in", " Danish")
    dataset = read([known, *RECORDS], tokenizer=tiny)
    assert [p.token_ids for p in dataset.prompts] == [(1, 2, 3, 4, 5, 6)]
    assert dataset.prompts[0].spans == {"subject": (3, 4)}
    assert Counter(d.why for d in dataset.dropped) == {
        "an earlier record has the same prompt": 1, "the prompt holds words outside the tokenizer's vocabulary": 5}
    with pytest.raises(UserError, match="none of 5 records can be used: 5 times the prompt holds words outside"):
        read(RECORDS[:5], tokenizer=tiny)


def spoil(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("cut.parquet", b"PAR1 and then nothing", "cut.parquet: not a readable .parquet file"),
    ("cut.jsonl", b'{"prompt": "a"}\n{"prompt": ', r"cut.jsonl: not a readable .jsonl file \(line 2: "),
    ("text.jsonl", b'"a"\n', r"text.jsonl: not a readable .jsonl file \(line 1: not a record"),
    ("dict.json", b'{"a": 1}', "dict.json: not a readable .json file .not a list of records"),
    ("latin.csv", "prompt,subject\nZoë,Zoë\n".encode("latin-1"), r"latin.csv: not UTF-8 text \(byte 0xeb\)"),
    ("latin.jsonl", '{"prompt": "Zoë"}'.encode("latin-1"), r"latin.jsonl: not UTF-8 text \(byte 0xeb\)"),
    ("wide.csv", b"prompt,subject\na,b,c\n", "wide.csv: .*line 2: more than the header's 2 fields"),
    ("quote.csv", b'prompt,subject\n"a"b,c\n', "quote.csv: not a readable .csv file"),
    ("empty.csv", b"", "empty.csv: the file holds no records"),
    ("header.csv", b"prompt,subject\n", "header.csv: the file holds no records"),
    ("empty.jsonl", b"\n \n", "empty.jsonl: the file holds no records"),
    ("empty.json", b"", "empty.json: the file holds no records"),
    ("empty.parquet", b"", "empty.parquet: not a readable .parquet file"),
    ("sheet.xlsx", b"", "sheet.xlsx: cannot read .xlsx; give a file that ends in .parquet, .jsonl, .json, .yaml, .yml, .csv"),
    ("bare", b"", "bare: cannot read a file without extension"),
    ("other.csv", b"prompt,subject,relation_id\na,b,P1\n",
     "other.csv: no column relation_prefix, relation_suffix, target_true; it has prompt, subject, relation_id"),
])
def test_a_bad_file_is_one_line(tmp_path, tokenizer, name, content, message):
    with pytest.raises(UserError, match=f"^dataset.path=.*{message}") as error:
        load({"name": "counterfact", "path": spoil(tmp_path / name, content)}, tokenizer, 0)
    assert "\n" not in str(error.value)


def test_a_path_that_leads_nowhere_is_one_line(tmp_path, tokenizer):
    write(tmp_path / "facts.parquet", RECORDS)
    with pytest.raises(UserError, match=r"fact.parquet: no such file; did you mean 'facts.parquet'\?"):
        load({"name": "counterfact", "path": str(tmp_path / "fact.parquet")}, tokenizer, 0)
    with pytest.raises(UserError, match="a folder; give a file, such as .*facts.parquet"):
        load({"name": "counterfact", "path": str(tmp_path)}, tokenizer, 0)
    with pytest.raises(UserError, match="no such file"):
        load({"name": "counterfact", "path": str(tmp_path / "no" / "such" / "folder.csv")}, tokenizer, 0)


def test_the_hub_s_copy_is_read_like_the_file(tmp_path, read, tokenizer, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    repository = tmp_path / "counterfact-tracing"  # `datasets` takes a folder for a repository
    repository.mkdir()
    write(repository / "train.parquet", RECORDS)
    knobs = {"name": "counterfact", "hub": str(repository)}
    dataset = load(knobs, tokenizer, 0)
    assert dataset.prompts == read(RECORDS).prompts
    assert dataset.fingerprint == load(knobs, tokenizer, 1).fingerprint


def test_offline_the_error_says_how_to_bring_the_file(tmp_path):
    pytest.importorskip("datasets")
    code = ("from mamba_mi.data import load\nfrom mamba_mi.config import UserError\n"
            "try: load({'name': 'counterfact'}, None, 0)\nexcept UserError as e: print(e)")
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=True)
    for part in ("dataset.hub=NeelNanda/counterfact-tracing", "dataset.path", "hf download", "--repo-type dataset"):
        assert part in said.stdout
    assert len(said.stdout.splitlines()) == 1


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # what Python does for a package that is not installed
    with pytest.raises(UserError, match="needs `pip install datasets`; or download it with `hf download"):
        load({"name": "counterfact"}, None, 0)


@pytest.fixture(scope="module")
def published(real_counterfact, neox):
    return load({"name": "counterfact", "path": str(real_counterfact)}, neox, 0)


def test_the_published_file_with_the_published_tokenizer(published, real_counterfact, neox, byte_span):
    dataset = published
    rows = parquet.read_table(real_counterfact).to_pylist()
    assert len(rows) == len(dataset.prompts) + len(dataset.dropped) == 21919
    assert Counter(d.why for d in dataset.dropped) == {"an earlier record has the same prompt": 324}
    for prompt in dataset.prompts:
        row = rows[int(prompt.prompt_id.removeprefix("cf-"))]
        start = len(row["relation_prefix"])
        end = start + len(row["subject"])
        assert prompt.spans["subject"] == byte_span(neox, prompt.token_ids, prompt.text, start, end), prompt
        assert prompt.target == row["target_true"]
        assert prompt.text == row["prompt"]
        assert prompt.source == row
    for prompt in random.Random(0).sample(dataset.prompts, 300):
        assert neox.decode([*prompt.token_ids, *prompt.target_ids]) == prompt.text + prompt.target
    lengths = [len(p.token_ids) for p in dataset.prompts]
    assert (min(lengths), max(lengths)) == (3, 24)
    assert sum(len(p.target_ids) == 1 for p in dataset.prompts) / len(lengths) == pytest.approx(0.892, abs=2e-3)


def test_most_published_prompts_find_a_partner(published):
    pairs, dropped = pair_up(published.prompts, seed=0)
    assert len(pairs) + len(dropped) == 21595
    assert len(pairs) == 20924
    assert all(p.clean.layout == p.corrupt.layout and p.clean.target_id != p.corrupt.target_id for p in pairs)
