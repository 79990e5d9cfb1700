"""The table of variants: every one is in it, with what it really has and what really runs."""
import json

import pytest

from mamba_mi import UserError, load
from mamba_mi.data import batches, facts
from mamba_mi.experiments import Setting, models
from mamba_mi.models import variants
from mamba_mi.report import models_words


@pytest.fixture(scope="module")
def experiment():
    return models.Models(models.Knobs(prompts=4, batch=4), load("tiny", device="cpu"), Setting(0, 1 << 30))


def test_every_variant_is_in_the_table_with_its_own_sites(experiment):
    rows = {row["variant"]: row for row in experiment.facts}
    assert set(rows) == set(variants.modules())
    for variant, lm in experiment.models.items():
        assert rows[variant]["sites"] == list(lm.sites.names)
        assert rows[variant]["numerics"] == variants.numerics()[variant]
    assert "B" in rows["mamba1"]["sites"]
    assert rows["mamba1"]["checkpoints"]["miniplm-mamba-130m"] == {"repo": "MiniLLM/MiniPLM-Mamba-130M", "parameters": 140_458_752}


def test_patching_and_knockouts_run_on_every_variant(experiment):
    for row in experiment.facts:
        assert {"patching", "info_flow", "heatmap", "construct", "train"} <= set(row["experiments"]), row["variant"]


def test_the_deviation_is_that_of_float32_from_float64(experiment):
    batch = batches(facts.load(facts.Knobs(), experiment.lm.tokenizer, seed=0).prompts[:4], 4)[0]
    for row in experiment.step(batch).to_pylist():
        lm = experiment.models[row["variant"]]
        i = [p.prompt_id for p in batch.prompts].index(row["prompt_id"])
        exact = lm.float64_logits(batch.tokens_BL[[i]])[0]
        off = (lm(batch.tokens_BL)[0][i, :, :exact.shape[-1]].double() - exact).abs().max() / exact.abs().max()
        assert 0 < row["value"] <= 1e-4 and row["value"] == pytest.approx(float(off), rel=1e-6)


def test_the_markdown_has_a_row_a_variant_in_both_tables(experiment):
    lines = models_words.markdown(experiment.facts).splitlines()
    for variant in variants.modules():
        assert sum(line.startswith((f"| {variant}:", f"| {variant} |")) for line in lines) == 2


def test_what_is_read_again_is_what_was_found(experiment, tmp_path):
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "models.json").write_text(json.dumps(experiment.artefacts()["models"]))
    again = models.Models(experiment.knobs, None, experiment.setting)
    again.recall(tmp_path)
    assert again.facts == experiment.facts and again.listings(None) == experiment.listings(None)


def test_another_model_is_refused_in_a_line(experiment):
    other = load("tiny", device="cpu", cached=False)
    other.name = "mamba2-1.3b"
    with pytest.raises(UserError, match="^model=mamba2-1.3b: .*leave model= out$"):
        models.Models(models.Knobs(), other, experiment.setting).check()
