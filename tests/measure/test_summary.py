"""The rows of summary.json, each number against pandas and scipy on that cell's prompts alone."""
import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from mamba_mi.measure.bootstrap import reach
from mamba_mi.measure.effects import effects
from mamba_mi.measure.summary import summarise

CONDITIONS = ["direction", "layer", "role"]
PROMPTS, TAU = 14, 0.4
CLUSTERS = {f"p{i}": f"subject{i // 2}" for i in range(PROMPTS)}      # 7 clusters of two prompts
ARGUMENTS = dict(normalised={"logit_difference": "normalised_logit_difference"}, tau=TAU, resamples=999, seed=0)


def cells():
    """Every direction, layer and role; the role `between` is one that only some prompts have."""
    for i, direction, layer, role in product(range(PROMPTS), ("noising", "denoising"), (2, 10), ("last", "between")):
        if role == "last" or i % 7 > 1:
            yield {"prompt_id": f"p{i}", "direction": direction, "layer": layer, "role": role}


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [{**cell, "metric": metric} for cell in cells() for metric in ("logit_difference", "probability")]
    f = pd.DataFrame(rows)
    f["baseline"] = rng.normal(size=len(f))
    f["full"] = f.baseline + rng.uniform(0, 3, size=len(f))
    f["value"] = f.baseline + rng.uniform(-0.5, 1, size=len(f)) * (f.full - f.baseline) * (1 + f.layer / 10)
    return f


def table(f: pd.DataFrame):
    return effects({name: f[name].tolist() for name in f.columns})


def cell_of(f: pd.DataFrame, row: dict) -> pd.DataFrame:
    """The prompts behind a row, as pandas finds them, with difference, scale and cluster beside."""
    metric = row["metric"].removeprefix("normalised_")
    at = (f[CONDITIONS] == pd.Series(row["conditions"])).all(axis=1) & (f.metric == metric)
    cell = f[at].assign(difference=f.value - f.baseline, scale=1.0, cluster=f.prompt_id.map(CLUSTERS))
    if metric != row["metric"]:
        cell["scale"] = cell.full - cell.baseline
        cell = cell[cell.scale.abs() > TAU]
    return cell


@pytest.fixture(scope="module")
def f():
    return frame()


@pytest.fixture(scope="module")
def rows(f):
    return summarise(table(f), CLUSTERS, CONDITIONS, **ARGUMENTS)


def test_every_cell_and_metric_has_its_row_in_order(rows):
    metrics = ("logit_difference", "normalised_logit_difference", "probability")
    expected = list(product(metrics, ("denoising", "noising"), (2, 10), ("between", "last")))
    assert [(row["metric"], *row["conditions"].values()) for row in rows] == expected
    assert list(rows[0]["conditions"]) == CONDITIONS


def test_rows_are_plain_json(rows):
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert set(rows[0]) == {"conditions", "metric", "n", "n_clusters", "mean", "ci_low", "ci_high", "effect_size", "p",
                            "p_adjusted", "p_bh", "control_p", "excluded", "note"}
    assert {row["note"] for row in rows} == {row["control_p"] for row in rows} == {None}
    assert {type(row["n"]) for row in rows} == {int} and {type(row["conditions"]["layer"]) for row in rows} == {int}


def test_counts_means_and_effect_sizes_are_pandas(f, rows):
    for row in rows:
        cell, all_here = cell_of(f, row), {"last": PROMPTS, "between": 10}[row["conditions"]["role"]]
        assert (row["n"], row["n_clusters"]) == (len(cell), cell.cluster.nunique())
        assert row["excluded"] == all_here - len(cell)
        assert row["mean"] == pytest.approx(cell.difference.sum() / cell.scale.sum(), rel=1e-12)
        assert row["effect_size"] == pytest.approx(cell.difference.mean() / cell.difference.std(), rel=1e-12)
    assert sum(row["excluded"] for row in rows) > 4


def test_intervals_are_scipys_bca_over_clusters(f):
    for row in summarise(table(f), CLUSTERS, CONDITIONS, **ARGUMENTS | {"resamples": 20000}):
        sums = cell_of(f, row).groupby("cluster")[["difference", "scale"]].sum()
        theirs = scipy_stats.bootstrap((sums.difference, sums.scale), lambda x, y, axis=-1: x.sum(axis) / y.sum(axis),
                                       paired=True, n_resamples=20000, rng=np.random.default_rng(0),
                                       confidence_level=2 * scipy_stats.norm.cdf(reach(0.95, len(sums))) - 1)
        low, high = theirs.confidence_interval
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high), abs=0.08 * (high - low))   # Monte Carlo, far out


def test_p_values_are_those_of_every_flip_of_the_family(f, rows):
    families = {}
    for row in rows:
        families.setdefault((row["metric"], row["conditions"]["direction"]), []).append(row)
    assert len(families) == 6
    for family in families.values():
        sums = pd.concat([cell_of(f, row).groupby("cluster").difference.sum() for row in family], axis=1).fillna(0)
        sums_CK = sums.to_numpy()
        signs_RC = np.array(list(product([1, -1], repeat=len(sums_CK))))
        t_RK = np.abs(signs_RC @ (sums_CK / np.sqrt((sums_CK**2).sum(axis=0))))
        observed_K = t_RK[0] - 1e-9
        p_K = (t_RK >= observed_K).mean(axis=0)
        assert [row["p"] for row in family] == pytest.approx(p_K, abs=1e-12)
        assert [row["p_adjusted"] for row in family] == pytest.approx(
            (t_RK.max(axis=1)[:, None] >= observed_K).mean(axis=0), abs=1e-12)
        assert [row["p_bh"] for row in family] == pytest.approx(scipy_stats.false_discovery_control(p_K), abs=1e-12)


def test_noising_gives_the_published_ratio():
    """(LD_clean - LD_patched) / (LD_clean - LD_corrupt): the baseline is the clean run, full the corrupt one."""
    clean, corrupt, patched = np.array([5.0, 6, 4]), np.array([-3.0, -5, -4]), np.array([1.0, 2, -2])
    columns = {"prompt_id": ["p0", "p2", "p4"], "direction": ["noising"] * 3, "metric": ["logit_difference"] * 3,
               "value": patched, "baseline": clean, "full": corrupt}
    row = summarise(effects(columns), CLUSTERS, ["direction"], **ARGUMENTS)[1]
    assert row["metric"] == "normalised_logit_difference"
    assert row["mean"] == pytest.approx((clean - patched).mean() / (clean - corrupt).mean())
    assert row["ci_low"] < row["mean"] < row["ci_high"]


def test_one_row_does_not_depend_on_what_is_beside_it(f, rows):
    alone = summarise(table(f[f.metric == "probability"]), CLUSTERS, CONDITIONS, **ARGUMENTS | {"normalised": {}})
    assert alone == [row for row in rows if row["metric"] == "probability"]


def test_maps_of_the_same_numbers_are_resampled_apart(f):
    noising = f[f.direction == "noising"]
    twice = pd.concat([noising, noising.assign(direction="denoising")])
    found = summarise(table(twice), CLUSTERS, CONDITIONS, **ARGUMENTS)
    for metric in {row["metric"] for row in found}:
        a, b = ([row for row in found if (row["metric"], row["conditions"]["direction"]) == (metric, direction)]
                for direction in ("noising", "denoising"))
        assert [row["mean"] for row in a] == [row["mean"] for row in b]
        assert all(x["ci_low"] != y["ci_low"] for x, y in zip(a, b, strict=True))


def test_the_seed_decides_the_interval_and_nothing_else_does(f, rows):
    assert summarise(table(f), CLUSTERS, CONDITIONS, **ARGUMENTS) == rows
    other = summarise(table(f), CLUSTERS, CONDITIONS, **ARGUMENTS | {"seed": 1})
    assert all(a["ci_low"] != b["ci_low"] and a["mean"] == b["mean"] for a, b in zip(rows, other, strict=True))


def test_the_order_of_the_effects_does_not_matter(f, rows):
    shuffled = summarise(table(f.sample(frac=1, random_state=0)), CLUSTERS, CONDITIONS, **ARGUMENTS)
    for a, b in zip(rows, shuffled, strict=True):
        assert a["conditions"] == b["conditions"] and a["n"] == b["n"]
        assert [a["mean"], a["ci_low"], a["p"]] == pytest.approx([b["mean"], b["ci_low"], b["p"]], rel=1e-9)


def test_a_family_may_be_cut_finer(f, rows):
    finer = summarise(table(f), CLUSTERS, CONDITIONS, **ARGUMENTS, family=("direction", "layer", "site"))
    assert [row["p"] for row in finer] == [row["p"] for row in rows]        # exact, so free of the streams
    assert all(a["p_adjusted"] <= b["p_adjusted"] for a, b in zip(finer, rows, strict=True))
    assert sum(row["p_adjusted"] for row in finer) < sum(row["p_adjusted"] for row in rows)


def test_missing_numbers_are_none_and_the_note_says_why():
    columns = {"prompt_id": ["p0", "p1", "p2", "p0", "p2", "p4"], "layer": [0, 0, None, 1, 1, 1],
               "metric": ["logit_difference"] * 6, "value": [1.0, 2, 3, 0, 0, 0], "baseline": [0.0] * 6,
               "full": [TAU, -TAU, TAU, 9, 9, 9]}
    found = summarise(effects(columns), CLUSTERS, ["layer"], **ARGUMENTS)
    raw, unchanged, null, excluded = *found[:3], found[3]
    assert [row["conditions"]["layer"] for row in found[:3]] == [0, 1, None]
    assert (raw["n"], raw["n_clusters"], raw["mean"], raw["ci_low"], raw["p"]) == (2, 1, 1.5, None, 1)
    assert (raw["note"], null["note"], null["effect_size"]) == ("one cluster only", "one cluster only", None)
    assert (unchanged["mean"], unchanged["ci_low"], unchanged["ci_high"], unchanged["p"]) == (0, 0, 0, 1)
    assert unchanged["effect_size"] is None and unchanged["note"].startswith("no spread")
    assert (excluded["n"], excluded["excluded"], excluded["note"]) == (0, 2, "no prompts")
    assert {excluded[name] for name in ("mean", "ci_low", "ci_high", "effect_size", "p", "p_adjusted", "p_bh")} == {None}


def test_progress_counts_the_families(f):
    seen = []
    summarise(table(f), CLUSTERS, CONDITIONS, **ARGUMENTS, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_no_effects_give_no_rows(f):
    assert summarise(table(f[:0]), {}, CONDITIONS, **ARGUMENTS | {"normalised": {}}) == []


@pytest.mark.parametrize("change, message", [
    (dict(conditions=[]), "no conditions to tell the cells apart"),
    (dict(conditions=["direction", "site"]), "no column site"),
    (dict(normalised={"rank": "normalised_rank"}), "no metric rank to normalise; .* logit_difference, probability"),
    (dict(normalised={"logit_difference": "probability"}), "probability: a metric of the effects and"),
    (dict(clusters={k: v for k, v in CLUSTERS.items() if k != "p3"}), "1 prompts have no cluster, 'p3'"),
    (dict(conditions=["direction", "layer"]), "logit_difference/noising: 20 times a prompt has several effects"),
])
def test_what_cannot_be_summarised_is_refused(f, change, message):
    with pytest.raises(ValueError, match=message):
        summarise(**dict(effects=table(f), clusters=CLUSTERS, conditions=CONDITIONS) | ARGUMENTS | change)


def test_normalising_needs_the_full_column(f):
    with pytest.raises(ValueError, match="no column full"):
        summarise(table(f.drop(columns="full")), CLUSTERS, CONDITIONS, **ARGUMENTS)
