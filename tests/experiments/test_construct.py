"""The constructed data set against transformers, one prompt at a time with nothing beside it, and against its source."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles.hugging_face import transformers_model
from pyarrow import concat_tables

from mamba_mi.config import UserError
from mamba_mi.experiments.construct import Construct
from tests.experiments.paths_world import CONFIGS, VOCAB, dataset, made, model, records


def constructed(experiment, prompts):
    effects = concat_tables([experiment.step(batch) for batch in experiment.batches(prompts)])
    return experiment.tables(effects, prompts)["construct"].to_pandas()


@pytest.mark.parametrize("variant", CONFIGS)
def test_every_column_is_what_transformers_says_of_the_prompt_alone(variant, tmp_path):
    lm, weights = model(tmp_path, variant)
    theirs = transformers_model(CONFIGS[variant], weights)
    prompts = dataset(tmp_path, lm.tokenizer, repeats=True).prompts
    table = constructed(made(Construct, lm, batch=5), prompts).set_index(["prompt_id", "path"])
    assert len(table) == 2 * len(records()) and len({len(p.token_ids) for p in prompts}) > 3
    for prompt in prompts:
        answer = list(prompt.target_ids)
        with torch.no_grad():
            logits = theirs(torch.tensor([[*prompt.token_ids, *answer]])).logits[0, len(prompt.token_ids) - 1:-1, :VOCAB]
        log_p = logits.double().log_softmax(-1)
        p = log_p[0].exp()
        for path in ("ordinary", "attention"):
            row = table.loc[prompt.prompt_id, path]
            assert [row.true_prob, row.max_prob, row.target_logprob] == pytest.approx(
                [p[answer[0]].item(), p.max().item(), log_p[range(len(answer)), answer].sum().item()], rel=2e-5)
            assert (row.pred_id, row.hit) == (p.argmax().item(), p.argmax().item() == answer[0])
            assert row.pred == lm.tokenizer.decode([row.pred_id])
            assert (row.target_id, row.n_tokens) == (answer[0], len(prompt.token_ids))
            if prompt.wrong_id is None:
                assert np.isnan(row.false_prob)
            else:
                assert row.false_prob == pytest.approx(p[prompt.wrong_id].item(), rel=2e-5)


def test_every_record_of_the_source_is_there_with_its_columns(tmp_path):
    lm, _ = model(tmp_path, "mamba1")
    table = constructed(made(Construct, lm), dataset(tmp_path, lm.tokenizer, repeats=True).prompts)
    for path in ("ordinary", "attention"):
        mine = table[table.path == path]
        assert list(mine.prompt_id) == [f"cf-{i:05d}" for i in range(len(records()))]
        assert mine[list(records()[0])].to_dict("records") == records()
    without = constructed(made(Construct, lm), dataset(tmp_path, lm.tokenizer).prompts)
    assert len(without) == 2 * (len(records()) - 1)


@pytest.mark.parametrize("variant", CONFIGS)
def test_the_paths_are_one_model_in_float64(variant, tmp_path):
    lm, _ = model(tmp_path, variant, dtype="float64")
    experiment = made(Construct, lm)
    prompts = dataset(tmp_path, lm.tokenizer).prompts
    table = concat_tables([experiment.step(batch) for batch in experiment.batches(prompts)]).to_pandas()
    off = table[table.path == "attention"]
    assert set(off.metric) == {"probability", "max_probability", "false_probability", "hit", "prediction", "target_logprob"}
    assert 0 < (off.value - off.baseline).abs().max() <= 1e-10
    assert (table[table.path == "ordinary"].baseline == 0).all()
    assert experiment.paths["attention"].layers[0].backend is not lm.layers[0].backend
    assert experiment.paths["attention"].embedding is lm.embedding


def test_a_batch_holds_one_length_whatever_the_spans(tmp_path):
    lm, _ = model(tmp_path, "mamba1")
    prompts = dataset(tmp_path, lm.tokenizer).prompts
    moved = [replace(p, prompt_id=f"{p.prompt_id}x", spans={"subject": (0, 1)}) for p in prompts]
    parts = made(Construct, lm, batch=64).batches([*prompts, *moved])
    assert [len({len(p.token_ids) for p in batch.prompts}) for batch in parts] == [1] * len({len(p.token_ids) for p in prompts})
    assert sum(map(len, parts)) == 2 * len(prompts)


def test_columns_of_the_source_never_shadow_ours_and_mixed_ones_become_text(tmp_path):
    lm, _ = model(tmp_path, "mamba1")
    prompts = [replace(p, source={**p.source, "hit": "yes", "odd": 7 if i else "seven"})
               for i, p in enumerate(dataset(tmp_path, lm.tokenizer).prompts)]
    table = constructed(made(Construct, lm), prompts)
    assert set(table.source_hit) == {"yes"} and table.hit.dtype == bool and set(table.odd) == {"7", "seven"}


@pytest.mark.parametrize("knobs, said", [({"batch": 0}, "method.batch=0"), ({"resamples": 3}, "method.resamples=3")])
def test_a_wrong_knob_is_one_line(knobs, said, tmp_path):
    lm, _ = model(tmp_path, "mamba1")
    with pytest.raises(UserError, match=f"^{said}: give at least"):
        made(Construct, lm, **knobs)


def test_a_run_on_the_attention_backend_has_no_ordinary_path(tmp_path):
    lm, _ = model(tmp_path, "mamba1")
    with pytest.raises(UserError, match="^backend=attention: .*give backend=chunked$"):
        made(Construct, lm.on("attention"))
