"""The report of a sweep: the difference in words, table and figure; every job with its end; all text escaped."""
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import columns, drawing, planned, settings, write_drawn, write_manifest, write_run

from mamba_mi.cli import sweeping
from mamba_mi.runs import aggregate

from .test_families import MAMBA, RETNET
from .test_figures import shown


def sweep_of(folder, runs):
    """A concluded sweep; a run is (swept, settings, effects or None for a failed job)."""
    sweep = planned(folder / "sweep", [(swept, config) for swept, config, _ in runs])
    for number, (_, config, data) in enumerate(runs):
        aggregate.note(sweep, number, "running")
        if data is None:
            aggregate.note(sweep, number, "failed", "<b>no such folder</b>")
        else:
            data() if callable(data) else write_run(config, data)
            aggregate.note(sweep, number, "done")
    sweeping.conclude(sweep)
    return sweep


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two models, three seeds; the last job failed."""
    folder = tmp_path_factory.mktemp("two")
    runs = [({"model": model, "seed": str(seed)}, settings(seed, model, logs=str(folder / "logs")), columns(seed, late=late))
            for model, late in (("tiny", 0.3), ("<i>other</i>", 0.7)) for seed in range(3)]
    runs[-1] = (*runs[-1][:2], None)
    return sweep_of(folder, [(swept, {**config, "model": {**config["model"], "name": config["model"]["name"].strip("<i>/")}},
                              data) for swept, config, data in runs])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder, runs = tmp_path_factory.mktemp("drawn"), []
    for draw in range(25):
        config = drawing(draw, logs=str(folder / "logs"))
        runs.append(({"method.draw": str(draw)}, config, lambda c=config, d=draw: write_drawn(c, d)))
    return sweep_of(folder, runs)


def page(sweep) -> str:
    return (sweep / "report.html").read_text(encoding="utf-8")


def text(sweep) -> str:
    return " ".join(re.sub("<style>.*?</style>|<[^>]*>", " ", page(sweep), flags=re.S).split())


class Links(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.found, self.sources = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.found += [named["href"]] if tag == "a" else []
        self.sources += [named["src"]] if "src" in named else []


def test_the_difference_is_in_words_with_intervals_and_n(two):
    said = text(two)
    widest = re.search(r"tiny and &lt;i&gt;other&lt;/i&gt; differ most at sufficiency, residual stream, layer (\d), [\w ]+: "
                       r"(−?[\d.]+) \[.*?\] against (−?[\d.]+) \[.*?\], a difference of (−?[\d.]+) \[.*?\].*?n = (\d+)", said)
    assert widest and widest[1] in "12" and int(widest[5]) == 24
    numbers = [float(x.replace("−", "-")) for x in widest.group(2, 3, 4)]
    assert abs(numbers[2]) > 0.5 and (numbers[0] - numbers[1]) * numbers[2] > 0


def test_the_difference_is_in_the_table_and_in_two_figures(two):
    assert re.search(r"<th[^>]*>tiny</th><th[^>]*>&lt;i&gt;other&lt;/i&gt;</th><th[^>]*>difference</th>", page(two))
    assert sorted(p.stem for p in (two / "figures").glob("*.png")) == ["sweep_curves", "sweep_differences"]
    assert len(Links(page(two)).sources) == 2 and all(s.startswith("data:image/png") for s in Links(page(two)).sources)


def test_of_many_groups_each_has_one_sentence_and_one_caveat_names_them_all(tmp_path):
    names = ("tiny", "one", "two", "three")
    runs = [({"model": name}, settings(0, name, logs=str(tmp_path / "logs")), columns(0)) for name in names]
    said = text(sweep_of(tmp_path, runs))
    result = said.split("Result")[1].split("Table")[0]
    assert all(result.count(f"{name}: Restoring") == 1 for name in names)
    assert "What else each run found stands in its own report" in result
    assert said.count("the interval is missing, a point") <= 1


def test_every_job_is_listed_with_its_end_and_linked_to_its_report(two):
    said, links = text(two), Links(page(two)).found
    assert "5 of 6 runs are done; 1 failed" in said and "&lt;b&gt;no such folder&lt;/b&gt;" in said
    assert len(links) == 5 and all((two / link).resolve().is_file() and not link.startswith("/") for link in links)


def test_nothing_of_a_users_text_is_markup(two):
    assert "<i>other" not in page(two) and "<b>no such" not in page(two) and "-m <seed>" not in page(two)


def test_what_the_seed_decided_and_how_few_they_are_is_said(two):
    said = text(two)
    assert "prompts, pairing and resampling, not the weights" in said
    assert "Student's" in said.replace("&#39;", "'") and "t with 2 degrees of freedom" in said


def test_the_summary_holds_estimates_and_differences(two):
    rows = json.loads((two / "summary.json").read_text())
    assert {row["conditions"]["model"] for row in rows} == {"tiny", "<i>other</i>", "tiny − <i>other</i>"}
    assert {row["n_seeds"] for row in rows if row["conditions"]["model"] == "tiny"} == {3}


def test_put_together_again_it_is_the_same(two):
    before = {name: (two / name).read_bytes() for name in ("summary.json", "report.html", "figures/sweep_curves.png")}
    assert sweeping.main([str(two)]) == 0
    assert before == {name: (two / name).read_bytes() for name in before}


def test_draws_are_told_beside_what_was_observed(drawn):
    said = text(drawn)
    assert "0.90 [0.80, 1.00], n = 12. Random subspaces: isotropic" in said and "p (control, isotropic) = .038" in said
    assert (drawn / "figures" / "sweep_controls.png").is_file()
    assert len(json.loads((drawn / "controls.json").read_text())) == 4


def test_every_draw_is_a_dot_in_the_row_of_its_family(drawn):
    from mamba_mi.report.figures import house_style
    from mamba_mi.report.figures.sweep_controls import sweep_controls

    rows, null = (json.loads((drawn / name).read_text()) for name in ("summary.json", "controls.json"))
    with house_style():
        figure, _ = sweep_controls(rows, null, "")
    (axes,), strips = figure.axes, {each["family"]: each["effects"] for each in null}
    dots = [line for line in axes.lines if line.get_marker() == "."]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["isotropic", "covariance", "rescaled", "orthogonal"]
    assert {round(line.get_ydata().mean()): list(line.get_xdata()) for line in dots} == dict(enumerate(
        strips[name] for name in ("isotropic", "covariance", "rescaled", "orthogonal")))
    assert any(list(line.get_xdata()) == [0.9, 0.9] for line in axes.lines)


def test_a_sweep_in_which_nothing_is_done_has_a_report_that_says_so(tmp_path):
    sweep = sweep_of(tmp_path, [({"seed": "0"}, settings(0, logs=str(tmp_path)), None)])
    assert "0 of 1 runs are done; 1 failed" in text(sweep) and json.loads((sweep / "summary.json").read_text()) == []


def test_models_of_different_depth_share_an_axis(tmp_path):
    runs = [({"model": model}, settings(0, model, logs=str(tmp_path / "logs")), columns(0, layers=layers))
            for model, layers in (("shallow", 3), ("deep", 6))]
    said = text(sweep_of(tmp_path, runs))
    assert "divided by the last one" in said and "no difference is taken" in said


def test_models_of_two_families_are_told_apart_before_anything_is_compared(tmp_path):
    """A run of before manifests said what its model is has no part in it."""
    def data(config, model):
        return lambda: write_manifest(write_run(config, columns(0, layers=2)), "done", "2030-01-01T00:00:00+00:00", model=model)

    configs = {name: settings(0, name, logs=str(tmp_path / "logs")) for name in ("tiny", "tiny-retnet", "old")}
    models = {"tiny": MAMBA, "tiny-retnet": RETNET, "old": None}
    sweep = sweep_of(tmp_path, [({"model": name}, configs[name], data(configs[name], model)) for name, model in models.items()])
    said = text(sweep)
    assert said.index("of 2 families: tiny is mamba2; tiny-retnet is retnet.") < said.index("tiny: ")
    assert "old is" not in said and re.search(r"tiny-retnet</td>\s*<td[^>]*>retnet</td>", page(sweep))


def test_effects_without_layers_are_a_list(tmp_path):
    from mamba_mi.report.figures import house_style
    from mamba_mi.report.figures.sweep_curves import sweep_list

    rows = [{"conditions": {"task": t}, "metric": "hit", "n": 9, "n_seeds": 2, "mean": m, "ci_low": m - 0.1, "ci_high": m + 0.1,
             "seeds": [{"seed": 0, "mean": m - 0.05}, {"seed": 1, "mean": None}]} for t, m in (("recall", 0.9), ("hop", 0.4))]
    with house_style():
        figure, caption = sweep_list({"one": rows, "two": rows}, "facts")
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["recall", "hop"] and "n = 9" in caption


def test_the_module_can_be_run_again_over_a_folder(two):
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "mamba_mi.runs.aggregate", str(two / "no")], capture_output=True, text=True,
                          cwd=Path(__file__).resolve().parents[2])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "give the folder of a sweep" in done.stderr


def sheets():
    """Sweep figures as crowded as they get: long names, two fitted subspaces that agree, eight cells."""
    from mamba_mi.report.figures.sweep_controls import sweep_controls
    from mamba_mi.report.figures.sweep_curves import sweep_curves

    at = [{"direction": d, "site": "resid", "layer": y, "role": r} for d in ("denoising", "noising") for y in range(4)
          for r in ("subject", "last")]
    numbers = {"metric": "normalised_logit_difference", "n": 9, "mean": 0.9, "ci_low": 0.8, "ci_high": 1.3, "control_p": 0.01}
    rows = [{"conditions": c, **numbers, "seeds": []} for c in at]
    observed = [{"conditions": {**c, "subspace": s, "rank": 1}, **numbers} for c in at for s in ("das", "pca")]
    null = [{"conditions": {**c, "rank": 1}, "family": f, "draws": 3, "mean": 0, "low": -0.1, "high": 0.1,
             "effects": [-0.1, 0, 0.1]} for c in at for f in ("isotropic", "covariance", "rescaled", "orthogonal")]
    return (lambda: sweep_curves({"mamba-2.8b-slimpj": rows, "mamba2-2.7b": rows}, "counterfact · 10 of 10 runs are done"),
            lambda: sweep_controls(observed, null, "tiny · facts"))


@pytest.mark.parametrize("draw", sheets(), ids=["curves", "controls"])
def test_no_text_of_a_sweeps_figures_is_clipped_or_overlaps(draw):
    from mamba_mi.report.figures import house_style

    with house_style():
        figure, _ = draw()
        texts, box = shown(figure)
    page = figure.bbox.extents
    clipped = ((box < page[[0, 1, 0, 1]]) | (box > page[[2, 3, 2, 3]])).any(1)
    assert not clipped.any(), np.array(texts)[clipped]
    low, high = box[:, :2], box[:, 2:]
    pairs = np.argwhere(np.triu((np.minimum(high[:, None], high) - np.maximum(low[:, None], low) > 1).all(-1), k=1))
    assert not len(pairs), [(texts[a], texts[b]) for a, b in pairs[:3]]


def test_cells_without_an_interval_are_counted_with_the_reason(tmp_path):
    runs = [({"seed": str(seed)}, settings(seed, logs=str(tmp_path / "logs")), columns(0, prompts=1)) for seed in range(5)]
    said = text(sweep_of(tmp_path, runs))
    assert "In 24 of the 24 cells shown the interval is missing, a point, or of fewer seeds: one cluster only." in said
