"""Answers through the recurrent state, against whole passes, one prompt alone, and transformers."""
import pytest
import torch
from oracles.checkpoints import random_checkpoint
from oracles.hugging_face import transformers_model

from mamba_mi import models
from mamba_mi.interventions import Add, Edit
from mamba_mi.measure.generation import Ends, answer
from mamba_mi.trace import NeverReached, Site, Trace
from tests.data.conftest import train_bpe
from tests.experiments.paths_world import CONFIGS, VOCAB
from tests.experiments.paths_world import model as published
from tests.small import small, tokens


class Never:
    """No answer ever ends."""

    def met(self, ids):
        return False


class Numbers(Never):
    """An answer ends at a token that is a multiple of five."""

    def met(self, ids):
        return bool(ids) and ids[-1] % 5 == 0


def greedy(lm, tokens_BL, n, interventions=()):
    """The n most probable tokens, by a whole pass for each."""
    for _ in range(n):
        with Trace(interventions=interventions) as trace:
            logits_BLV, _ = lm(tokens_BL, trace=trace)
        tokens_BL = torch.cat([tokens_BL, logits_BLV[:, -1:].argmax(dim=-1)], dim=1)
    return tokens_BL[:, -n:].tolist()


def cut(ids, ends):
    """Up to the first token that ends the answer."""
    return tuple(ids[:next((i + 1 for i in range(len(ids)) if ends.met(ids[:i + 1])), len(ids))])


@pytest.mark.parametrize("name", models.EMBEDDED)
def test_a_batch_is_answered_as_its_prompts_alone_and_as_by_whole_passes(name):
    lm, tokens_BL, right_BK = models.load(name, dtype="float64"), tokens(9, 7), tokens(9, 3, seed=1)
    found = answer(lm, tokens_BL, right_BK, most=6, ends=Numbers())
    assert found.said == [cut(ids, Numbers()) for ids in greedy(lm, tokens_BL, 6)]
    assert len({len(ids) for ids in found.said}) > 2  # rows left the batch one after another
    for row, ids in enumerate(found.said):
        alone = answer(lm, tokens_BL[[row]], right_BK[[row]], most=6, ends=Numbers())
        assert alone.said == [ids]
        torch.testing.assert_close(alone.logits_BKV[0], found.logits_BKV[row])
    whole_BLV, _ = lm(torch.cat([tokens_BL, right_BK[:, :-1]], dim=1))
    torch.testing.assert_close(found.logits_BKV, whole_BLV[:, -3:])


@pytest.mark.parametrize("variant", CONFIGS)
def test_greedy_answers_are_transformers_own(variant, tmp_path):
    config = {**CONFIGS[variant], "tie_embeddings": False}  # with tied ones a random model says its last token again
    weights = random_checkpoint(tmp_path, config, seed=5)
    lm, theirs = models.load(tmp_path, cached=False), transformers_model(config, weights)
    tokens_BL = tokens(4, 9, vocab=VOCAB)
    theirs.config.use_cache = True
    for row in tokens_BL:
        expected = theirs.generate(row[None], attention_mask=torch.ones(1, 9), max_new_tokens=12, do_sample=False, eos_token_id=None,
                                   suppress_tokens=list(range(VOCAB, theirs.config.vocab_size)))  # rows that only pad
        [ids] = answer(lm, row[None], row[None, :1], most=12, ends=Never()).said
        assert list(ids) == expected[0, 9:].tolist()
    together = answer(lm, tokens_BL, tokens_BL[:, :1], most=12, ends=Never()).said
    assert len({token for ids in together for token in ids}) > 12
    assert together == [answer(lm, row[None], row[None, :1], most=12, ends=Never()).said[0] for row in tokens_BL]


@pytest.mark.parametrize("variant", ["mamba1", "mamba2"])
@pytest.mark.parametrize("positions", [2, -1, "all"])
def test_interventions_act_on_the_prompt_and_on_every_token_of_the_answer(variant, positions):
    lm, tokens_BL, right_BK = small(variant, tie_embeddings=False), tokens(5, 6), tokens(5, 3, seed=1)
    direction_D = 3.0 * torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    acts = (Edit(Site(1, "resid"), positions, Add(direction_D)),)
    found = answer(lm, tokens_BL, right_BK, most=5, ends=Numbers(), interventions=acts)
    # -1 is the last token of each pass: the prompt's, then every token of the answer
    each = acts if positions != -1 else None
    said, logits = tokens_BL, []
    for step in range(5):
        at = each or (Edit(Site(1, "resid"), tuple(range(5, 6 + step)), Add(direction_D)),)
        said = torch.cat([said, torch.tensor(greedy(lm, said, 1, at))], dim=1)
    assert found.said == [cut(ids, Numbers()) for ids in said[:, 6:].tolist()]
    for k in range(3):
        at = each or (Edit(Site(1, "resid"), tuple(range(5, 6 + k)), Add(direction_D)),)
        with Trace(interventions=at) as trace:
            logits.append(lm(torch.cat([tokens_BL, right_BK[:, :k]], dim=1), trace=trace)[0][:, -1])
    torch.testing.assert_close(found.logits_BKV, torch.stack(logits, dim=1))
    clean = answer(lm, tokens_BL, right_BK, most=5, ends=Numbers())
    assert (found.logits_BKV - clean.logits_BKV)[..., :61].abs().max() > 0.1
    assert found.said != clean.said or positions == 2
    assert found.edits == {"resid": right_BK.shape[1] + max(map(len, found.said))}  # the passes of the answer told, and of the one given


def test_interventions_keep_a_value_for_every_row_though_rows_end_apart():
    lm, tokens_BL, right_BK = small("mamba1", tie_embeddings=False), tokens(5, 6), tokens(5, 1, seed=1)
    vectors_B1D = 3.0 * torch.randn(5, 1, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, alone = (answer(lm, tokens_BL[rows], right_BK[rows], most=5, ends=Numbers(), interventions=(
        Edit(Site(1, "resid"), "all", lambda x_BKD, picked, rows=rows: x_BKD + vectors_B1D[rows]),)).said for rows in (slice(None), [3]))
    assert found[3:4] == alone and len({len(ids) for ids in found}) > 1


def test_an_intervention_that_is_never_met_raises():
    with pytest.raises(NeverReached):
        answer(small("mamba1"), tokens(2, 4), tokens(2, 1), most=2, ends=Never(),
               interventions=(Edit(Site(1, "resid"), 50, Add(torch.ones(32))),))


def test_an_answer_ends_at_a_new_line_or_where_a_document_does():
    tokenizer = train_bpe(trim_offsets=True)
    ends = Ends(tokenizer)
    ids = tokenizer(" Danish\n\nThe anthem", add_special_tokens=False)["input_ids"]
    until = next(i for i, token in enumerate(ids) if "\n" in tokenizer.decode([token]))
    assert ends.texts == ("\n",) and not ends.met(ids[:until]) and ends.met(ids[:until + 1]) and ends.text(ids) == "Danish"
    document = [*ids[:until], tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    assert ends.met(document) and ends.text(document) == "Danish"
    named = train_bpe(trim_offsets=True)
    named.add_special_tokens({"eos_token": "<|end|>"})
    assert Ends(named).met([*ids[:until], named.eos_token_id]) and Ends(named).text([*ids[:until], named.eos_token_id]) == "Danish"
    assert ends.text(ids[until:]) == "" and ends.text([]) == "" and not ends.met([])
    sentence = tokenizer(" 1. Danish", add_special_tokens=False)["input_ids"]
    assert Ends(tokenizer, [".", " D"]).text(sentence) == "1" and Ends(tokenizer, [" "]).text(sentence) == "1."


def test_the_embedded_world_s_answers_are_words():
    tokenizer = models.load("tiny").tokenizer
    ids = tokenizer("Volmann . the")["input_ids"]
    assert len(ids) == 4 and Ends(tokenizer).text(ids) == "Volmann" and not Ends(tokenizer).met(ids[:2]) and Ends(tokenizer).met(ids[:3])


def test_a_random_model_of_the_published_layout_is_stopped_by_its_own_tokenizer(tmp_path):
    lm, _ = published(tmp_path, "mamba2")
    tokens_BL = tokens(6, 5, vocab=VOCAB)
    ends = Ends(lm.tokenizer, ["a", "e", " "])
    found = answer(lm, tokens_BL, tokens_BL[:, :1], most=12, ends=ends).said
    assert found == [cut(ids, ends) for ids in greedy(lm, tokens_BL, 12)] and min(map(len, found)) < 12
