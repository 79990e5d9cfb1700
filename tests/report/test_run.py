"""A run's page: what model it is of and how exact its numbers are, from the run's own manifest."""
import html
import json
import re
from types import SimpleNamespace

import pytest
import yaml

from mamba_mi.experiments import Experiment
from mamba_mi.report.html import Page
from mamba_mi.report.run import write_report

from .synthetic import write_run

MODEL = {"variant": "retnet", "layers": 6, "parameters": 712896, "about": "Published under another name."}
MOE = {"variant": "moe", "layers": 5, "parameters": 1_234_567, "about": "Its experts apply GELU."}
ROUTING = {"tokens": 20_000, "flips": 1_234, "least_margin": 3.1e-5, "by_layer": {"1": [1_234, 20_000]}}
ROUTED = ("The interventions sent 1,234 of 20,000 tokens (6.2%) to another expert than the clean run did; what they change there is part "
          "of the effects (by layer: manifest.json). The nearest choice was 3.1e-05 of probability ahead of the next.")
EXACT = "On the first prompt the logits differ from a float64 reference by at most 2.0e-05, 1.0e-06 of the largest."


@pytest.fixture
def told(tmp_path):
    """told(**manifest): the page's setting by its headings, and its caveats."""
    def make(**manifest):
        folder = write_run(tmp_path, [])
        config = yaml.safe_load((folder / "config.yaml").read_text()) | {"model": {"name": "tiny", "path": None, "hub": None}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        said = json.loads((folder / "manifest.json").read_text()) | {"backend": {"used": "chunked"}} | manifest
        (folder / "manifest.json").write_text(json.dumps(said))
        page, _ = write_report(folder, Experiment(None, None, None), {})
        pairs = re.findall(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", page, re.S)
        caveats = page.partition("<h2>Caveats</h2>")[2].partition("<h2>")[0]
        return {html.unescape(key): html.unescape(value) for key, value in pairs}, html.unescape(caveats)

    return make


def test_the_page_says_what_the_checkpoint_is_whatever_it_is_called(told):
    assert told(model=MOE)[0]["is a"] == "moe, 5 layers, 1,234,567 parameters. Its experts apply GELU."
    assert told(model={**MOE, "about": ""})[0]["is a"] == "moe, 5 layers, 1,234,567 parameters"
    assert told()[0]["is a"] == told(model=None)[0]["is a"] == "not recorded"


def test_flips_of_experts_and_the_deviation_are_caveats(told):
    off = {"max_abs": 2e-5, "relative": 1e-6}
    assert re.findall(r"<li>(.*?)</li>", told(routing=ROUTING, deviation=off)[1], re.S) == [ROUTED, EXACT]
    assert re.findall(r"<li>(.*?)</li>", told(routing=ROUTING)[1], re.S) == [ROUTED]
    assert re.findall(r"<li>(.*?)</li>", told(deviation=off)[1], re.S) == [EXACT]
    assert told()[1] == ""


def written(folder, monkeypatch, **experiment) -> Page:
    """The page of a run that is still going on, as it is when the report is made."""
    write_run(folder, [])
    manifest = {"status": "running", "ended": None, "seconds": 1.5, "run_id": "3f9c2a7e", "model": MODEL, "backend": {"used": "chunked"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"model": {"name": "tiny-retnet", "path": None, "hub": None}}))
    pages = []
    monkeypatch.setattr("mamba_mi.report.run.render", lambda page: pages.append(page) or "")
    silent = dict.fromkeys(("findings", "headline", "caveats", "listings"), lambda _: [])
    write_report(folder, SimpleNamespace(**{"title": "patching", "question": "?", "figures": (), "setting_in_words": dict, "data_in_words": str,
                                            "of_one_model": True, **silent, **experiment}), {})
    return pages[0]


def test_the_embedded_manifest_says_nothing_of_an_end_that_is_not_there_yet(tmp_path, monkeypatch):
    embedded = written(tmp_path, monkeypatch).manifest
    assert embedded["run_id"] == "3f9c2a7e" and not {"status", "ended", "seconds"} & set(embedded)


def test_what_a_model_is_and_what_must_be_known_of_it_are_two_sentences(tmp_path, monkeypatch):
    page = written(tmp_path, monkeypatch)
    assert page.title == "patching · tiny-retnet" and page.setting["model"] == "tiny-retnet (embedded)"
    assert page.setting["is a"] == "retnet, 6 layers, 712,896 parameters. Published under another name."


def test_a_report_of_every_model_is_headed_by_none(tmp_path, monkeypatch):
    page = written(tmp_path, monkeypatch, title="models", of_one_model=False)
    assert page.title == "models" and not {"model", "is a"} & set(page.setting)
