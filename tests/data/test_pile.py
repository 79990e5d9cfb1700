"""The Pile as it lies in files: every frame read, each line used or counted, the order and the held-out by seed and text."""
from collections import Counter
from itertools import islice

import pytest
import zstandard

from mamba_mi import data
from mamba_mi.config import UserError
from mamba_mi.data import shards
from mamba_mi.data.pile import document
from mamba_mi.data.reading import Unusable
from tests.data.texts import records, write


def corpus(path, seed=0, **knobs):
    return data.load({"name": "pile", "path": str(path), "heldout": 0.2, **knobs}, None, seed).corpus


def read(path, n, seed=0, **knobs):
    return [each.text for each in islice(iter(lambda: next(reader), None), n)] if (
        reader := corpus(path, seed, **knobs).reader()) else []


def one_pass(made):
    reader = made.reader()
    texts = []
    while reader.passes == 0:
        texts.append(next(reader).text)
    return texts[:-1], reader


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_every_line_of_every_frame_is_read_once_a_pass_or_held_out(name, tmp_path):
    every = [record["text"] for record in records(60)]
    made = corpus(write(tmp_path / name, records(60), frames=7), buffer=5)
    texts, _ = one_pass(made)
    held, _ = made.held_out(None)
    assert 0 < len(held) < 30 and len(set(texts)) == len(texts)
    assert sorted([*texts, *(each.text for each in held)]) == sorted(every) and texts != [t for t in every if t in texts]


def test_a_file_that_zstandard_itself_reads_only_the_first_frame_of(tmp_path):
    path = write(tmp_path / "a.jsonl.zst", records(30), frames=3)
    assert len(zstandard.ZstdDecompressor().decompress(path.read_bytes(), max_output_size=1 << 20).splitlines()) == 10
    assert len(list(shards.lines(shards.local(str(path), "k")[0]))) == 30


def test_frames_that_hold_nothing_or_are_to_be_skipped_end_no_file(tmp_path):
    """pzstd and seekable files have such frames, at the beginning, between others and at the end."""
    pack = zstandard.ZstdCompressor().compress
    skipped = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"about"
    lines = [b'{"text": "one"}\n', b'{"text": "two"}\n']
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join([skipped, pack(lines[0]), pack(b""), skipped, skipped, pack(lines[1]), skipped]))
    assert list(shards.lines(shards.local(str(tmp_path), "k")[0])) == [line.strip() for line in lines]


def test_a_frame_with_a_long_window_is_read(tmp_path):
    line = b'{"text": "one"}\n'  # as `zstd --long=31` writes it: a window of 2 GiB, of which a line needs little
    block = (len(line) << 3 | 1).to_bytes(3, "little") + line
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + block)
    assert list(shards.lines(shards.local(str(tmp_path), "k")[0])) == [line.strip()]


def test_a_connection_that_breaks_is_one_line():
    class Broken(Exception):
        pass

    def broken():
        raise Broken("peer closed")

    with pytest.raises(UserError, match="far.jsonl: reading broke off .Broken: peer closed.; the same command goes on"):
        next(shards.lines(shards.Shard("far.jsonl", 1, broken, "")))


@pytest.mark.parametrize("spoil", [lambda b: b[:-7], lambda b: b[:40] + b"no frame" + b[60:]])
def test_a_damaged_file_is_refused_and_never_read_as_a_shorter_one(spoil, tmp_path):
    path = write(tmp_path / "a.jsonl.zst", records(30))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match="a.jsonl.zst: .*download it again"):
        one_pass(corpus(path))


@pytest.mark.parametrize("pack", [bytes, zstandard.ZstdCompressor().compress])
def test_a_last_line_without_an_end_is_read(pack, tmp_path):
    path = tmp_path / ("a.jsonl" if pack is bytes else "a.jsonl.zst")
    path.write_bytes(pack(b'{"text": "one"}\n{"text": "two"}'))
    assert list(shards.lines(shards.local(str(path), "k")[0])) == [b'{"text": "one"}', b'{"text": "two"}']


def test_a_line_longer_than_a_block_is_whole_and_blank_lines_are_none(tmp_path):
    long = "ü" * 3 * shards.BLOCK
    path = write(tmp_path / "a.jsonl", [{"text": long}, b"", b"  ", {"text": "short"}])
    made = corpus(path, heldout=1e-9)
    texts, reader = one_pass(made)
    assert sorted(texts) == ["short", long] and not reader.why


def test_lines_that_cannot_be_used_are_counted_by_reason(tmp_path):
    broken = [b'{"text": "cut of', b'["text"]', {"text": ""}, {"text": "  "}, {"meta": {}}, {"text": 7}, b'{"text": "\\ud800"}', b"\xff\xfe\xfa"]
    path = write(tmp_path / "a.jsonl", [*records(3), *broken, *records(6)[3:]])
    texts, reader = one_pass(corpus(path, heldout=1e-9))
    assert len(texts) == 6
    # the pass that ended the loop read the first lines of the next one, too
    first = Counter({reason: count for reason, count in reader.why.items()})
    assert set(first) == {"the line is not JSON", "the line is not a record in braces", "text is empty", "text is not text",
                          "text is not valid Unicode (half of a surrogate pair)"}
    assert first["text is empty"] == 2 * 3 and first["the line is not JSON"] == 2 * 2


@pytest.mark.parametrize(("meta", "source"), [
    ({"pile_set_name": "Pile-CC"}, "Pile-CC"), ('{"pile_set_name": "Github"}', "Github"), (None, "unknown"), ("Github", "unknown"),
    ({}, "unknown"), ({"pile_set_name": 3}, "unknown"), ({"pile_set_name": "\ud800"}, "unknown"), ({"pile_set_name": " "}, "unknown"), ([1], "unknown"), ("[1]", "unknown")])
def test_the_set_is_read_wherever_it_stands(meta, source):
    import json

    assert document(json.dumps({"text": "a", "meta": meta}).encode()) == ("a", source)
    assert document(b'{"text": "a"}').source == "unknown"
    with pytest.raises(Unusable):
        document(b"{")


def test_the_seed_decides_the_order_and_no_pass_is_like_the_one_before(tmp_path):
    for i in range(4):
        write(tmp_path / "in" / f"{i}.jsonl.zst", records(80)[i * 20:][:20])
    for path in (tmp_path / "in", tmp_path / "in" / "0.jsonl.zst"):  # shards in another order, and lines
        assert read(path, 60) == read(path, 60) != read(path, 60, seed=1)
    reader = corpus(tmp_path / "in").reader()
    passes = {0: [], 1: []}
    while reader.passes < 2:
        text = next(reader).text
        passes.setdefault(reader.passes, []).append(text)
    assert sorted(passes[0]) == sorted(passes[1]) and passes[0] != passes[1]


def test_shards_are_shuffled_even_where_nothing_else_is(tmp_path):
    for i in range(6):
        write(tmp_path / "in" / f"{i}.jsonl", records(60)[i * 10:][:10])
    texts, _ = one_pass(corpus(tmp_path / "in", buffer=1, heldout=1e-9))
    shard = [int(text.rsplit(" ", 1)[1]) // 10 for text in texts]
    firsts = {corpus(tmp_path / "in", seed, heldout=0.999).held_out(2)[0][0].text for seed in range(4)}
    assert len(firsts) > 1  # the first few held out are not always of the file that is named first
    assert shard != sorted(shard) and [a for a, b in zip(shard, [None, *shard]) if a != b] == list(dict.fromkeys(shard))


@pytest.mark.parametrize("n", [0, 1, 17, 45, 130])
def test_a_reader_restored_anywhere_reads_what_the_other_would_have(n, tmp_path):
    for i in range(3):
        write(tmp_path / "in" / f"{i}.jsonl.zst", records(90)[i * 30:][:30])
    made = corpus(tmp_path / "in", buffer=7, weights={"Github": 0.5}, n=31)
    whole, other = made.reader(), made.reader()
    for _ in range(n):
        next(whole)
    other.restore(whole.state())
    assert [next(other) for _ in range(150)] == [next(whole) for _ in range(150)]
    assert (other.why, other.read, other.passes) == (whole.why, whole.read, whole.passes)


def test_what_is_held_out_is_decided_by_the_text_alone(tmp_path):
    twice = [*records(100), *records(100)]
    one, other = corpus(write(tmp_path / "a.jsonl", twice), seed=3), corpus(write(tmp_path / "b.jsonl", twice[::-1]))
    held = {each.text for each in one.held_out(None)[0]}
    assert held == {each.text for each in other.held_out(None)[0]} and 5 < len(held) < 40
    assert not held & set(one_pass(one)[0])


def test_a_validation_file_of_ones_own_leaves_all_to_train_on(tmp_path):
    path = write(tmp_path / "a.jsonl", records(20))
    made = corpus(path, validation=str(write(tmp_path / "val.jsonl.zst", records(30)[20:])))
    assert [each.text for each in made.held_out(4)[0]] == [record["text"] for record in records(30)[20:24]]
    other = {"name": "pile", "path": str(path), "validation": str(write(tmp_path / "other.jsonl", records(31)[20:]))}
    prints = {data.load(other | more, None, 0).fingerprint for more in ({}, {"validation": str(tmp_path / "val.jsonl.zst")})}
    assert len(prints) == 2
    assert len(one_pass(made)[0]) == 20


def test_no_document_of_the_validation_file_is_trained_on(tmp_path):
    path = write(tmp_path / "a.jsonl", records(20))
    made = corpus(path, validation=str(write(tmp_path / "val.jsonl", records(25)[17:])), buffer=3)
    unread = {each.key for each in made.held_out(None)[0]}
    reader = made.reader(unread)
    texts = []
    while reader.passes == 0:
        texts.append(next(reader).text)
    assert sorted(texts[:-1]) == sorted(record["text"] for record in records(17)) and reader.why["held out for validation"] >= 3


def test_the_validation_file_by_another_path_is_still_what_is_trained_on(tmp_path, monkeypatch):
    write(tmp_path / "in" / "a.jsonl", records(20))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    for path, validation in (("in", str(tmp_path / "in" / "a.jsonl")), ("in/a.jsonl", "link"), (str(tmp_path / "link"), "in/*.jsonl")):
        with pytest.raises(UserError, match=f"dataset.validation={validation.replace('*', '.')}: .*a.jsonl is also among what is trained on"):
            corpus(path, validation=validation)


def test_sets_that_are_not_asked_for_are_left_out_and_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", records(300, sets=("Pile-CC", "Github", "ArXiv")))
    made = corpus(path, sets=["ArXiv", "Github"])
    _, reader = one_pass(made)
    assert set(reader.read) == {"ArXiv", "Github"} == {each.source for each in made.held_out(None)[0]}
    assert reader.why["of Pile-CC, which dataset.sets leaves out"] >= 90


def test_weights_are_how_many_times_as_often_a_set_is_read(tmp_path):
    path = write(tmp_path / "a.jsonl", records(3000, sets=("Pile-CC", "Github", "ArXiv")))
    texts, reader = one_pass(corpus(path, weights={"Github": 4, "ArXiv": 0}, buffer=10))
    assert set(reader.read) == {"Pile-CC", "Github"} and reader.why["left out by dataset.weights"] > 0
    assert 3.0 < reader.read["Github"] / reader.read["Pile-CC"] < 5.3 and len(set(texts)) == len(texts)
    _, reader = one_pass(corpus(path, weights={"Github": 0.25}, buffer=10))
    assert 3.0 < reader.read["ArXiv"] / reader.read["Github"] < 5.3 and reader.read["ArXiv"] > 700  # those not named lose none


def test_n_bounds_the_documents_of_a_pass(tmp_path):
    texts, _ = one_pass(corpus(write(tmp_path / "a.jsonl", records(60)), n=9))
    assert len(texts) == 9


@pytest.mark.parametrize(("knobs", "message"), [
    ({"path": "nowhere.jsonl"}, "dataset.path=nowhere.jsonl: no .jsonl or .jsonl.zst file there"),
    ({"path": "{}/text.txt"}, "cannot read .*text.txt; give files that end in .jsonl or .jsonl.zst"),
    ({"path": "{}/empty"}, "dataset.path=.*empty: no .jsonl"), ({"path": "{}/gone"}, "gone.jsonl cannot be read: No such file"),
    ({"validation": "{}/a.jsonl"}, "dataset.validation=.*: .*a.jsonl is also among what is trained on"),
    ({"heldout": 0.0}, "dataset.heldout=0.0: give a share"), ({"heldout": 1.0}, "dataset.heldout=1.0"),
    ({"buffer": 0}, "dataset.buffer=0: give at least 1"), ({"n": 0}, "dataset.n=0: give at least 1"),
    ({"sets": []}, "dataset.sets="), ({"sets": [1]}, "dataset.sets="), ({"weights": [1]}, "dataset.weights="),
    ({"weights": {"a": -1}}, "dataset.weights="), ({"only_correct": True}, "dataset.only_correct=true: running text")])
def test_a_mistake_is_one_line(knobs, message, tmp_path):
    write(tmp_path / "a.jsonl", records(5))
    (tmp_path / "text.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "gone.jsonl").symlink_to("nowhere")
    given = {key: x.format(tmp_path) if isinstance(x, str) else x for key, x in knobs.items()}
    with pytest.raises(UserError, match=message) as error:
        corpus(**{"path": tmp_path / "a.jsonl"} | given)
    assert "\n" not in str(error.value)


def test_text_of_which_nothing_can_be_used_says_what_is_wrong(tmp_path):
    path = write(tmp_path / "a.jsonl", [b"{", b"{", {"text": ""}])
    with pytest.raises(UserError, match="no document to train on .*times the line is not JSON"):
        next(corpus(path).reader())
    with pytest.raises(UserError, match="no document to validate on .2 times the line is not JSON; 1 times text is empty.; give"):
        corpus(path).held_out(3)


def test_a_pattern_a_folder_and_a_file_find_the_same(tmp_path):
    path = write(tmp_path / "deep" / "a.jsonl.zst", records(5))
    (tmp_path / "deep" / "README.md").write_text("about")
    names = [[shard.name for shard in shards.local(str(asked), "k")] for asked in (path, tmp_path, tmp_path / "*" / "*.zst")]
    assert names == [[str(path)]] * 3


def test_the_fingerprint_is_the_contents_at_either_end(tmp_path):
    one, other = (data.load({"name": "pile", "path": str(write(tmp_path / folder / "a.jsonl", records(n)))}, None, 0)
                  for folder, n in (("1", 20), ("2", 21)))
    again = data.load({"name": "pile", "path": str(write(tmp_path / "3" / "a.jsonl", records(20)))}, None, 5)
    assert one.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("at", [0, -1])
def test_of_files_of_one_size_the_fingerprint_tells_either_end(at, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "EDGE", 16)
    marks = []
    for letter in (b"x", b"y"):
        content = bytearray(b"-" * 99)
        content[at] = letter[0]
        (tmp_path / "a.jsonl").write_bytes(content)
        marks.append(shards.fingerprint(shards.local(str(tmp_path), "k")))
    assert marks[0] != marks[1]


class Hub:
    """A stand-in for the hub: its files lie in a folder. What is asked of it is what the real one would be."""

    sha = "abc123"

    def __init__(self, folder, monkeypatch):
        import huggingface_hub

        hub = self
        self.opened = []

        class Api:
            def dataset_info(self, repo, revision=None, files_metadata=False):
                hub.revision = revision
                files = sorted(path for path in folder.rglob("*") if path.is_file())
                siblings = [type("File", (), {"rfilename": str(p.relative_to(folder)), "size": p.stat().st_size}) for p in files]
                return type("Info", (), {"sha": hub.sha, "siblings": siblings})

        class Files:
            def open(self, name, mode):
                hub.opened.append(name)
                return (folder / name.split("@abc123/")[1]).open(mode)

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        monkeypatch.setattr(huggingface_hub, "HfFileSystem", Files)


def test_the_hubs_files_are_streamed_at_a_pinned_commit(tmp_path, monkeypatch):
    write(tmp_path / "train" / "00.jsonl.zst", records(20))
    write(tmp_path / "val.jsonl.zst", records(30)[20:])
    write(tmp_path / "test.jsonl.zst", records(40)[30:])
    hub = Hub(tmp_path, monkeypatch)
    made = data.load({"name": "pile"}, None, 0)
    texts, _ = one_pass(made.corpus)
    assert sorted(texts) == sorted(record["text"] for record in records(20))
    assert [each.text for each in made.corpus.held_out(2)[0]] == [record["text"] for record in records(22)[20:]]
    assert set(hub.opened) == {f"datasets/monology/pile-uncopyrighted@abc123/{name}" for name in ("train/00.jsonl.zst", "val.jsonl.zst")}
    hub.sha = "abc124"
    assert data.load({"name": "pile", "revision": "v2"}, None, 0).fingerprint != made.fingerprint and hub.revision == "v2"


def test_on_the_hub_a_file_is_named_by_its_folders_too(tmp_path, monkeypatch):
    for name in ("data/a", "data/validation-0", "test/b", "validation/c"):
        write(tmp_path / f"{name}.jsonl", records(3))
    Hub(tmp_path, monkeypatch)
    train, validation = shards.hub("an/other", None)
    assert [shard.name for shard in train] == ["data/a.jsonl"]
    assert [shard.name for shard in validation] == ["data/validation-0.jsonl", "validation/c.jsonl"]


def test_offline_the_error_says_how_to_get_it(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="dataset.hub=monology/pile-uncopyrighted: not to be had .*hf download .*dataset.path=DIR") as error:
        data.load({"name": "pile"}, None, 0)
    assert "\n" not in str(error.value)
