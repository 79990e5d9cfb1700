"""The page of one run: what it says of the model, and which of the manifest it embeds."""
import json
from types import SimpleNamespace

import yaml

from mamba_mi.report.html import Page
from mamba_mi.report.run import write_report

from .synthetic import write_run

MODEL = {"variant": "retnet", "layers": 6, "parameters": 712896, "about": "Published under another name."}


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
    write_report(folder, SimpleNamespace(**{"title": "patching", "question": "?", "figures": (), "setting_in_words": dict,
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
