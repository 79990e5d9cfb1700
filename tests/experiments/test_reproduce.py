"""experiment=reproduce through the command line: what brute force published is met, one changed number is found and named."""
import contextlib
import copy
import io
import json
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from mamba_mi import models
from mamba_mi.cli import main
from mamba_mi.experiments._reproduce_cells import blocked
from mamba_mi.models.checkpoints import read_config
from tests.experiments.reproducing import CONFIGS, PROMPTS, checkpoint, made, write

CELLS = 2 + 9 * 3
ONE = pytest.mark.parametrize("model", ["mamba2"], indirect=True)  # what is said of a run is no matter of the variant


def launch(monkeypatch, *overrides):
    monkeypatch.setattr(sys, "argv", ["launch.py", "experiment=reproduce", "method.resamples=100", *map(str, overrides)])
    main()


@pytest.fixture(scope="module", params=CONFIGS)
def model(request, tmp_path_factory):
    """A checkpoint and what brute force makes of it."""
    folder = checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    return folder, made(folder, request.param)


def run(monkeypatch, place, model, reference, *more):
    words = [f"model.path={model}", f"model.variant={read_config(model).config.variant}", f"reference.path={write(reference, place / 'mine.json')}", f"paths.logs={place / 'logs'}"]
    launch(monkeypatch, *words, *more)
    return next((place / "logs").glob("reproduce/*/*/manifest.json")).parent


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    """The whole reference on its own checkpoint: the place, the run's folder, what the console said."""
    place, said = tmp_path_factory.mktemp("done"), io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(said):
        folder = run(monkeypatch, place, *model, "method.tolerance=1e-5")
    return place, folder, said.getvalue()


def test_what_brute_force_gives_is_met_in_every_number(done):
    _, folder, said = done
    compared = json.loads((folder / "artifacts" / "reproduce.json").read_text())
    assert len(compared["items"]) == CELLS and compared["not_computed"] == []
    assert all(item["agree"] == item["of"] == item["n"] == len(PROMPTS) for item in compared["items"])
    assert f"Every published number is met: {3 * CELLS} of {3 * CELLS}" in said and "ours" in said and "published" in said
    assert {"reproduce_curves.png", "reproduce_scatter.png"} <= {p.name for p in (folder / "figures").iterdir()}
    spread = {item["published"] for item in compared["items"] if item["window_start"] is not None}
    assert len(spread) > 20, "the knockouts must differ for their agreement to say anything"


def test_the_effects_have_their_ordinary_meaning_and_the_summary_the_published_mean(done):
    _, folder, _ = done
    table = pq.read_table(folder / "effects.parquet").to_pandas()
    bare = table[(table.source == "none") & (table.metric == "probability")].set_index("prompt_id")
    assert (bare.value == bare.baseline).all()
    blocked_ = table[(table.source == "subject") & (table["query"] == "last") & table.timescale.isna() & (table.metric == "probability")]
    for row in blocked_.itertuples():
        assert row.baseline == pytest.approx(bare.value[row.prompt_id], rel=1e-5)
    summary = json.loads((folder / "summary.json").read_text())
    items = json.loads((folder / "artifacts" / "reproduce.json").read_text())["items"]
    found = {tuple(row["conditions"].values()): row["mean"] for row in summary if row["metric"] == "relative_probability"}
    changes = [item for item in items if item["unit"] == "change in %"]
    assert len(changes) == len(found) == 27
    for item in changes:
        key = tuple(item[name] for name in ("query", "source", "timescale", "window_size", "window_start"))
        assert found[key] == pytest.approx(item["ours"], abs=1e-6)


def test_changed_numbers_are_found_and_named(model, tmp_path, monkeypatch, capsys):
    folder, reference = model
    changed = copy.deepcopy(reference)
    changed["numbers"][2]["values"][1][2] += 0.01  # subject to last
    changed["numbers"][-1]["values"][0][1] += 0.01  # the same in two thirds of the heads
    run(monkeypatch, tmp_path, folder, changed)
    said = " ".join(capsys.readouterr().out.split())
    assert f"Not every published number is met: {3 * CELLS - 2} of {3 * CELLS}" in said and "2 off" in said
    assert "Off: subject to last, layers 1-2: probability of c: ours" in said
    assert "Off: subject to last, layers 0-1, fastest third kept: probability of b: ours" in said


@ONE
def test_a_run_that_is_done_tells_its_comparison_again(model, done, monkeypatch, capsys):
    place, _, first = done
    run(monkeypatch, place, *model, "method.tolerance=1e-5")
    again = capsys.readouterr().out
    assert "already done" in again and again.endswith(first[first.index("Does this model"):])


@ONE
def test_a_reference_that_has_changed_under_its_name_is_not_taken_for_the_old_one(model, done, monkeypatch, capsys):
    (place, _, _), (folder, reference) = done, model
    changed = copy.deepcopy(reference)
    changed["numbers"][0]["values"][0] += 0.01
    with pytest.raises(SystemExit):
        run(monkeypatch, place, folder, changed, "method.tolerance=1e-5")
    assert "force=true" in capsys.readouterr().err


@ONE
def test_a_demanded_tolerance_that_is_missed_is_exit_code_1_with_the_run_kept(model, tmp_path, monkeypatch, capsys):
    folder, reference = model
    changed = copy.deepcopy(reference)
    changed["numbers"][0]["values"][0] += 0.01
    few = ("method.numbers=[answers]", "method.tolerance=0.005")
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, tmp_path, folder, changed, *few)
    assert ended.value.code == 1
    kept = next((tmp_path / "logs").glob("reproduce/*/*/manifest.json")).parent
    assert json.loads((kept / "manifest.json").read_text())["status"] == "failed" and (kept / "report.html").exists()
    said = capsys.readouterr()
    assert "1 of 2 published numbers are further from ours, the first nothing blocked: probability" in said.err


@ONE
def test_a_sweep_tells_each_runs_verdict(model, tmp_path, monkeypatch):
    folder, reference = model
    changed = copy.deepcopy(reference)
    changed["numbers"][0]["values"][0] += 0.01
    paths = ",".join(str(write(r, tmp_path / name)) for name, r in (("good.json", reference), ("bad.json", changed)))
    launch(monkeypatch, "-m", f"reference.path={paths}", f"model.path={folder}", f"paths.logs={tmp_path / 'logs'}",
           f"paths.sweeps={tmp_path / 'sweeps'}", "method.numbers=[answers]")
    said = next((tmp_path / "sweeps").glob("*/*/report.html")).read_text()
    assert "Every published number is met: 6 of 6" in said and "Not every published number is met: 5 of 6" in said


@ONE
def test_a_dry_run_counts_the_knockouts(model, tmp_path, monkeypatch, capsys):
    folder, reference = model
    path = write(reference, tmp_path / "mine.json")
    launch(monkeypatch, f"model.path={folder}", f"reference.path={path}", "dry_run=true")
    assert f"{3 * 28} " in capsys.readouterr().out.replace(",", " ")  # 3 prompts, 27 knockouts and none


@pytest.mark.parametrize("variant", CONFIGS)
def test_all_but_slow_leaves_the_slowest_third_its_sources_and_all_but_fast_the_fastest(variant, tmp_path):
    """The published mask is of those that keep the sources, though it is called by the decay it is said to block."""
    lm = models.load(checkpoint(tmp_path, variant))
    decay_H = torch.exp(-lm.layers[1].A_log.exp()).reshape(len(lm.layers[1].A_log), -1).sum(dim=1)
    H = len(decay_H)
    for timescale, slow in (("all_but_slow", True), ("all_but_fast", False)):
        gone = set(blocked(lm, 1, timescale))
        kept = [h for h in range(H) if h not in gone]
        assert len(kept) == H // 3 >= 1
        inside, outside = decay_H[kept], decay_H[sorted(gone)]
        assert inside.min() >= outside.max() if slow else inside.max() <= outside.min()


def test_it_is_not_repeated_on_another_model(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        launch(monkeypatch)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "model=tiny; it has some for mamba-130m, mamba2-130m" in err and "reference.path=FILE" in err
    assert not Path("experiment_logs").exists()


@pytest.mark.parametrize("given", ["reference=published", "reference.path=mine.json"])
def test_a_reference_goes_with_no_other_experiment(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["launch.py", "experiment=patching", given, f"paths.logs={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        main()
    err = capsys.readouterr().err
    assert ended.value.code == 1 and err.startswith(f"error: {given}: experiment=patching") and "experiment=reproduce" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words, said", [
    (["reference=none"], "reference=none: there are knockout-130m, mamba2-1.3b-gold, published"),
    (["reference.path=nowhere.json"], "reference.path=nowhere.json: no such file"),
    (["model=mamba2-130m", "model.path=HERE", "model.tokenizer=null"], "mamba2-130m is a mamba2 of 24 layers, and this checkpoint is a mamba2 of 4"),
    (["model=mamba2-1.3b", "reference=mamba2-1.3b-gold", "model.path=HERE", "model.tokenizer=null"], "mamba2-1.3b is a mamba2 of 48 layers"),
    (["reference.path=OWN", "model.path=HERE", "method.numbers=[mean]"], "did you mean 'means'"),
    (["reference.path=OWN", "model.path=HERE", "method.numbers=[means]"], "has answers, knockouts only"),
    (["reference.path=OWN", "model.path=HERE", "method.tolerance=-1"], "give a number from 0 on, or null"),
    (["reference.path=DEEP", "model.path=HERE"], "a window of 2 layers that starts in layer 3; this model has layers 0-3"),
    (["reference.path=ROW"], "this is dataset=facts; give dataset=counterfact"),
    (["reference.path=BOS", "model.path=HERE", "model.tokenizer=NO_MARK"], "prompt a .*the tokenizer names no BOS token"),
])
def test_what_does_not_go_is_one_line_and_leaves_nothing(words, said, tmp_path, monkeypatch, capsys):
    places = {"HERE": checkpoint(tmp_path, "mamba2")}
    bare = {"metric": "probability", "values": [0.5]}
    text = {"id": "a", "text": PROMPTS[0][1], "subject": PROMPTS[0][2], "target": PROMPTS[0][3]}
    knocked = {"metric": "probability", "query": "last", "source": "subject", "window_size": 2, "values": [[0.4]] * 4}
    known = {"id": "a", "text": "Bram Weskin likes to play music on the", "subject": "Bram Weskin", "target": "guitar"}  # to that tokenizer
    for name, prompt, numbers in (("OWN", text, [bare, knocked | {"values": [[0.4]]}]), ("DEEP", text, [bare, knocked]),
                                  ("ROW", {"row": 3}, [bare]), ("BOS", known | {"bos": True}, [bare])):
        places[name] = write({"prompts": [prompt], "numbers": numbers}, tmp_path / f"{name}.json")
    places["NO_MARK"] = tmp_path / "tokenizer.json"
    places["NO_MARK"].write_text((models.EMBEDDED["tiny"] / "tokenizer.json").read_text().replace("<bos>", "<begin>"))
    given = [word.replace(word.rpartition("=")[2], str(places.get(word.rpartition("=")[2], word.rpartition("=")[2]))) for word in words]
    with pytest.raises(SystemExit):
        launch(monkeypatch, *given, f"paths.logs={tmp_path / 'logs'}")
    err = capsys.readouterr().err
    assert re.search(said, err) and err.count("\n") == 1 and not (tmp_path / "logs").exists()
