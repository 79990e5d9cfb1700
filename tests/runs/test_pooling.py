"""Which runs are put together, and what is said of those that are not."""
from pathlib import Path
from types import SimpleNamespace

import pyarrow.compute as pc
import pytest
from synthetic_runs import NORMALISED, columns, drawing, settings, write_drawn, write_run

from mamba_mi.config import UserError
from mamba_mi.runs import identity
from mamba_mi.runs.files import read_json, write_json
from mamba_mi.runs.pooling import _depths, grouped, pool

FAMILY = {"normalised": NORMALISED, "family": ("direction",)}


def job(number, swept, config, status="done"):
    return {"number": number, "label": str(swept), "swept": swept, "status": status, "path": str(identity.folder(config)),
            "run_id": identity.run_id(config)}


@pytest.fixture
def two_models(tmp_path):
    """Jobs of two models and three seeds, all done; the second model hands over later."""
    jobs = []
    for model, late in (("tiny", 0.3), ("tiny-mamba1", 0.7)):
        for seed in range(3):
            config = settings(seed, model, logs=str(tmp_path))
            write_run(config, columns(seed, late=late))
            jobs.append(job(len(jobs), {"model": model, "seed": str(seed)}, config))
    return jobs


def test_all_swept_keys_but_the_seed_form_groups():
    jobs = [{"swept": {"model": m, "seed": s, "dataset.n": n}} for m in "ab" for s in "01" for n in "58"]
    assert [(g.label, len(g.jobs)) for g in grouped(jobs, ["seed"])] == [
        ("a, dataset.n=5", 2), ("a, dataset.n=8", 2), ("b, dataset.n=5", 2), ("b, dataset.n=8", 2)]


def test_rows_name_their_group_and_two_groups_have_differences(two_models):
    pooled = pool(two_models, **FAMILY)
    assert [group.label for group in pooled.groups] == ["tiny", "tiny-mamba1"] and pooled.notes == []
    assert {row["conditions"]["model"] for row in pooled.rows} == {"tiny", "tiny-mamba1"}
    assert {row["conditions"]["model"] for row in pooled.differences} == {"tiny − tiny-mamba1"}
    assert {row["n_seeds"] for row in pooled.rows} == {3}


def test_the_layers_of_a_window_that_a_run_spells_out_are_kept(two_models):
    for job_ in two_models[:3]:
        rows = read_json(Path(job_["path"]) / "summary.json")
        write_json(Path(job_["path"]) / "summary.json", [row | {"layers": [0, 2, row["conditions"]["layer"]]} for row in rows])
    for row in pool(two_models, **FAMILY).rows:
        spelled = row["conditions"]["model"] == "tiny"
        assert row.get("layers") == ([0, 2, row["conditions"]["layer"]] if spelled else None)


def test_a_failed_job_is_left_out_and_its_seed_missing(two_models):
    two_models[4]["status"] = "failed"
    pooled = pool(two_models, **FAMILY)
    assert {row["conditions"]["model"]: row["n_seeds"] for row in pooled.rows} == {"tiny": 3, "tiny-mamba1": 2}
    assert {tuple(each["seed"] for each in row["seeds"]) for row in pooled.differences} == {(0, 2)}


def test_the_same_run_twice_counts_once(two_models):
    pooled = pool([*two_models[:3], two_models[0]], **FAMILY)
    assert {row["n_seeds"] for row in pooled.rows} == {3} and {row["n"] for row in pooled.rows} == {36}


def test_models_of_different_depth_are_not_compared_cell_by_cell(two_models, tmp_path):
    config = settings(0, "deep", logs=str(tmp_path))
    write_run(config, columns(0, layers=6))
    pooled = pool([two_models[0], job(1, {"model": "deep", "seed": "0"}, config)], **FAMILY)
    assert pooled.differences == [] and "no difference is taken" in pooled.notes[0]


def test_three_groups_are_shown_and_not_compared(two_models, tmp_path):
    config = settings(0, "third", logs=str(tmp_path))
    write_run(config, columns(0))
    pooled = pool([*two_models, job(6, {"model": "third", "seed": "0"}, config)], **FAMILY)
    assert len(pooled.groups) == 3 and pooled.differences == [] and "between two only" in pooled.notes[0]


def test_nothing_done_is_nothing_to_put_together(two_models):
    pooled = pool([{**each, "status": "failed"} for each in two_models], **FAMILY)
    assert pooled.rows == [] and pooled.notes


def test_a_prompt_without_a_record_is_a_cluster_of_its_own_and_said_to_be(two_models):
    (Path(two_models[0]["path"]) / "prompts.json").write_text("[]")
    pooled = pool(two_models[:1], **FAMILY)
    assert "12 prompts are not in prompts.json" in pooled.notes[0] and {row["n_clusters"] for row in pooled.rows} == {12}


def test_a_run_whose_effects_are_gone_is_named(two_models):
    (Path(two_models[1]["path"]) / "effects.parquet").unlink()
    with pytest.raises(UserError, match="has no effects to put together"):
        pool(two_models, **FAMILY)


@pytest.fixture
def draws(tmp_path):
    jobs = []
    for draw in range(40):
        config = drawing(draw, logs=str(tmp_path))
        write_drawn(config, draw)
        jobs.append(job(draw, {"method.draw": str(draw)}, config))
    return jobs


def test_draws_of_all_jobs_judge_the_effect_of_the_first(draws):
    pooled = pool(draws, **FAMILY)
    assert len(pooled.rows) == 1 and pooled.rows[0]["control_p"] == pytest.approx(1 / 41)
    assert {each["family"]: each["draws"] for each in pooled.null} == dict.fromkeys(
        ("isotropic", "covariance", "rescaled", "orthogonal"), 40)
    assert pooled.draws and pooled.notes == []


def test_missing_draws_are_counted_and_said(draws):
    for each in draws[5:8]:
        each["status"] = "failed"
    pooled = pool(draws, **FAMILY)
    assert pooled.rows[0]["control_p"] == pytest.approx(1 / 38)
    assert "37 of 40 planned draws are done: 3 are missing" in pooled.notes[0]


def test_under_twenty_draws_there_is_no_p(draws):
    pooled = pool(draws[:12], **FAMILY)
    assert pooled.rows[0]["control_p"] is None and "12 draws: under 20" in pooled.notes[0]


def test_draws_of_two_models_are_judged_apart(draws, tmp_path):
    others = []
    for draw in range(40):
        config = drawing(draw, "weak", logs=str(tmp_path))
        write_drawn(config, draw, observed=0.0)
        others.append(job(draw, {"model": "weak", "method.draw": str(draw)}, config))
    strong = [{**each, "swept": {"model": "tiny", **each["swept"]}} for each in draws]
    found = {row["conditions"]["model"]: row["control_p"] for row in pool([*strong, *others], **FAMILY).rows}
    assert found["tiny"] < 0.05 and found["weak"] == 1


def test_effects_are_pooled_in_the_groups_that_the_experiment_makes_of_them(two_models):
    halves = pool(two_models[:3], **FAMILY, in_groups=lambda effects: effects.filter(pc.equal(effects["role"], "last")))
    assert {row["conditions"]["role"] for row in halves.rows} == {"last"} and {row["n_seeds"] for row in halves.rows} == {3}


def test_windows_of_models_of_different_depth_are_not_compared_either():
    stacks = {("p",): SimpleNamespace(cells=[("scan", 0), ("scan", 3)])}
    assert _depths(stacks, ["conv", "window_start"]) == {("p",): {0, 3}} and _depths(stacks, ["conv", "task"]) == {}
