"""What training reads: nothing held out, each step on its own, weights only where something can be known."""
import pytest
import torch

from mamba_mi import models
from mamba_mi.config import stream
from mamba_mi.data.facts import tokenizer, vocabulary, world
from mamba_mi.data.facts import words as W
from mamba_mi.data.facts.tasks import ANSWER, OTHER, Draw
from mamba_mi.training import packing
from tests.small import small

STEPS, BATCH, LENGTH = 150, 16, 64


@pytest.fixture(scope="module")
def read():
    """Every sentence about somebody or some place in the first steps, as text, cut at full stops."""
    words = tokenizer()
    steps = (packing.batch_at(step, seed=0, batch=BATCH, length=LENGTH)[0] for step in range(STEPS))
    rows = [row for tokens_BL in steps for row in tokens_BL.tolist() if row[0] == words.bos_token_id]
    texts = words.batch_decode([row[1:] for row in rows])
    return {sentence.strip() for text in texts for sentence in text.split(" .")[:-1]}


def told(relation, split):
    return {f"{before}{s.subject}{after} {world().answer(s)}" for s in world().sayings(relation, split)
            for before, after in [s.parts]}


@pytest.mark.parametrize("relation", [*W.PERSON, *W.TWO_HOP])
def test_held_out_sentences_are_never_read_and_the_others_are(relation, read):
    assert not told(relation, "heldout") & read
    trained = told(relation, "train")
    assert len(trained & read) > len(trained) / 2


def test_no_two_hop_sentence_is_about_a_newcomer(read):
    for newcomer in world().newcomers:
        about = {s for s in read if newcomer in s}
        assert about and not {s for s in about if set(s.split()) & {*W.COUNTRY, *W.LANGUAGE}}


def test_a_step_is_a_function_of_seed_and_step_alone():
    torch.manual_seed(1)
    one = packing.batch_at(7, seed=0, batch=4, length=64)
    packing.batch_at(8, seed=0, batch=4, length=64)
    torch.manual_seed(2)
    assert all(map(torch.equal, one, packing.batch_at(7, seed=0, batch=4, length=64)))
    assert not torch.equal(one[0], packing.batch_at(8, seed=0, batch=4, length=64)[0])
    assert not torch.equal(one[0], packing.batch_at(7, seed=1, batch=4, length=64)[0])


def test_a_text_weighs_answers_most_and_its_first_token_not_at_all():
    answers = {x for values in W.ANSWERS.values() for x in values}
    for n in range(20):
        passage = packing.text(Draw(stream(0, "text", n)), 64)
        assert passage.weights[0] == 0.0 and set(passage.weights[1:]) <= {OTHER, ANSWER}
        for i, weight in enumerate(passage.weights[:-1]):
            if weight == ANSWER:
                assert passage.words[i] in answers and passage.words[i + 1] == "."


def test_the_shares_of_the_mix_are_those_written_down():
    tokens_BL = torch.cat([packing.batch_at(s, seed=0, batch=16, length=64)[0] for s in range(STEPS)])
    share = (tokens_BL[:, 0] == vocabulary()["<kv>"]).double().mean().item()
    assert abs(share - 0.20) < 4 * (0.2 * 0.8 / len(tokens_BL)) ** 0.5


@pytest.mark.parametrize("name", ["tiny", "tiny-moe"])
def test_of_a_part_of_a_batch_all_of_the_loss_is_its_share(name):
    lm = models.load(name, cached=False)  # the latter's loss has a part that balances its experts
    tokens_BL, weights_BL = torch.randint(0, 61, (3, 9), generator=stream(0, "tokens")), torch.ones(3, 9)
    whole = packing.next_token_loss(lm, tokens_BL, weights_BL)
    torch.testing.assert_close(packing.next_token_loss(lm, tokens_BL, weights_BL, total=4 * 3 * 8), whole / 4)


def test_the_loss_is_the_weighted_mean_of_minus_log_probabilities():
    lm = small("mamba2")
    tokens_BL = torch.randint(0, 61, (3, 9), generator=stream(0, "tokens"))
    weights_BL = torch.rand(3, 9, generator=stream(0, "weights"), dtype=torch.float64)
    log_BLV = lm(tokens_BL)[0].log_softmax(-1)
    total = sum(-log_BLV[b, t - 1, tokens_BL[b, t]] * weights_BL[b, t] for b in range(3) for t in range(1, 9))
    loss = packing.next_token_loss(lm, tokens_BL, weights_BL)
    torch.testing.assert_close(loss, total / weights_BL[:, 1:].sum())
