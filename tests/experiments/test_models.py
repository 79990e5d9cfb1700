"""The table of variants: every one is in it, with what it really has and what really runs."""
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mamba_mi import UserError, load
from mamba_mi.data import batches, facts
from mamba_mi.experiments import Setting, models, names
from mamba_mi.models import EMBEDDED, footprint, variants
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
    shipped = json.loads((EMBEDDED["tiny-densemamba"] / "training_info.json").read_text())
    told, recall = rows["densemamba"]["embedded"], shipped["trained"]["recall_heldout"]
    assert rows["falcon_mamba"]["embedded"]["recall"] is None  # none ships: an untrained one is looked at
    assert {lm.config.vocab_size for lm in experiment.models.values()} == {experiment.lm.config.vocab_size}
    assert rows["falcon_mamba"]["embedded"]["parameters"] == sum(x.numel() for x in experiment.models["falcon_mamba"].parameters())
    assert told == {"name": "tiny-densemamba", "parameters": shipped["parameters"],
                    "recall": {key: recall[key] for key in ("hit", "ci_low", "ci_high", "n")}}


def test_patching_and_knockouts_run_on_every_variant(experiment):
    for row in experiment.facts:
        assert {"patching", "info_flow", "heatmap", "construct", "train"} <= set(row["experiments"]), row["variant"]
        assert set(row["experiments"]) == set(names()) - {"models", "classify", "prompts", "reproduce"}  # that look into no model, or need published numbers


def test_an_experiment_that_refuses_a_model_is_not_among_those_that_run_on_it(experiment):
    silent = load("tiny", device="cpu", cached=False)
    silent.tokenizer = None
    assert set(models._that_run(experiment.lm, experiment.setting)) - set(models._that_run(silent, experiment.setting)) == {"train"}


def test_what_a_user_may_say_of_a_checkpoint_is_in_the_table_and_that_no_published_one_was_read(experiment):
    rows = {row["variant"]: row for row in experiment.facts}
    assert {variant: row["options"] for variant, row in rows.items() if row["options"]} == {
        "hyena": {"modulate": [True, False]}, "moe": {"expert_activation": ["gelu", "silu"]}}
    assert {row["real_weights"] for row in experiment.facts} == {"never tried"}
    assert rows["densemamba"]["checkpoints"] == {} and "no checkpoint of it is public" in rows["densemamba"]["about"]
    assert rows["densemamba"]["what"].endswith("a reconstruction")
    assert rows["retnet"]["about"].startswith("Published under the name DenseMamba, but it is DenseGAU-RetNet: retention, no selective scan")
    assert rows["mamba1"]["about"] == rows["mamba2"]["about"] == ""  # their names say it all
    assert rows["retnet"]["about"].endswith("What is found in it is found of retention, not of state space models.")


def test_it_measures_the_first_prompts_of_its_seed_whatever_it_is_handed(experiment):
    first = facts.load(facts.Knobs(), experiment.lm.tokenizer, seed=0).prompts[:4]
    assert experiment.prompts == first and sorted(p.prompt_id for b in experiment.batches([]) for p in b.prompts) == sorted(
        p.prompt_id for p in first)
    assert experiment.clusters([]) == {p.prompt_id: p.cluster for p in first}
    other = models.Models(experiment.knobs, experiment.lm, Setting(1, 1 << 30))
    assert other.prompts == facts.load(facts.Knobs(), experiment.lm.tokenizer, seed=1).prompts[:4] != first


def test_each_variant_runs_a_prompt_twice_on_the_backend_that_was_asked_for(experiment):
    batch = next(b for b in experiment.batches([]) if len(b) == 2)
    assert experiment.cost(batch) == (28, 28 * batch.length * 6)  # seven variants, in float32 and in float64; tiny has six layers
    asked = models.Models(experiment.knobs, load("tiny", device="cpu", backend="attention"), experiment.setting)
    assert {lm.choice.asked for lm in asked.models.values()} == {"attention"}


def test_a_row_is_told_with_its_interval_and_tested_against_nothing(experiment):
    row = {"conditions": {"variant": "moe"}, "metric": models.DEVIATION, "n": 4, "mean": 2e-7, "ci_low": 1e-7, "ci_high": 3e-7,
           "p": 0.1, "p_adjusted": 0.1, "p_bh": 0.1, "effect_size": 2.0}
    told, = experiment.completed([row], None, [])
    assert told == row | {"p": None, "p_adjusted": None, "p_bh": None, "effect_size": None}
    assert experiment.headline([told]) == []  # it stands in its variant's row
    assert experiment.findings([told]) == models_words.findings([told]) and experiment.caveats([told]) == models_words.CAVEATS
    rows = [told | {"conditions": {"variant": variant}} for variant in experiment.models]
    assert [(title, columns.headings[1]) for title, columns in experiment.listings(SimpleNamespace(summary=rows))] == [
        ("The variants", "what it is"), ("What runs on them, and how exact", "embedded model"), ("Their sites", "sites"),
        ("Memory of the published Mambas", "weights, float32")]


@pytest.mark.parametrize("knob, least", [("prompts", 2), ("batch", 1), ("resamples", 20)])
def test_too_few_of_anything_is_refused_in_a_line(experiment, knob, least):
    with pytest.raises(UserError, match=f"^method.{knob}={least - 1}: give at least {least}$"):
        models.Models(models.Knobs(**{knob: least - 1}), experiment.lm, experiment.setting).check()


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


def test_the_readme_has_the_table_of_memory(experiment):
    assert experiment.artefacts()["models"]["memory"] in (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_report_has_the_tables_with_this_runs_numbers_and_the_words_say_where_they_are(experiment):
    summary = [{"conditions": {"variant": variant}, "mean": mean, "ci_low": mean / 2, "ci_high": 2 * mean, "n": 4}
               for variant, mean in zip(variants.modules(), (2e-7, 4e-7, 1e-7, 3e-7, 2e-7, 2e-7, 2e-7), strict=True)]
    _, (_, exact), _, (_, memory) = experiment.listings(SimpleNamespace(summary=summary))
    assert [row[0] for row in memory.rows] == list(footprint.SHAPES)
    off = {row[0]: row[-1] for row in exact.rows}
    least, most = list(variants.modules())[2], list(variants.modules())[1]
    assert off[least] == "1.0e−07 [5.0e−08, 2.0e−07]" and experiment.headline(summary) == []
    first, where = experiment.findings(summary)
    assert first.startswith("7 variants") and f"{off[least]} ({least}) to {off[most]} ({most})" in first and "n = 4" in first
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
