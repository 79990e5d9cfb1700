"""The examination: what it asks, how it counts, and what the shipped model knows."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mamba_mi
from mamba_mi.config import stream
from mamba_mi.data.facts import tokenizer, vocabulary, world
from mamba_mi.training import checkpointing
from mamba_mi.training.examination import TOLD, exam, grades, marks

TINY = Path(mamba_mi.__file__).parent / "models" / "tiny"


@pytest.fixture(scope="module")
def papers():
    return exam(tokenizer(), n=None, seed=0, length=64)


@pytest.fixture(scope="module")
def lm():
    return mamba_mi.load("tiny")


def test_every_question_is_in_the_split_it_is_counted_under(papers):
    for task, (relations, split) in TOLD.items():
        want = {(s.subject, f"{s.relation}-{s.template}") for r in relations for s in world().sayings(r, split)}
        assert {(p.cluster, p.template) for p in papers[task]} == want
    assert {p.cluster for p in papers["two_hop_heldout"]} == set(world().newcomers)
    assert set(papers) == {*TOLD, "mqar4", "mqar8", "box", "repeat"}


def test_marks_are_those_of_each_prompt_run_alone(lm):
    prompts = [p for group in exam(lm.tokenizer, n=4, seed=1, length=64).values() for p in group]
    scored = marks(lm, prompts, size=3)
    for p in prompts:
        logits_V = lm(torch.tensor([p.token_ids]))[0][0, -1, :lm.config.vocab_size].double()
        hit, probability = scored[p.prompt_id]
        assert hit == float(logits_V.argmax() == p.target_id)
        assert probability == pytest.approx(logits_V.softmax(-1)[p.target_id].item(), abs=1e-5)


def test_the_interval_of_one_persons_questions_is_wider_than_if_they_were_independent(papers):
    """Ten questions a newcomer, all right or all wrong: 40 coins, not 400."""
    prompts = papers["two_hop_heldout"]
    knows = dict(zip(world().newcomers, torch.randint(2, (40,), generator=stream(0, "knows")).tolist(), strict=True))
    scored = {"two_hop_heldout": {p.prompt_id: (float(knows[p.cluster]), 0.5) for p in prompts}}
    grade = grades({"two_hop_heldout": prompts}, scored, seed=0)["two_hop_heldout"]
    share = np.mean(list(knows.values()))
    assert (grade["hit"], grade["n"], grade["n_clusters"]) == (pytest.approx(share), len(prompts), 40)
    width = 2 * 1.96 * (share * (1 - share) / 40) ** 0.5
    assert grade["ci_high"] - grade["ci_low"] == pytest.approx(width, rel=0.1)


def test_the_shipped_model_has_the_worlds_vocabulary(lm):
    assert lm.tokenizer.get_vocab() == vocabulary() and lm.config.vocab_size == len(vocabulary())
    text = "in the evening Mira Voldorf can be heard on the"
    assert lm.tokenizer.encode(text) == tokenizer().encode(text)
    assert sum(f.stat().st_size for f in TINY.iterdir() if f.is_file()) <= 4e6


def test_the_shipped_model_recalls_facts_in_words_it_was_never_told_them_in(lm, papers):
    for task, least in (("recall_heldout", 0.95), ("recall_train", 0.99), ("mqar8", 0.95), ("mqar4", 0.95)):
        scored = marks(lm, papers[task][:512])
        assert sum(hit for hit, _ in scored.values()) / len(scored) >= least, task


def test_what_is_written_beside_the_weights_is_so(lm, papers):
    info = json.loads((TINY / "training_info.json").read_text())
    assert info["weights"] == checkpointing.weights_hash(lm) and info["world"] == world().fingerprint
    assert set(info["trained"]) == set(papers)
    for task in ("recall_heldout", "two_hop_heldout", "mqar8"):
        scored, grade = marks(lm, papers[task]), info["trained"][task]
        low, high = grade["ci_low"] - 1e-12, grade["ci_high"] + 1e-12  # Wilson's upper end of 256/256 is 1 - 1 ulp
        assert grade["n"] == len(scored) and low <= grade["hit"] <= high
        # another machine's rounding may turn a close call
        assert sum(hit for hit, _ in scored.values()) / len(scored) == pytest.approx(grade["hit"], abs=0.01)
