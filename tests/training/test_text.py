"""Packed rows: every token once, the mark between documents and in none, no loss across a start; a unigram model; nats."""
import itertools

import numpy as np
import pytest
import torch

from mamba_mi import data, models
from mamba_mi.config import UserError, stream
from mamba_mi.data.corpus import Document
from mamba_mi.training.text import Rows, Script, unigram_nats
from mamba_mi.training.validation import Paper, nats, papers
from tests.data.conftest import train_bpe
from tests.data.texts import records, write
from tests.small import small

TOKENIZER = train_bpe(trim_offsets=True, merges=80)
SCRIPT = Script(TOKENIZER, 361)


class Texts:
    """A reader of given texts, over and over."""

    def __init__(self, texts):
        self.why, self._texts, self.begun = {}, texts, 0
        self.again()

    def again(self):
        self.begun += 1
        self._next = itertools.cycle(self._texts)

    def __next__(self):
        return Document(next(self._next), "s")


def corpus(folder, **knobs):
    path = write(folder / "a.jsonl.zst", records(80))
    return data.load({"name": "pile", "path": str(path), "buffer": 7, "heldout": 0.2, **knobs}, None, 0).corpus


def test_rows_are_the_documents_one_after_another_with_the_mark_before_each():
    texts = ["the state of a river", "each bank", "keeps what it read so far and some of it"]
    stream_of = [id for text in texts * 9 for id in (SCRIPT.mark, *TOKENIZER(text).input_ids)]
    tokens_BL, weights_BL = Rows(Texts(texts), SCRIPT, length=11, boundaries=False).next(8)
    joined = [*tokens_BL[0].tolist(), *(token for row in tokens_BL[1:].tolist() for token in row[1:])]
    assert joined == stream_of[:len(joined)] and len(joined) == 8 * 10 + 1
    assert (tokens_BL[1:, 0] == tokens_BL[:-1, -1]).all()  # what ends a row begins the next: each is predicted once
    assert (weights_BL[:, 0] == 0).all() and (weights_BL[:, 1:] == 1).all()


def test_with_boundaries_what_follows_a_mark_is_not_predicted_and_the_mark_is():
    tokens_BL, weights_BL = Rows(Texts(["the state", "a river keeps"]), SCRIPT, length=16, boundaries=True).next(4)
    before_BL = tokens_BL[:, :-1]
    assert (weights_BL[:, 1:] == (before_BL != SCRIPT.mark)).all() and (before_BL == SCRIPT.mark).any()
    inside = weights_BL[:, 1:][tokens_BL[:, 1:] == SCRIPT.mark]
    assert len(inside) and (inside == 1).all()


def test_a_text_that_writes_the_mark_does_not_end_its_document():
    assert SCRIPT.mark not in SCRIPT.tokens("the state <|endoftext|> of a river") != []
    assert SCRIPT.mark in TOKENIZER("the state <|endoftext|> of a river").input_ids


def test_a_document_with_a_token_that_the_model_lacks_is_passed_over_and_counted():
    from collections import Counter

    rare = max(TOKENIZER("the state").input_ids)
    script, reader = Script(TOKENIZER, rare), Texts(["the state", "a b"])
    reader.why = Counter()
    tokens_BL, _ = Rows(reader, script, length=8, boundaries=False).next(3)
    assert tokens_BL.max() < rare and reader.why["a token outside the model's vocabulary"] >= 3


def test_the_samples_of_an_epoch_begin_the_text_anew():
    reader = Texts(["the state of a river is what it has read so far"])
    rows = Rows(reader, SCRIPT, length=7, boundaries=False, samples=3)
    first, second = rows.next(3)[0], rows.next(3)[0]
    assert reader.begun == 2 and torch.equal(first, second)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_rows_restored_anywhere_are_those_that_would_have_come(n, tmp_path):
    made = corpus(tmp_path)
    one, other = (Rows(made.reader(), SCRIPT, length=13, boundaries=True, samples=20) for _ in range(2))
    for _ in range(n):
        one.next(4)
    other.restore(one.state())
    for _ in range(9):
        assert all(map(torch.equal, one.next(4), other.next(4)))
    assert torch.equal(one.counts_V, other.counts_V) and one.counts_V.sum() > 0


def test_counts_are_of_what_is_predicted():
    rows = Rows(Texts(["the state of a river"]), SCRIPT, length=9, boundaries=True)
    tokens_BL, weights_BL = rows.next(5)
    want = np.bincount(tokens_BL[weights_BL > 0].numpy(), minlength=361)
    assert rows.counts_V.tolist() == want.tolist()


def test_a_unigram_model_by_hand():
    """Of tokens 0, 1, 2 seen 6, 3 and 0 times; the first document is 0 0 1."""
    costs, a = unigram_nats(torch.tensor([6, 3, 0]), [[0, 0, 1], [0]])
    assert a == 0.001
    assert costs == pytest.approx([-2 * np.log(6.001 / 9.003) - np.log(3.001 / 9.003), -np.log(6.001 / 9.003)])
    costs, a = unigram_nats(torch.tensor([6, 3, 0]), [[2, 2, 2, 1, 0]])
    assert a == 1.0 and costs[0] == pytest.approx(-3 * np.log(1 / 12) - np.log(4 / 12) - np.log(7 / 12))


@pytest.mark.parametrize("variant", ["mamba1", "mamba2"])
@pytest.mark.parametrize("boundaries", [False, True])
def test_nats_are_those_of_each_document_alone(variant, boundaries):
    lm = small(variant)
    some = []
    for i, size in enumerate((1, 2, 7, 12, 30)):
        ids = torch.randint(1, 61, (size + boundaries,), generator=stream(0, "paper", i)).tolist()
        some.append(Paper(f"p{i}", "s", (0, *ids), tuple(ids[boundaries:])))
    got = nats(lm, some, length=9, size=4)
    for paper, cost in zip(some, got, strict=True):
        want = 0.0
        for at in range(1 + boundaries, len(paper.ids)):
            start = (at - 1) // 8 * 8  # a window has nine tokens, the last of them the next one's first
            log_p_V = lm(torch.tensor([paper.ids[start:at]]))[0][0, -1].log_softmax(-1)
            want -= log_p_V[paper.ids[at]].item()
        assert cost == pytest.approx(want, rel=1e-10)


def test_papers_are_held_out_documents_each_once(tmp_path):
    write(tmp_path / "a.jsonl", [*records(80), *records(80), {"text": "!"}])
    made = data.load({"name": "pile", "path": str(tmp_path / "a.jsonl"), "heldout": 0.999}, None, 0).corpus
    found, why = papers(made, SCRIPT, None, boundaries=True)
    assert len({paper.key for paper in found}) == len(found) > 70 and why["an earlier document is the same"] > 70
    assert why["one token"] == 1
    assert all(paper.ids[0] == SCRIPT.mark and paper.ids[2:] == paper.asked for paper in found)
    assert TOKENIZER.decode(found[0].ids[1:]) in {record["text"] for record in records(80)}


def test_validation_of_which_nothing_can_be_used_says_so(tmp_path):
    made = data.load({"name": "pile", "path": str(write(tmp_path / "a.jsonl", [{"text": c} for c in "!?.ab"])), "heldout": 0.999}, None, 0)
    with pytest.raises(UserError, match="none of 5 validation documents can be used .5 times one token.; give dataset.validation=FILE"):
        papers(made.corpus, SCRIPT, None, boundaries=True)


def test_a_tokenizer_without_a_mark_or_of_another_model_is_refused():
    with pytest.raises(UserError, match="names no EOS .* give one that has as model.tokenizer=FILE"):
        Script(models.load("tiny").tokenizer, 512)
    with pytest.raises(UserError, match="without a tokenizer; give model.tokenizer=FILE"):
        Script(None, 9)
    with pytest.raises(UserError, match="the model knows 0: the two do not belong together"):
        Script(TOKENIZER, 0)
