"""Control draws against pandas' own sums and the p-value written out."""
import numpy as np
import pyarrow as pa
import pytest

from mamba_mi.config import stream
from mamba_mi.interventions import subspace
from mamba_mi.measure.controls import FEWEST, NORM, control_rows, judge, parted, spread
from mamba_mi.measure.effects import effects

CONDITIONS = ("site", "layer", "subspace", "rank", "draw")
NORMALISED = {"ld": "normalised"}


def made(draws: int = 30, prompts: int = 12, seed: int = 0) -> pa.Table:
    """Effects of two layers: a fitted subspace, its controls, and how much each exchanged."""
    random, rows = np.random.default_rng(seed), []
    for prompt in range(prompts):
        full = 0.2 if prompt == 0 else 4.0 + prompt  # the first is excluded at tau = 0.5
        for layer in (0, 1):
            for name, draw in [("mean_difference", None), *((f, d) for f in ("isotropic", "rescaled") for d in range(draws))]:
                cell = ("resid", layer, name, 3, draw, f"p{prompt}")
                strength = 3.0 if draw is None and layer else 0.5
                rows.append((*cell, "ld", random.normal(strength, 0.3) - 1.0, -1.0, full - 1.0))
                rows.append((*cell, NORM, 2.0 if draw is None or name == "rescaled" else random.uniform(0.5, 1.0), 0.0, 0.0))
    names = [*CONDITIONS, "prompt_id", "metric", "value", "baseline", "full"]
    return effects(dict(zip(names, map(list, zip(*rows)))))


def test_a_row_a_draw_holds_the_ratio_of_means_and_the_match_in_norm():
    table = made()
    frame = table.to_pandas()
    rows = control_rows(parted(table)[1], CONDITIONS, NORMALISED, tau=0.5)
    assert len(rows) == 2 * 2 * 30 * 2  # layers, families, draws, the metric and its normalised form
    row = next(r for r in rows if r["metric"] == "normalised" and r["conditions"] == {
        "site": "resid", "layer": 1, "subspace": "isotropic", "rank": 3, "draw": 7})
    mine = frame[(frame.layer == 1) & (frame.subspace == "isotropic") & (frame.draw == 7)]
    clear = mine[(mine.metric == "ld") & ((mine.full - mine.baseline).abs() > 0.5)]
    assert row["mean"] == pytest.approx((clear.value - clear.baseline).sum() / (clear.full - clear.baseline).sum())
    assert (row["n"], row["excluded"]) == (11, 1)
    assert row["match"] == pytest.approx((mine[mine.metric == NORM].value ** 2).mean() ** 0.5 / 2.0)
    plain = next(r for r in rows if r["metric"] == "ld" and r["conditions"] == row["conditions"])
    whole = mine[mine.metric == "ld"]
    assert (plain["n"], plain["mean"]) == (12, pytest.approx((whole.value - whole.baseline).mean()))


def observed(layer: int, mean: float) -> dict:
    return {"conditions": {"site": "resid", "layer": layer, "subspace": "mean_difference", "rank": 3, "draw": None},
            "metric": "normalised", "n": 11, "mean": mean, "control_p": None}


def test_p_counts_the_controls_that_reach_the_observed_on_either_side():
    rows = control_rows(parted(made())[1], CONDITIONS, NORMALISED, tau=0.5)
    means = {layer: np.array([r["mean"] for r in rows if r["metric"] == "normalised" and r["conditions"]["layer"] == layer
                              and r["conditions"]["subspace"] == "isotropic"]) for layer in (0, 1)}
    middle = float(np.sort(np.abs(means[0]))[20])
    low, high = judge([observed(0, -middle), observed(1, 0.9), *rows])
    assert low["control_p"] == pytest.approx((1 + (np.abs(means[0]) >= middle).sum()) / 31) and low["control_p"] > 0.2
    assert high["control_p"] == pytest.approx(1 / 31) == high["control_p_rescaled"]
    assert high["draws"] == 30 and high["control_mean"] == pytest.approx(means[1].mean())
    assert high["control_match"] == pytest.approx(0.38, abs=0.02)


def test_jobs_of_a_draw_each_judge_as_one_run_of_all():
    whole = control_rows(parted(made())[1], CONDITIONS, NORMALISED, tau=0.5)
    jobs = [row for draw in reversed(range(30)) for row in whole if row["conditions"]["draw"] == draw]
    assert judge([observed(1, 0.5), *whole]) == judge([observed(1, 0.5), *jobs])
    by_cell = lambda entries: {str((e["metric"], e["conditions"], e["family"])): e["effects"] for e in entries}  # noqa: E731
    assert by_cell(spread(whole)) == by_cell(spread(jobs))


def test_few_draws_give_no_p_and_other_rows_are_left_as_they_are():
    rows = control_rows(parted(made(draws=FEWEST - 1))[1], CONDITIONS, NORMALISED, tau=0.5)
    full = {**observed(1, 0.9), "conditions": {**observed(1, 0.9)["conditions"], "subspace": "full"}}
    judged, untouched = judge([observed(1, 0.9), full, *rows])
    assert judged["control_p"] is None and "draws" not in judged and untouched == full


def test_one_draw_with_two_effects_raises():
    rows = control_rows(parted(made())[1], CONDITIONS, NORMALISED, tau=0.5)
    with pytest.raises(ValueError, match="two different runs"):
        judge([*rows, {**rows[0], "mean": rows[0]["mean"] + 1}])


def test_effects_without_draws_are_left_whole():
    table = effects({"prompt_id": ["a"], "metric": ["ld"], "value": [1.0], "baseline": [0.0]})
    assert parted(table) == (table, None)


def test_a_control_that_is_the_observed_direction_drawn_at_random_has_uniform_p():
    """Of 400 linear readouts and random directions, the p-values of an exchangeable one among 99 others."""
    random, ps = np.random.default_rng(0), []
    for run in range(400):
        x_ND, readout_D = random.normal(size=(40, 16)), random.normal(size=16)
        drawn = [subspace.isotropic(16, 2, stream(run, "u", i)).numpy() for i in range(100)]
        of = [float((x_ND @ d.T @ d @ readout_D).mean()) for d in drawn]
        rows = [{**observed(0, of[0])}] + [
            {"conditions": {**observed(0, 0)["conditions"], "subspace": "isotropic", "draw": i}, "metric": "normalised",
             "n": 40, "mean": m, "match": 1.0} for i, m in enumerate(of[1:])]
        ps.append(judge(rows)[0]["control_p"])
    counts = np.histogram(ps, bins=10, range=(0, 1.0001))[0]
    assert ((counts - 40) ** 2 / 40).sum() < 27.9  # chi-square, 9 degrees of freedom, p = .001
