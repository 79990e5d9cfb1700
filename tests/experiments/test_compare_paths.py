"""Two paths compared: the statistics against scipy and pandas, and a fault put into one of them is found and named."""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import concat_tables
from scipy import stats

from mamba_mi.backends import attention
from mamba_mi.config import UserError
from mamba_mi.experiments import Setting
from mamba_mi.experiments.compare_paths import TOLERANCES, ComparePaths, Knobs
from mamba_mi.measure.effects import effects
from mamba_mi.measure.summary import summarise
from mamba_mi.models import DTYPES
from tests.experiments.paths_world import CONFIGS, dataset, made, model


@pytest.fixture
def contrary(monkeypatch):
    """The attention path with the last token's row of M turned round and made large, in every layer."""
    whole = attention.written_out

    def turned(*args):
        M = whole(*args).clone()
        M[:, :, -1] *= -30
        return M
    monkeypatch.setattr(attention, "written_out", turned)


def whole_run(experiment, prompts):
    table = concat_tables([experiment.step(batch) for batch in experiment.batches(prompts)])
    rows = summarise(table, experiment.clusters(prompts), experiment.conditions, normalised={}, tau=0.0, resamples=50, seed=0,
                     family=experiment.family)
    return experiment.completed(rows, table, prompts), experiment.tables(table, prompts)["mismatches"]


@pytest.mark.parametrize("variant", CONFIGS)
def test_a_sound_model_passes_in_every_tolerance_of_its_dtype(variant, tmp_path):
    for dtype in ("float64", "float32"):
        lm, _ = model(tmp_path, variant, dtype)
        summary, mismatches = whole_run(made(ComparePaths, lm), dataset(tmp_path, lm.tokenizer).prompts)
        off = next(row for row in summary if row["metric"] == "logit_deviation")
        assert 0 < off["largest"] < {"float64": 1e-12, "float32": 1e-4}[dtype]
        assert made(ComparePaths, lm).verdict(summary) == "" and mismatches == []
    assert set(TOLERANCES) == set(DTYPES)


@pytest.mark.parametrize("variant", CONFIGS)
def test_a_fault_in_one_path_fails_the_run_and_its_prompts_are_listed(variant, tmp_path, contrary):
    lm, _ = model(tmp_path, variant, calm=False)
    experiment, prompts = made(ComparePaths, lm), dataset(tmp_path, lm.tokenizer).prompts
    summary, mismatches = whole_run(experiment, prompts)
    wrong = lm.on("attention")
    with torch.no_grad():
        firsts = {p.prompt_id: [m(torch.tensor([p.token_ids]))[0][0, -1].softmax(-1) for m in (lm, wrong)] for p in prompts}
    assert {m["prompt_id"] for m in mismatches} == {i for i, (a, b) in firsts.items() if a.argmax() != b.argmax()} != set()
    for m in mismatches:
        for path, p in zip(("ordinary", "attention"), firsts[m["prompt_id"]], strict=True):
            assert m[path]["pred_id"] == p.argmax() and m[path]["max_prob"] == pytest.approx(p.max().item(), rel=1e-4)
    off = {p.prompt_id: abs(firsts[p.prompt_id][1][p.target_id] - firsts[p.prompt_id][0][p.target_id]).item() for p in prompts}
    true = next(r for r in summary if r["metric"] == "probability" and r["conditions"]["path"] == "attention")
    assert true["largest"] == pytest.approx(max(off.values()), rel=1e-3) and true["over_tolerance"] == sum(x > 1e-4 for x in off.values())
    said = experiment.verdict(summary)
    assert "exceed method.tolerance=0.0001" in said and "dtype=float64" in said and "\n" not in said
    row = max((r for r in summary if "over_tolerance" in r), key=lambda r: r["largest"])
    assert row["largest_at"] in said and row["over_tolerance"] > 0
    assert made(ComparePaths, lm, tolerance=1.0).verdict(whole_run(made(ComparePaths, lm, tolerance=1.0), prompts)[0]) == ""


@pytest.fixture
def known(tmp_path):
    """Effects with known numbers, and the summary made of them: 60 prompts on 20 subjects."""
    random = np.random.default_rng(0)
    ids = [f"p{i:02d}" for i in range(60)]
    frame = pd.DataFrame({"ordinary": random.random(60)}, index=ids)
    frame["attention"] = frame.ordinary + random.normal(0, 0.02, 60)
    frame.loc["p07", "attention"] = frame.ordinary["p07"] - 0.4
    frame["hit_o"], frame["hit_a"] = (random.integers(0, 2, 60) for _ in range(2))
    parts = []
    for metric, (o, a) in {"probability": ("ordinary", "attention"), "max_probability": ("ordinary", "attention"),
                           "logit_deviation": ("ordinary", "attention"), "hit": ("hit_o", "hit_a"),
                           "prediction": ("hit_o", "hit_a")}.items():
        for path, value, baseline in (("ordinary", frame[o], 0 * frame[o]), ("attention", frame[a], frame[o])):
            parts.append(effects({"prompt_id": ids, "path": [path] * 60, "metric": [metric] * 60,
                                  "value": value.to_numpy(float), "baseline": baseline.to_numpy(float)}))
    prompts = [SimpleNamespace(prompt_id=i, cluster=f"s{int(i[1:]) // 3}", text=f"text of {i}") for i in ids]
    lm = SimpleNamespace(dtype=torch.float32)
    experiment, table = ComparePaths(Knobs(tolerance=0.05), lm, Setting(0, 1)), concat_tables(parts)
    rows = summarise(table, experiment.clusters(prompts), ("path",), normalised={}, tau=0.0, resamples=50, seed=0)
    rows = experiment.completed(rows, table, prompts)
    return frame, {(row["conditions"]["path"], row["metric"]): row for row in rows}


def test_the_differences_are_pandas(known):
    frame, rows = known
    off, row = frame.attention - frame.ordinary, rows["attention", "probability"]
    assert [row[key] for key in ("mean", "sd", "min", "max")] == pytest.approx([off.mean(), off.std(), off.min(), off.max()])
    assert row["largest"] == pytest.approx(0.4) and row["largest_at"] == "p07: text of p07"
    assert (row["over_0.1"], row["over_tolerance"]) == ((off.abs() > 0.1).sum(), (off.abs() > 0.05).sum())


def test_equivalence_is_scipys_two_t_tests_on_a_mean_a_subject(known):
    frame, rows = known
    means = (frame.attention - frame.ordinary).to_numpy().reshape(20, 3).mean(axis=1)
    above = stats.ttest_1samp(means, -0.05, alternative="greater").pvalue
    below = stats.ttest_1samp(means, 0.05, alternative="less").pvalue
    assert rows["attention", "probability"]["p_tost"] == pytest.approx(max(above, below))


def test_hits_are_counted_and_their_interval_is_scipys(known):
    frame, rows = known
    for path, hits in (("ordinary", frame.hit_o), ("attention", frame.hit_a)):
        row, wilson = rows[path, "hit"], stats.binomtest(int(hits.sum()), 60).proportion_ci(method="wilson")
        assert (row["hits"], row["accuracy"]) == (hits.sum(), pytest.approx(hits.mean()))
        assert (row["wilson_low"], row["wilson_high"]) == (pytest.approx(wilson.low), pytest.approx(wilson.high))
    crossed, row = pd.crosstab(frame.hit_o, frame.hit_a), rows["attention", "hit"]
    assert [row[key] for key in ("hits_on_both", "ordinary_only", "attention_only", "neither")] == [
        crossed.loc[1, 1], crossed.loc[1, 0], crossed.loc[0, 1], crossed.loc[0, 0]]
    assert row["predictions_differ"] == crossed.loc[1, 0] + crossed.loc[0, 1]


def test_levels_are_not_tested_and_token_ids_not_averaged(known):
    _, rows = known
    assert rows["ordinary", "probability"]["p"] is None and rows["attention", "probability"]["p"] is not None
    assert not [key for key in rows if key[1] == "prediction"]


@pytest.mark.parametrize("tolerance", [-1.0, "tight", True, float("inf")])
def test_a_wrong_tolerance_is_one_line(tolerance, tmp_path):
    lm, _ = model(tmp_path, "mamba1")
    with pytest.raises(UserError, match="^method.tolerance=.*: give a number from 0 on"):
        made(ComparePaths, lm, tolerance=tolerance)
