import hashlib
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from mamba_mi.config import UserError
from mamba_mi.data import load, roles, written
from mamba_mi.data.written import Written

# one letter in a word the tokenizer never met, so that both sides have as many tokens
PAIR = {"clean": "The anthem of Kzxq is in", "corrupt": "The anthem of Kzjq is in", "answer": " Danish",
        "wrong_answer": " French"}


@pytest.fixture
def read(tmp_path, tokenizer):
    def load_these(records, seed=0, **knobs):
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
        return load({"name": "pairs", "path": str(path), **knobs}, tokenizer, seed)

    return load_these


@pytest.fixture
def why(read):
    """The reason a record is dropped for, beside one that can be used."""

    def reason(**changes):
        dataset = read([{**PAIR, "clean": "Kzxq, the", "corrupt": "Kzjq, the"}, {**PAIR, **changes}])
        assert len(dataset.pairs) == 1
        [dropped] = dataset.dropped
        assert dropped.prompt_id == "pair-00001"
        return dropped.why

    return reason


def test_a_pair_is_its_two_texts_with_the_tokens_that_differ_as_subject(read, tokenizer):
    dataset = read([PAIR])
    [pair] = dataset.pairs
    assert dataset.prompts == (pair.clean,)
    assert pair.clean.token_ids == tuple(tokenizer(PAIR["clean"])["input_ids"])
    assert pair.corrupt.token_ids == tuple(tokenizer(PAIR["corrupt"])["input_ids"])
    assert pair.clean.layout == pair.corrupt.layout
    start, end = pair.clean.spans["subject"]
    assert pair.clean.token_ids[:start] == pair.corrupt.token_ids[:start]
    assert pair.clean.token_ids[end:] == pair.corrupt.token_ids[end:]
    for edge in (start, end - 1):
        assert pair.clean.token_ids[edge] != pair.corrupt.token_ids[edge]
    assert "subject" in roles(len(pair.clean.token_ids), pair.clean.spans)
    assert (pair.clean.target, pair.corrupt.target) == (" Danish", " French")
    assert (pair.clean.prompt_id, pair.corrupt.prompt_id) == ("pair-00000", "pair-00000-corrupt")
    assert pair.clean.cluster
    assert pair.clean.cluster in PAIR["clean"]
    assert pair.clean.template.replace("{}", pair.clean.cluster).replace(" ", "") == PAIR["clean"].replace(" ", "")


def test_the_seed_orders_pairs_and_what_has_no_partner_of_its_length(tokenizer):
    records = [Written(f"{i:02d}", f"Kz{chr(97 + i)} is in", f"Kj{chr(97 + i)} is in" + " the guitar" * (i > 12), " Danish", " French") for i in range(26)]
    made = [written.dataset("mine", records, tokenizer, bos=False, seed=seed) for seed in (0, 0, 1)]
    orders = [([pair.clean.prompt_id for pair in each.pairs], [p.prompt_id for p in each.prompts]) for each in made]
    assert orders[0] == orders[1] and made[0].fingerprint == made[2].fingerprint
    other_answer = written.dataset("mine", [records[0]._replace(answer=" German"), *records[1:]], tokenizer, bos=False, seed=0)
    assert other_answer.fingerprint != made[0].fingerprint
    for one, other in zip(orders[0], orders[2]):
        assert one[:13] != other[:13] and sorted(one) == sorted(other)
    paired, every = orders[0]
    assert every[:13] == paired and sorted(paired) == [f"{i:02d}" for i in range(13)] and every[13:] != sorted(every[13:]) and len(every) == 26


def test_each_answer_gets_the_space_that_its_own_text_needs(read):
    [pair] = read([{**PAIR, "clean": "Kzxq (", "corrupt": "Kzxq q", "answer": "Danish", "wrong_answer": "French"}]).pairs
    assert (pair.clean.target, pair.corrupt.target) == ("Danish", " French")


@pytest.mark.parametrize("bos", [False, True])
def test_the_user_s_spans_are_characters(read, byte_span, tokenizer, bos):
    spans = {"subject": [14, 18], "verb": [19, 21]}
    texts = {"clean": "The anthem of 猫 Qq is in", "corrupt": "The anthem of 犬 Qx is in"}
    [pair] = read([{**PAIR, **texts, "spans": spans, "corrupt_spans": spans}], bos=bos).pairs
    for side in (pair.clean, pair.corrupt):
        for name, (start, end) in spans.items():
            lo, hi = byte_span(tokenizer, side.token_ids[bos:], side.text, start, end)
            assert side.spans[name] == (lo + bos, hi + bos)
        assert side.spans.get("bos") == ((0, 1) if bos else None)
    assert pair.clean.cluster == "猫 Qq"
    assert pair.clean.template == "The anthem of {} is in"


def test_every_format_and_both_spellings_give_the_same_pairs(tmp_path, read, tokenizer):
    spans = {"verb": [19, 21]}
    rows = [{**PAIR, "spans": spans}, {**PAIR, "answer": " Old High Danish", "spans": spans}]
    expected = read(rows).pairs
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "dict.parquet")
    parquet.write_table(pa.Table.from_pylist([{**r, "spans": json.dumps(r["spans"])} for r in rows]),
                        tmp_path / "text.parquet")
    cells = [[r["clean"], r["corrupt"], r["answer"], r["wrong_answer"], '"{""verb"": [19, 21]}"'] for r in rows]
    (tmp_path / "mine.csv").write_text("clean,corrupt,answer,wrong answer,spans\n" + "\n".join(map(",".join, cells)))
    for name in ("dict.parquet", "text.parquet", "mine.csv"):
        assert load({"name": "pairs", "path": str(tmp_path / name)}, tokenizer, 0).pairs == expected


def test_an_ending_in_capitals_is_one_too_and_a_line_ends_at_a_line_feed_alone(tmp_path, tokenizer):
    row = {**PAIR, "clean": "Kzxq\u2028is in", "corrupt": "Kzjq\u2028is in"}  # elsewhere a line separator
    (tmp_path / "mine.JSONL").write_text(json.dumps(row, ensure_ascii=False) + "\r\n\n", encoding="utf-8", newline="")
    [pair] = load({"name": "pairs", "path": str(tmp_path / "mine.JSONL")}, tokenizer, 0).pairs
    assert pair.clean.text == row["clean"]
    with pytest.raises(UserError, match="^dataset.path=.*min.JSONL: no such file; did you mean 'mine.JSONL'"):
        load({"name": "pairs", "path": str(tmp_path / "min.JSONL")}, tokenizer, 0)


def test_an_answer_without_its_space_gets_it(read):
    plain = {**PAIR, "answer": "Danish", "wrong_answer": "French"}
    assert read([plain]).pairs == read([PAIR]).pairs


def test_ids_clusters_and_templates_are_the_user_s_where_given(read):
    rows = [{**PAIR, "id": "a", "cluster": "c", "subject": "passed over", "template": "t"}, {**PAIR, "answer": " Danish too", "id": 7, "subject": "s"}]
    first, second = sorted((pair.clean for pair in read(rows).pairs), key=lambda p: p.prompt_id, reverse=True)
    assert (first.prompt_id, first.cluster, first.template) == ("a", "c", "t")
    assert (second.prompt_id, second.cluster) == ("7", "s")


def test_the_order_is_drawn_from_the_seed_and_the_fingerprint_from_the_bytes(read, tmp_path):
    rows = [{**PAIR, "answer": f" Danish{i}"} for i in range(20)]
    orders = [[p.clean.prompt_id for p in read(rows, seed).pairs] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    assert read(rows).fingerprint == hashlib.sha256((tmp_path / "mine.jsonl").read_bytes()).hexdigest()


@pytest.mark.parametrize(("changes", "reason"), [
    ({"corrupt": "The anthem of the mother tongue is in"}, "clean and corrupt differ in their number of tokens"),
    ({"corrupt": PAIR["clean"]}, "clean and corrupt are the same tokens"),
    ({"wrong_answer": " Danish too"}, "answer and wrong_answer begin with the same token"),
    ({"answer": ""}, "answer is empty"),
    ({"answer": 1999}, "answer is not text"),
    ({"clean": None}, "clean is empty"),
    ({"corrupt": "\udc00"}, "corrupt is not valid Unicode (half of a surrogate pair)"),
    ({"spans": "{"}, "spans is not JSON"),
    ({"spans": [1, 2]}, "spans is not a dict of name: [start, end]"),
    ({"spans": {"verb": [3, 3]}}, "spans: 'verb' is not [start, end] within the text's characters"),
    ({"spans": {"verb": [0, 99]}}, "spans: 'verb' is not [start, end] within the text's characters"),
    ({"spans": {"verb": [0, 1.5]}}, "spans: 'verb' is not [start, end] within the text's characters"),
    ({"spans": {"verb": "is"}}, "spans: 'verb' is not [start, end] within the text's characters"),
    ({"spans": {"last": [0, 3]}}, "spans: 'last' is a role's own name; name the span differently"),
    ({"corrupt_spans": {"subject": [0, 3]}}, "corrupt_spans: 'subject' is on other tokens than in clean"),
])
def test_a_pair_that_cannot_be_used_is_dropped_with_its_reason(why, changes, reason):
    assert why(**changes) == reason


def test_the_same_pair_again_is_dropped(read):
    dataset = read([PAIR, PAIR])
    assert [d.why for d in dataset.dropped] == ["an earlier record is the same"]


def test_a_file_of_which_nothing_can_be_used_says_why(read):
    with pytest.raises(UserError, match="none of 3 records can be used: 2 times answer is empty; 1 times clean"):
        read([{**PAIR, "answer": ""}, {**PAIR, "answer": None}, {**PAIR, "corrupt": PAIR["clean"]}])


@pytest.mark.parametrize(("rows", "message"), [
    ([{k: v for k, v in PAIR.items() if k != "wrong_answer"} | {"wronganswer": "x"}],
     r"mine.jsonl: no column wrong_answer; it has clean, .*; did you mean 'wronganswer'\?"),
    ([{**PAIR, "span": {}}], r"column 'span' would be ignored; did you mean 'spans'\?"),
    ([{**PAIR, "Corrupt Spans": {}}], r"column 'Corrupt Spans' would be ignored; did you mean 'corrupt_spans'\?"),
    ([{**PAIR, "id": "a"}, {**PAIR, "id": "b"}, {**PAIR, "id": "a"}], "id 'a' is there more than once"),
    ([], "the file holds no records"),
])
def test_a_file_that_cannot_be_used_is_one_line(read, rows, message):
    with pytest.raises(UserError, match=message) as error:
        read(rows)
    assert "\n" not in str(error.value)


def test_no_path_is_one_line(tokenizer):
    with pytest.raises(UserError, match="dataset=pairs needs dataset.path=FILE, .* columns clean, corrupt, answer"):
        load({"name": "pairs"}, tokenizer, 0)


def test_a_column_nobody_knows_is_the_user_s_own_business(read):
    assert read([{**PAIR, "note": "from the appendix"}]).pairs == read([PAIR]).pairs
