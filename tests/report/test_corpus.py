"""What is said and drawn of a training on text is what the rows say."""
import math

import pytest

from mamba_mi.report import corpus_words as words
from mamba_mi.report.figures import draw
from mamba_mi.report.words import too_few

from .synthetic import corpus_summary, training_curve

RECIPE = {"length": 128, "batch": 8, "start": "scratch", "boundaries": True}
INFO = {"recipe": RECIPE, "model_name": "m", "steps": 10, "tokens": 10240, "hugging_face": "artifacts/hf",
        "documents": {"read": {"a": 3, "b": 4}, "left_out": {"text is empty": 2}, "passes": 2, "asked_for_and_never_met": []},
        "speed": {"tokens_per_second": 1234.4, "utilisation": 0.217, "measured_peak": 5e10, "processes": 2}}


def rows():
    """Nats a token of two sources and all: ln 8, ln 32 and ln 16; the unigram's are ln 64."""
    found = []
    for source, nats, n in (("Github", math.log(8), 60), ("Pile-CC", math.log(32), 7), (words.ALL, math.log(16), 67)):
        for metric, mean in (("nats_per_token", nats), ("unigram_nats_per_token", math.log(64)), ("nats_per_token_over_unigram", nats - math.log(64)),
                             ("nats", 99.0)):
            found.append({"conditions": {"source": source}, "metric": metric, "n": n, "tokens": 1000 * n, "mean": mean, "ci_low": mean - 0.1,
                          "ci_high": mean + 0.1, "p": 0.01})
    return found


def test_perplexities_are_the_exponentials_and_levels_are_tested_against_nothing():
    made = words.with_perplexities(rows(), {"p": None})
    of = {(row["metric"], row["conditions"]["source"]): row for row in made}
    assert not any(metric == "nats" for metric, _ in of) and len(made) == 3 * 5
    assert of["perplexity", "Github"]["mean"] == pytest.approx(8) and of["perplexity", "Github"]["ci_high"] == pytest.approx(8 * math.exp(0.1))
    assert of["unigram_perplexity", "Pile-CC"]["mean"] == pytest.approx(64)
    assert of["perplexity", "Github"]["p"] is None and of["nats_per_token_over_unigram", "Github"]["p"] == 0.01
    without = words.with_perplexities([row | {"ci_low": None, "ci_high": None} for row in rows()], {})
    assert {row["ci_low"] for row in without} == {None}


@pytest.mark.parametrize("pooled", [False, True])
def test_the_findings_say_all_then_the_lowest_and_the_highest(pooled):
    said = words.findings(rows() if pooled else words.with_perplexities(rows(), {}))
    assert said[0].startswith("On documents it never read its perplexity is 16.0 [14.5, 17.7], n = 67 documents of 67,000 tokens; a unigram model "
                              "of its training text has 64.0")
    assert "costs it 1.39 nats less than the unigram model (difference −1.39 [−1.49, −1.29], p = .010)" in said[1]
    assert "lowest on Github (8.00 [7.24, 8.84], n = 60) and highest on Pile-CC (32.0" in said[2]
    assert words.findings([]) == []


def test_a_model_that_is_worse_than_the_unigram_is_said_to_be():
    worse = [row | {"mean": 0.5} if row["metric"] == "nats_per_token_over_unigram" else row for row in rows()]
    assert "0.50 nats more than the unigram model" in words.findings(worse)[1]


def test_the_caveats_name_what_this_run_lacks():
    summary = words.with_perplexities(rows(), {})
    said = " ".join(words.caveats(summary, INFO))
    assert "Lines not trained on, in 2 passes over the text: 2 text is empty." in said and "Fewer than 20 validation documents: Pile-CC" in said
    assert "a document's first token is neither trained on nor counted" in said and "Hugging Face" not in said and "never met" not in said
    few = [row | {"n": 30} if row["conditions"]["source"] == words.ALL else row for row in summary]
    assert words.caveats(few, INFO) == [*words.caveats(summary, INFO), *too_few(30)] != words.caveats(summary, INFO)
    other = INFO | {"recipe": RECIPE | {"boundaries": False}, "hugging_face": "no such model",
                    "documents": INFO["documents"] | {"left_out": {}, "asked_for_and_never_met": ["ArXiv"]}}
    said = " ".join(words.caveats(summary, other))
    assert "never met: ArXiv" in said and "layout: no such model" in said and "neither trained" not in said and "Lines not" not in said


def test_the_setting_says_what_was_read_and_how_fast():
    said = words.setting(INFO)
    assert said["model"] == "m (untrained at the start)" and said["read"] == "7 documents, in 2 passes over the text"
    assert said["speed"] == "1,234 tokens a second (median), 22% of a plain matrix product's 50 GFLOP/s here; 2 processes"


def test_the_figures_draw_the_rows_and_the_levels(run):
    tables = run(corpus_summary(), curve=training_curve())[1]
    figure, _ = draw("corpus_perplexity", tables)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["all sources", "Pile-CC", "Github", "Wikipedia (en)"]
    dots = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [pytest.approx(31.4 * x) for x in (1.6, 1.0, 1.2, 1.4)]
    assert [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "|"] == [905, 812, 843, 874]
    spans = [tuple(line.get_xdata()) for line in axes.lines if line.get_marker() == "None"]
    assert spans[:2] == [pytest.approx((905 * 0.94, 905 * 1.07)), pytest.approx((31.4 * 1.6 * 0.94, 31.4 * 1.6 * 1.07))] and len(spans) == 6
    names = corpus_summary(("a $x_{$ b", "b", "all sources"))
    draw("corpus_perplexity", run(names, curve=training_curve())[1])[0].canvas.draw()
    assert "31.4" in [text.get_text() for text in axes.texts]
    figure, caption = draw("corpus_curve", tables)
    loss = next(axes for axes in figure.axes if axes.get_label() == "loss")
    assert list(loss.lines[0].get_ydata()) == [point["loss"] for point in training_curve()]
    seen = next(line for line in loss.lines if line.get_marker() == "o")
    assert list(seen.get_xdata()) == list(range(400, 2401, 400)) and "183 validation documents" in caption
    assert any(list(line.get_ydata()) == [6.7, 6.7] for line in loss.lines)
