"""Information flow against one full forward a cell; the run that blocks nothing; windows, controls, timescales, groups."""
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mamba_mi import Knockout, Trace, UserError
from mamba_mi.cli import main
from mamba_mi.data import Batch, Prompt, batches
from mamba_mi.experiments import Setting, info_flow, knobs_of
from mamba_mi.experiments.info_flow import InfoFlow
from mamba_mi.measure.timescale import horizons
from tests.small import CONFIGS, small, tokens

L, SPANS = 14, {"bos": (0, 1), "subject": (3, 5)}
ALL_POLICIES = [("scan", "token"), ("scan", "token+conv"), ("conv", "token"), ("both", "token")]


def prompts(n=3, spans=SPANS, name="p", length=L):
    return [Prompt(f"{name}{i}", "", tuple(row.tolist()), "", 7 + i, spans, (7 + i, 3)[:1 + i % 2], wrong_id=20 + i)
            for i, row in enumerate(tokens(n, length))]


def flow(lm, items=(), **knobs) -> InfoFlow:
    experiment = InfoFlow(knobs_of(InfoFlow, {"name": "info_flow", "windows": [1, 2], **knobs}), lm, Setting(0, 1 << 30))
    experiment.check()
    experiment.batches(items)
    return experiment


def loud(variant):
    """In a fresh model a knockout moves little; here dt is large, so that it does."""
    lm = small(variant)
    for layer in lm.layers:
        (layer.dt_bias if variant == "mamba2" else layer.dt_proj.bias).add_(2)
        layer.conv1d.weight.mul_(3)
    return lm


def full_forward(lm, prompt, knockouts):
    """log p of every token after the prompt, by one pass over it alone."""
    with Trace(interventions=knockouts) as trace:
        logits = lm(torch.tensor([prompt.token_ids]), trace=trace)[0][0, -1, :lm.config.vocab_size]
    return logits.log_softmax(-1)


AT = {"none": [()], "last": [(13,)], "subject": [(3, 4)], "relation": [(1, 2, *range(5, 14))], "context": [(1, 2)], "subject+1": [(4, 5)]}


@pytest.mark.parametrize("variant, query, queries", [
    ("mamba1", "last", (13,)), pytest.param("mamba2", "last", (13,), marks=pytest.mark.slow),
    ("mamba2", "relation", (1, 2, *range(5, 14))), pytest.param("mamba1", "subject", (3, 4), marks=pytest.mark.slow)])
def test_every_cell_is_a_full_forward_with_that_knockout(variant, query, queries):
    lm, items = loud(variant), prompts()
    experiment = flow(lm, items, query=query, sources=[*AT, "random"])
    batch, = batches(items, 8)
    table = experiment.step(batch).to_pandas()
    at = AT | {"random": experiment.places(batch)["random"]}
    cells = ["source", "conv", "span", "window_start", "window_size"]
    assert len(table) == 3 * len(at) * 4 * 5 * 5 and not table.duplicated(["prompt_id", "metric", *cells]).any()
    moved = 0.0
    for (source, conv, span, start, size), rows in table.groupby(cells):
        for i, prompt in enumerate(items):
            own = rows[rows.prompt_id == prompt.prompt_id].set_index("metric")
            blocked = full_forward(lm, prompt, [Knockout(range(start, start + size), queries, at[source][i % len(at[source])], conv, span)])
            clean = full_forward(lm, prompt, [])
            p, p0 = (x[prompt.target_id].exp().item() for x in (blocked, clean))
            assert own.value["probability"] == pytest.approx(p, rel=1e-9) and own.baseline["probability"] == pytest.approx(p0, rel=1e-9)
            assert own.value["relative_probability"] == pytest.approx(100 * p / p0, rel=1e-9)
            assert own.baseline["relative_probability"] == 100
            assert own.value["hit"] == (blocked.argmax() == prompt.target_id) and own.baseline["hit"] == (clean.argmax() == prompt.target_id)
            assert own.value["log_probability"] == pytest.approx(np.log(p), rel=1e-9)
            assert own.value["logit_difference"] == pytest.approx((blocked[prompt.target_id] - blocked[prompt.wrong_id]).item(), abs=1e-9)
            moved = max(moved, abs(p / p0 - 1))
    assert moved > (1e-5 if query == "subject" else 0.02) and set(table["query"]) == {query} and set(table.split) == {"subject_later"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", CONFIGS)
def test_the_run_that_blocks_nothing_is_run_and_is_exactly_nothing(variant, dtype):
    lm, items = small(variant, dtype=dtype), prompts(5)
    experiment = flow(lm, items, sources=["none", "subject"])
    table = experiment.step(batches(items, 8)[0]).to_pandas()
    none = table[table.source == "none"]
    assert (none.value == none.baseline).all() and set(none[none.metric == "relative_probability"].value) == {100.0}
    cells, layers = 4, 2 * (3 * 1 + 2 * 2)  # policies; windows of one layer and of two, with a source and without
    assert experiment.setting.ledger.edits["knockout"] == cells * layers


def test_a_run_that_blocks_nothing_and_changes_something_is_an_error():
    clean = torch.tensor([[[0.5, 1.0, -0.7, 2.0]]], dtype=torch.float64)
    for change, bad in ((1e-6, False), (3e-3, True), (float("nan"), True)):
        off = clean.clone()
        off[..., 2] += change
        names = ["probability", "relative_probability", "hit", "log_probability", "logit_difference"]
        if bad:
            with pytest.raises(RuntimeError, match="blocks nothing is off"):
                info_flow._demand_rounding(off, clean, names, torch.float32)
        else:
            info_flow._demand_rounding(off, clean, names, torch.float32)


def test_a_tables_baseline_is_the_same_run_without_sources_even_if_nobody_asked_for_it():
    lm, items = small("mamba2"), prompts()
    asked, without = (flow(lm, items, sources=names).step(batches(items, 8)[0]).to_pandas()
                      for names in (["none", "subject"], ["subject"]))
    assert set(without.source) == {"subject"} and len(asked) == 2 * len(without)
    np.testing.assert_allclose(asked[asked.source == "subject"].value, without.value, rtol=1e-12)


@pytest.mark.parametrize("asked, depth, want", [
    ([9, 15], 24, [9, 15]), ([9, 15], 48, [9, 15]), ([9, 15], 6, [2, 3]), ([9, 15], 2, [1]), ([9, 15], 12, [4, 7]),
    ([3], 6, [3]), ([9], 12, [9]), ([9], 6, [2]), ([15], 12, [7]), ([2, 2], 6, [2])])
def test_published_windows_are_scaled_for_shallow_models_and_others_taken_as_given(asked, depth, want):
    experiment = InfoFlow(knobs_of(InfoFlow, {"windows": asked}), small("mamba2", n_layer=depth, d_model=16), Setting(0, 1 << 30))
    assert experiment.windows == want and experiment.check() is None
    starts = {cell.window_size: [] for cell in experiment.cells(["last"])}
    for cell in experiment.cells(["last"]):
        starts[cell.window_size].append(cell.window_start)
    assert {size: sorted(set(found)) for size, found in starts.items()} == {n: list(range(depth - n + 1)) for n in want}
    assert ("scaled" in experiment.setting_in_words()["windows"]) == (asked != want and set(asked) <= {9, 15})


@pytest.mark.parametrize("knobs, said", [
    ({"windows": [4]}, "windows=\\[4\\]: a window of 4 layers: this model has 3"), ({"windows": []}, "at least one"),
    ({"windows": [0]}, "a window of 0"), ({"query": "lst"}, "did you mean 'last'"), ({"conv": ["bth"]}, "did you mean 'both'"),
    ({"span": ["token+conv"], "conv": ["both"]}, "add scan to method.conv"), ({"timescales": ["slo"]}, "did you mean 'slow'"),
    ({"metrics": ["hit"]}, "must hold relative_probability"), ({"query_conv": True, "conv": ["scan"]}, "query_conv"),
    ({"sources": []}, "give all or a list"), ({"sources": "subject"}, "give all or a list"), ({"reference": 0}, "at least 1"),
    ({"sources": ["subjct"]}, "these prompts have none, last.*did you mean 'subject'"), ({"sources": ["last", "last"]}, "each once"),
])
def test_a_wrong_knob_is_one_clear_line(knobs, said):
    with pytest.raises(UserError, match=said) as caught:
        flow(small("mamba1"), prompts(), **knobs)
    assert "\n" not in str(caught.value)


def test_controls_are_each_prompts_own_and_the_same_in_whatever_batch():
    items, lm = prompts(6), small("mamba2")
    whole = flow(lm, items).places(batches(items, 8)[0])
    parts = [flow(lm, items).places(batch) for batch in batches(items, 2)]
    for name in ("random", "beyond_conv"):
        assert whole[name] == [at for part in parts for at in part[name]] and len(set(whole[name])) > 2
        assert all(len(at) == 2 and not {3, 4, 13} & set(at) for at in whole[name])
    assert not {5, 6, 7} & {p for at in whole["beyond_conv"] for p in at}
    other = InfoFlow(knobs_of(InfoFlow, {}), lm, Setting(1, 1 << 30))
    other.batches(items)
    assert other.places(batches(items, 8)[0])["random"] != whole["random"]


def test_a_prompt_that_lacks_a_source_is_left_out_of_that_curve_alone():
    items = [*prompts(2, name="a"), *prompts(3, {"bos": (0, 1), "subject": (1, 3)}, "b"), *prompts(2, {}, "c", 6)]
    experiment = flow(small("mamba2"), items, conv=["scan"], span=["token"])
    tables = [experiment.step(batch).to_pandas() for batch in batches(items, 8)]
    n = {name: len({i for t in tables for i in t[t.source == name].prompt_id}) for name in experiment.sources}
    assert n == {**dict.fromkeys(("none", "last", "second_to_last", "first"), 7), "context": 2,
                 **dict.fromkeys(("subject", "relation", "relation_without_last", "random", "beyond_conv"), 5)}
    assert [set(t.split.dropna()) for t in tables] == [set(), {"subject_first"}, {"subject_later"}]


def test_a_prompt_counts_once_in_all_and_once_where_its_subject_stands():
    items = [*prompts(2, name="a"), *prompts(3, {"bos": (0, 1), "subject": (1, 3)}, "b"), *prompts(2, {"key": (2, 3)}, "c")]
    experiment = flow(small("mamba2"), items, sources=["last"], conv=["scan"], span=["token"], metrics=["relative_probability"])
    kept = pa.concat_tables([experiment.step(batch) for batch in experiment.batches(items)])
    grouped = InfoFlow.in_groups(kept)
    by = {name: sorted(set(rows.prompt_id)) for name, rows in grouped.to_pandas().groupby("split")}
    assert by == {"all": ["a0", "a1", "b0", "b1", "b2", "c0", "c1"], "subject_later": ["a0", "a1"], "subject_first": ["b0", "b1", "b2"]}
    assert len(grouped) == len(kept) + 5 * 5 and grouped.schema.names == kept.schema.names and kept["split"].null_count == 10


@pytest.mark.parametrize("variant, part", [("mamba2", "heads"), ("mamba1", "channels")])
def test_a_timescale_blocks_that_third_of_every_layer(variant, part):
    lm, items = loud(variant), prompts()
    experiment = flow(lm, items, sources=["subject"], conv=["both"], span=["token"], timescales=["all", "slow", "mid", "fast"])
    table = experiment.step(batches(items, 8)[0]).to_pandas()
    order = [h.argsort(descending=True).tolist() for h in horizons(lm, items)]
    size = len(order[0]) / 3
    third = {"all": [o for o in order], "slow": [o[:-(-len(o) // 3)] for o in order], "fast": [o[-int(size):] for o in order]}
    for name, chosen in third.items():
        for start, rows in table[(table.timescale == name) & (table.window_size == 2) & (table.metric == "probability")].groupby("window_start"):
            knocked = [Knockout(layer, 13, (3, 4), "both", **{part: tuple(chosen[layer])}) for layer in (start, start + 1)]
            want = [full_forward(lm, p, knocked)[p.target_id].exp().item() for p in items]
            np.testing.assert_allclose(rows.sort_values("prompt_id").value, want, rtol=1e-9)
    kept = experiment.artefacts()["timescales"]
    assert kept["of"] == part and list(kept["layers"][0]["slow"]) == sorted(third["slow"][0]) and kept["prompts"] == 3


def test_whole_answers_and_masks_of_their_width():
    lm, items = small("mamba2"), prompts(4)
    table = flow(lm, items, sources=["random"], metrics=["relative_probability", "target_logprob"]).step(batches(items, 8)[0])
    assert set(table["metric"].to_pylist()) == {"relative_probability", "target_logprob"}


def test_the_dry_run_counts_what_is_run():
    items, lm = prompts(4), small("mamba2")
    experiment = flow(lm, items, sources=["last", "subject"], conv=["scan"], span=["token"])
    batch, = batches(items, 8)
    assert experiment.cost(batch) == (3 * 5 * 4, 3 * (3 + 2 + 1 + 3 + 2) * 4)
    assert isinstance(batch, Batch)


def test_a_sweep_over_seeds_keeps_all_and_the_splits(tmp_path, monkeypatch, capsys):
    words = ["-m", "seed=0,1", "experiment=info_flow", "dataset.n=8", "method.sources=[none,subject,random]", "method.windows=[5]",
             "method.conv=[scan,both]", "method.resamples=100", "threads=1", f"paths.logs={tmp_path}/l", f"paths.sweeps={tmp_path}/s"]
    monkeypatch.setattr(sys, "argv", ["launch.py", *words])
    main()
    runs = [path.parent for path in (tmp_path / "l").glob("info_flow/tiny/*/manifest.json")]
    sweep, = (tmp_path / "s").glob("info_flow/*")
    own = [json.loads((run / "summary.json").read_text()) for run in runs]
    pooled = json.loads((sweep / "summary.json").read_text())
    for split in ("all", "subject_later"):
        n = [next(r["n"] for r in rows if r["conditions"]["split"] == split) for rows in (*own, pooled)]
        assert n[2] == n[0] + n[1] and (split != "all" or n == [8, 8, 16])
    effects = pq.read_table(runs[0] / "effects.parquet")
    assert "all" not in effects["split"].to_pylist() and len(set(effects["prompt_id"].to_pylist())) == 8
    none = [r for r in own[0] if r["conditions"]["source"] == "none"]
    assert none and all((r["mean"], r["ci_low"], r["ci_high"]) == (0, 0, 0) for r in none)
    assert {p.name for p in (runs[0] / "figures").glob("*.png")} == {"info_flow.png", "info_flow_bands.png", "info_flow_smear.png",
                                                                    "info_flow_splits.png"}
    said = capsys.readouterr().out
    assert "Blocking nothing" in said and "The conv of the subject" in said
