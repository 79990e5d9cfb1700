"""The table of variants: every one is in it, with what it really has and what really runs."""
import json
from pathlib import Path
from types import SimpleNamespace

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


def test_the_markdown_has_a_row_a_variant_in_every_table_and_is_the_readmes(experiment):
    markdown = models_words.markdown(experiment.facts)
    for variant in variants.modules():
        assert sum(line.startswith(f"| {variant} |") for line in markdown.splitlines()) == 3
    assert markdown in (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_report_has_the_tables_with_this_runs_numbers_and_the_words_say_where_they_are(experiment):
    summary = [{"conditions": {"variant": variant}, "mean": mean, "ci_low": mean / 2, "ci_high": 2 * mean, "n": 4}
               for variant, mean in zip(variants.modules(), (2e-7, 4e-7, 1e-7, 3e-7, 2e-7, 2e-7), strict=True)]
    _, (_, exact), _ = experiment.listings(SimpleNamespace(summary=summary))
    off = {row[0]: row[-1] for row in exact.rows}
    least, most = list(variants.modules())[2], list(variants.modules())[1]
    assert off[least] == "1.0e−07 [5.0e−08, 2.0e−07]" and experiment.headline(summary) == []
    first, where = experiment.findings(summary)
    assert first.startswith("6 variants") and f"{off[least]} ({least}) to {off[most]} ({most})" in first and "n = 4" in first
    assert "report.html" in where and 'artifacts/models.json under "markdown"' in where


def test_what_is_read_again_is_what_was_found(experiment, tmp_path):
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "models.json").write_text(json.dumps(experiment.artefacts()["models"]))
    again = models.Models(experiment.knobs, None, experiment.setting)
    again.recall(tmp_path)
    run = SimpleNamespace(summary=[])
    assert again.facts == experiment.facts and again.listings(run) == experiment.listings(run)


def test_another_model_is_refused_in_a_line(experiment):
    other = load("tiny", device="cpu", cached=False)
    other.name = "mamba2-1.3b"
    with pytest.raises(UserError, match="^model=mamba2-1.3b: .*leave model= out$"):
        models.Models(models.Knobs(), other, experiment.setting).check()
