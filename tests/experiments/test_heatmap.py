"""Knockout heatmaps: every cell against a whole pass of its own, some against M written out; choosing and averaging by hand."""
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from oracles import Knock, knocked

from mamba_mi import Knockout, Trace, load
from mamba_mi.cli import main
from mamba_mi.config import UserError
from mamba_mi.data import Batch, Dataset, Pair, Prompt
from mamba_mi.experiments import Setting, knobs_of
from mamba_mi.experiments.heatmap import Heatmap, mean_by_role
from mamba_mi.measure.effects import effects
from tests.interventions.test_knockout import V, model, published
from tests.small import small, tokens

L, SPANS = 9, {"bos": (0, 1), "subject": (3, 6)}
RIGHT, WRONG = 7, 20


def prompts(n: int = 3, length: int = L, spans=SPANS, start: int = 0) -> list[Prompt]:
    """The second has no wrong answer to be compared with."""
    return [Prompt(f"p{start + i}", "", tuple(row), "x", RIGHT + i, spans, (RIGHT + i, 1, 2)[:1 + i], f"s{i}",
                   wrong_id=None if i == 1 else WRONG + i) for i, row in enumerate(tokens(n, length, seed=start).tolist())]


def heatmap(lm, **knobs) -> Heatmap:
    experiment = Heatmap(knobs_of(Heatmap, {"name": "heatmap", **knobs}), lm, Setting(0, 1 << 30))
    experiment.check()
    return experiment


def softmax(logits):
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


@pytest.mark.parametrize("variant", ["mamba1", "mamba2"])
def test_every_cell_is_a_whole_pass_with_that_one_knockout(variant):
    lm, batch = model(variant), Batch(tuple(prompts()), "0")
    table = heatmap(lm, window=2, conv=["scan", "both"], span=["token", "token+conv"]).step(batch).to_pandas()
    found = {metric: rows.set_index(["conv", "span", "position", "window_start", "prompt_id"]) for metric, rows in
             table.groupby("metric")}
    assert {metric: len(rows) for metric, rows in found.items()} == {
        "probability": 2 * 2 * L * 2 * 3, "relative_probability": 2 * 2 * L * 2 * 3, "hit": 2 * 2 * L * 2 * 3,
        "log_probability": 2 * 2 * L * 2 * 3, "logit_difference": 2 * 2 * L * 2 * 2}
    assert all(rows.index.is_unique for rows in found.values()) and set(table.window_size) == {2} and set(table.source) == {"token"}
    clean, moved = lm(batch.tokens_BL)[0][:, -1, :V].numpy(), 0.0
    for conv, span, position, start in {key[:4] for key in found["probability"].index}:
        with Trace(interventions=[Knockout((start, start + 1), -1, position, conv, span)]) as trace:
            logits = lm(batch.tokens_BL, trace=trace)[0][:, -1, :V].numpy()
        for i, p in enumerate(batch.prompts):
            at, own, base = (conv, span, position, start, p.prompt_id), softmax(logits[i])[RIGHT + i], softmax(clean[i])[RIGHT + i]
            assert found["probability"].loc[at].value == pytest.approx(own, rel=1e-9)
            assert found["probability"].loc[at].baseline == pytest.approx(base, rel=1e-9)
            assert found["relative_probability"].loc[at].value == pytest.approx(100 * own / base, rel=1e-9)
            assert found["log_probability"].loc[at].value == pytest.approx(np.log(own), rel=1e-9)
            assert found["hit"].loc[at].value == float(logits[i].argmax() == RIGHT + i)
            if p.wrong_id is not None:
                difference = logits[i, RIGHT + i] - logits[i, WRONG + i]
                assert found["logit_difference"].loc[at].value == pytest.approx(difference, rel=1e-8, abs=1e-10)
            moved = max(moved, abs(own / base - 1))
    assert moved > 0.1


@pytest.mark.parametrize(("conv", "position", "start"), [("scan", 4, 1), ("both", 5, 0)])
@pytest.mark.parametrize("variant", ["mamba1", "mamba2"])
def test_a_cell_is_m_written_out_without_that_entry(variant, conv, position, start):
    lm, batch = model(variant), Batch(tuple(prompts()), "0")
    rows = heatmap(lm, window=2, conv=[conv], metrics=["probability"]).step(batch).to_pandas()
    rows = rows[(rows.position == position) & (rows.window_start == start)].set_index("prompt_id").value
    for i, p in enumerate(batch.prompts):
        knock = Knock((start, start + 1), frozenset([L - 1]), frozenset([position]), conv)
        logits = knocked(*published(lm), list(p.token_ids), [knock])[-1, :V]
        assert rows[p.prompt_id] == pytest.approx(softmax(logits)[RIGHT + i], rel=1e-9)


def test_of_a_long_answer_no_token_may_read_the_source():
    lm, batch = model("mamba2"), Batch(tuple(prompts()), "0")
    rows = heatmap(lm, window=3, metrics=["probability", "target_logprob"]).step(batch).to_pandas()
    rows = rows[rows.position == 4].set_index(["metric", "prompt_id"]).value
    for p in batch.prompts:
        text = torch.tensor([[*p.token_ids, *p.target_ids]])
        with Trace(interventions=[Knockout((0, 1, 2), tuple(range(L - 1, text.shape[1])), 4)]) as trace:
            log_p = lm(text, trace=trace)[0][0, L - 1:-1, :V].log_softmax(-1)
        own = log_p[range(len(p.target_ids)), list(p.target_ids)]
        assert rows["target_logprob", p.prompt_id] == pytest.approx(own.sum().item(), rel=1e-9)
        assert rows["probability", p.prompt_id] == pytest.approx(own[0].exp().item(), rel=1e-9)


def test_a_prompts_tokens_of_one_role_are_one_number_before_prompts_are_averaged():
    shared = {"source": "token", "conv": "scan", "span": "token", "window_start": 0, "window_size": 2, "metric": "hit"}
    rows = [("a", 1, "pre_subject", 1.0), ("a", 2, "pre_subject", 0.0), ("a", 3, "pre_subject", 0.5), ("a", 4, "last", 0.25),
            ("b", 1, "pre_subject", 0.8), ("b", 2, "last", 0.1)]
    table = effects({"prompt_id": [r[0] for r in rows], "position": [r[1] for r in rows], "role": [r[2] for r in rows],
                     "value": [r[3] for r in rows], "baseline": [1.0] * 6, **{k: [v] * 6 for k, v in shared.items()}})
    averaged = {(r["prompt_id"], r["role"]): (r["value"], r["baseline"]) for r in mean_by_role(table).to_pylist()}
    assert averaged == {("a", "pre_subject"): (0.5, 1), ("a", "last"): (0.25, 1), ("b", "pre_subject"): (0.8, 1), ("b", "last"): (0.1, 1)}


def test_prompts_are_chosen_by_number_or_id_in_the_order_asked_for():
    lm, items = small("mamba2"), prompts(5)
    by_number, why = heatmap(lm, window=1, prompts=[3, 0]).choose(items)
    assert ([p.prompt_id for p in by_number], why) == (["p3", "p0"], "not among method.prompts")
    assert [p.prompt_id for p in heatmap(lm, window=1, prompts=["p4", "p1"]).choose(items)[0]] == ["p4", "p1"]
    everything, _ = heatmap(lm, window=1).choose(items)
    assert list(everything) == items


@pytest.mark.parametrize("variant", ["mamba1", "mamba2"])
def test_the_best_are_those_of_highest_probability_whatever_their_layout(variant):
    lm, items = model(variant), [*prompts(4), *prompts(3, 6, {"subject": (1, 3)}, start=4)]
    p = {item.prompt_id: softmax(lm(torch.tensor([item.token_ids]))[0][0, -1, :V].numpy())[item.target_id] for item in items}
    best, why = heatmap(lm, window=1, best=3, batch=2).choose(items)
    assert [item.prompt_id for item in best] == sorted(p, key=lambda name: -p[name])[:3]
    assert why == "not among the 3 of highest probability"


def test_only_prompts_named_by_id_are_looked_at():
    lm, items = small("mamba2"), prompts(5)
    dataset, pairs = Dataset("facts", tuple(items), ""), Dataset("pairs", (), "", tuple(Pair(p, p) for p in items))
    asked = heatmap(lm, window=1, prompts=["p4", "p1"])
    assert [p.prompt_id for p in asked.candidates(lambda: dataset).prompts] == ["p1", "p4"]
    assert [pair.clean.prompt_id for pair in asked.candidates(lambda: pairs).pairs] == ["p1", "p4"]
    assert heatmap(lm, window=1, prompts=[4, 1]).candidates(lambda: dataset) is dataset
    with pytest.raises(UserError, match=r"method.prompts=\[p9\]: dataset=facts has no such prompt_id among its 5 usable ones, p0"):
        heatmap(lm, window=1, prompts=["p9"]).candidates(lambda: dataset)


def test_the_tokens_are_kept_as_they_are_written():
    experiment = heatmap(load("tiny"), window=1)
    ids = experiment.lm.tokenizer("Petra Wesova works", add_special_tokens=False).input_ids
    experiment.choose([Prompt("p", "", tuple(ids), "", 0)])
    assert experiment.artefacts() == {"tokens": {"p": ["Petra", "Wes", "##ova", "works"]}}


@pytest.mark.parametrize(("window", "layers", "size"), [(5, 3, 1), (5, 5, 5), (5, 6, 5), (3, 3, 3), (1, 3, 1)])
def test_the_default_window_shrinks_where_it_does_not_fit_and_no_other_does(window, layers, size):
    experiment = heatmap(small("mamba2", n_layer=layers), window=window)
    assert experiment.size == size
    cells = experiment.cells(Batch(tuple(prompts(1)), "0"))
    assert len(cells) == L * (layers - size + 1) and {c["window_start"] for c in cells} == set(range(layers - size + 1))


@pytest.mark.parametrize(("knobs", "said"), [
    ({"window": 4}, "method.window=4: .* has 3 layers that mix tokens; give 1-3"), ({"window": 0}, "give 1-3"),
    ({"conv": ["sacn"]}, "did you mean 'scan'"), ({"span": []}, "at least one"), ({"query": "subject"}, "there are last"),
    ({"metrics": ["probabilty"]}, "did you mean 'probability'"), ({"metrics": ["kl"]}, "there are"), ({"best": 0}, "at least 1"),
    ({"prompts": []}, "give numbers"), ({"prompts": 3}, "give numbers"), ({"prompts": [0, "p1"]}, "give numbers"),
    ({"prompts": [1, 1]}, "each prompt once"), ({"prompts": [1], "best": 2}, "give one of them"), ({"resamples": 3}, "at least 20")])
def test_a_wrong_knob_is_one_clear_line(knobs, said):
    with pytest.raises(UserError, match=said) as caught:
        heatmap(small("mamba2"), **{"window": 1, **knobs})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("knobs", "said"), [
    ({"prompts": [0, 7]}, r"method.prompts=\[7\]: 3 prompts were chosen, 0-2"), ({"prompts": [-1]}, "0-2"),
    ({"prompts": ["p0", "p7"]}, r"\['p7'\]: not among the prompts in use"), ({"best": 4}, "method.best=4: there are 3 prompts")])
def test_prompts_that_are_not_there_are_an_error_before_anything_is_measured(knobs, said):
    with pytest.raises(UserError, match=said):
        heatmap(small("mamba2"), window=1, **knobs).choose(prompts(3))


def test_a_logit_difference_alone_needs_wrong_answers():
    experiment = heatmap(small("mamba2"), window=1, metrics=["logit_difference"])
    with pytest.raises(UserError, match="name no wrong answer"):
        experiment.choose(prompts(2)[1:])
    assert experiment.figures == ("heatmap_mean",) and experiment.metric == "logit_difference"


def test_a_dry_run_counts_every_cell_and_the_layers_its_last_token_passes():
    experiment = heatmap(small("mamba2"), window=2)
    jobs, token_layers = experiment.cost(Batch(tuple(prompts(2)), "0"))
    assert jobs == 2 * L * 2
    assert token_layers == 2 * (L * 3 + L * (3 + 2))  # the clean run, then the last token alone from each window on


def test_a_run_measures_and_draws_the_prompts_that_were_chosen_and_lists_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["launch.py", "experiment=heatmap", "dataset.n=6", "method.prompts=[4,1]", "method.resamples=50",
                                     "method.metrics=[probability,relative_probability]", f"paths.logs={tmp_path}"])
    main()
    folder = next(tmp_path.glob("heatmap/tiny/*/manifest.json")).parent
    records = json.loads((folder / "prompts.json").read_text())
    kept = [record for record in records if record["kept"]]
    assert [record["why"] for record in records].count("not among method.prompts") == 4 and len(kept) == 2
    table = pq.ParquetFile(folder / "effects.parquet").read().to_pandas()
    assert set(table.prompt_id) == {record["prompt_id"] for record in kept}
    assert len(table) == sum(2 * len(record["token_ids"]) * 2 for record in kept) and set(table.window_size) == {5}
    drawn = {path.name for path in (folder / "figures").glob("*.png")}
    assert drawn == {"heatmap_mean.png", "heatmap_prompts.png", "heatmap_normalised.png"}
    assert "there are only 2, which say little about where" in (folder / "report.html").read_text()


def test_a_sweep_puts_together_prompts_and_not_their_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["launch.py", "-m", "seed=0,1", "experiment=heatmap", "dataset.n=4", "method.resamples=50",
                                     "method.metrics=[hit]", f"paths.logs={tmp_path}/logs", f"paths.sweeps={tmp_path}/sweeps"])
    main()
    summary = json.loads(next(tmp_path.glob("sweeps/heatmap/*/summary.json")).read_text())
    assert {row["n"] for row in summary if row["conditions"]["role"] == "last"} == {8}
