import base64
import re
from dataclasses import fields, replace
from html.parser import HTMLParser

import pytest

from mamba_mi.config import UserError
from mamba_mi.report.figures import draw, save
from mamba_mi.report.html import Page, headline, render, write

from .synthetic import patching_summary, training_summary
from .synthetic_page import page

ATTACK = "<script>alert('1')</script>\"><img src=https://evil.example/x onerror=alert(2)>&amp;"


class Reader(HTMLParser):
    """What a browser would find: the tags with their attributes, and the text, each element's apart."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def figure(run, tmp_path_factory):
    """A real figure on disk."""
    drawn, caption = draw("training_recall", run(training_summary())[1])
    return save(drawn, tmp_path_factory.mktemp("page"), "training_recall"), caption


def attacked(figure):
    """A page each of whose texts tries to break out."""
    conditions = {ATTACK: ATTACK, "role": ATTACK, "site": ATTACK, "direction": ATTACK}
    row = {"conditions": conditions, "metric": ATTACK, "n": 3, "mean": 0.5, "ci_low": 0.1, "ci_high": 0.9}
    return Page(title=ATTACK, question=ATTACK, setting={ATTACK: ATTACK}, findings=[ATTACK], table=[row],
                figures=[(figure[0], ATTACK)], caveats=[ATTACK], reproduce=ATTACK, config_yaml=ATTACK,
                manifest={ATTACK: ATTACK}, selection={ATTACK: 3}, complete=[row, row])


def test_every_text_is_escaped_wherever_it_stands(figure):
    honest, hostile = (Reader(render(p)) for p in (page(patching_summary(2, 1), [figure]), attacked(figure)))
    assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in honest.tags}
    assert "script" not in {tag for tag, _ in hostile.tags}
    assert not any(name.startswith("on") for _, attributes in hostile.tags for name in attributes)
    assert sum(tag == "img" for tag, _ in hostile.tags) == 1
    assert sum(ATTACK in text for text in hostile.texts) >= len(fields(Page)) - 2  # readable, as it was given


def test_a_hostile_path_of_a_figure_does_not_reach_the_page(figure, tmp_path):
    path = tmp_path / "<script>x.png"
    path.write_bytes(figure[0].read_bytes())
    assert "<script" not in render(page([], [(path, "caption")]))


def test_one_file_without_external_references(figure, tmp_path):
    html = write(page(patching_summary(2, 1), [figure]), tmp_path / "deep" / "report.html").read_text("utf-8")
    reader = Reader(html)
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in reader.tags}
    for _, attributes in reader.tags:
        assert attributes.get("src", "data:image/png").startswith("data:image/png")
        assert not {"href", "srcset", "style", "action", "background"} & set(attributes)
    written = re.sub(r'"data:[^"]*"|http-equiv', "", html)
    assert not {"url(", "@import", "http"} & set(re.findall(r"url\(|@import|http", written))
    image = next(attributes["src"] for tag, attributes in reader.tags if tag == "img")
    assert base64.b64decode(image.split(",")[1]) == figure[0].read_bytes()


def test_sections_in_the_order_a_reader_asks(figure):
    html = render(page(patching_summary(2, 1), [figure]))
    assert re.findall(r"<h2>(.*?)</h2>", html) == \
        ["Question", "Setting", "Result", "Table", "Figures", "Caveats", "How to reproduce"]


def test_the_table_holds_the_headline_and_all_rows_are_folded_away(figure):
    summary = patching_summary(2, 1)
    html = render(page(summary, [figure]))
    shown, folded = html.split("<details>", 1)
    assert shown.count("<tr>") == 1 + 8
    assert folded.split("</details>")[0].count("<tr>") == 1 + len(summary)
    rows = [row for row in summary if row["metric"] == "probability"]
    largest = max(rows, key=lambda row: abs(row["mean"]))
    assert headline(summary, "probability", 1) == [largest]


def test_a_part_left_out_leaves_no_empty_table(figure):
    empty = replace(page([], [figure]), table=[], complete=[], selection={}, caveats=[], figures=[])
    html = render(empty)
    assert "<table>" not in html and "<h2>Figures</h2>" not in html and "<h2>Caveats</h2>" not in html


@pytest.mark.parametrize("name", ["missing.png", "figure.svg"])
def test_a_figure_that_is_no_png_raises(tmp_path, name):
    (tmp_path / "figure.svg").write_text("<svg/>")
    with pytest.raises(UserError, match=f"{name}: .*existing .png"):
        render(page([], [(tmp_path / name, "caption")]))


def test_of_very_many_rows_those_of_the_tables_metric_are_shown_and_the_rest_is_named(figure, monkeypatch):
    monkeypatch.setattr("mamba_mi.report.html.MOST", 3)
    rows = [{"conditions": {"layer": i}, "metric": metric, "n": 9, "mean": 0.5, "ci_low": None, "ci_high": None}
            for metric in ("rank", "probability") for i in range(4)]
    text = render(replace(page(rows[4:], [figure]), table=rows[4:5], complete=rows))
    assert "3 of 8 rows; all are in summary.json" in text and "metric probability" in text.split("3 of 8 rows")[1].split("</details>")[0]
    assert "All 3 rows" in render(replace(page(rows[4:], [figure]), table=rows[4:5], complete=rows[:3]))
