"""The account of classified questions, in words, tables and the figure: every number is where a reader looks for it."""
import json

from mamba_mi.report import classify_words as words
from mamba_mi.report.figures import draw
from mamba_mi.report.tables import RunTables

from .synthetic_classified import ACCOUNT


def test_a_category_says_how_full_it_is_and_who_filled_it():
    said = words.findings(ACCOUNT, "x.json")
    assert said[:3] == ["Simple Recall: 20 of 20 questions (SQuAD 20).", "Long Context: 20 of 20 questions (SQuAD 13, Natural Questions 7).",
                        "Stress Test: 3 of 20 questions (Natural Questions 3), all that SQuAD and Natural Questions had: "
                        "more samples_per_dataset may find more."]
    assert said[3] == "Of 1,100 records read 60 were skipped, each for a reason that is listed." and "x.json" in said[4] and len(said) == 5


def test_the_heuristics_share_is_counted():
    assert words.caveats(ACCOUNT)[0].startswith("Heuristic rules put 40 of 1,040 questions (4%) into their category")


def test_the_matrix_has_a_dash_where_a_set_has_no_such_questions():
    table = words.matrix(ACCOUNT)
    assert table.headings == ["set", "Simple Recall", "Long Context", "Stress Test", "skipped"]
    assert table.rows == [["SQuAD", "20 of 1,000", "13 of 30", "0 of 0", "30"], ["Natural Questions", "–", "7 of 7", "3 of 3", "30"]]


def test_the_listings_have_reasons_rules_examples_and_sources():
    tables = dict(words.listings(ACCOUNT))
    assert tables["Skipped"].rows[0] == ["SQuAD", "question is empty", "30"]
    assert tables["Examples"].rows == [["Simple Recall", "SQuAD", "one fact", "Who?", "Zed", "–"]]
    assert tables["Read from"].rows == [["SQuAD", "1,060", "a local file", "f" * 12], ["Natural Questions", "40", "a/b, dev, commit cccccccccccc", "e" * 12]]
    assert next(t for title, t in tables.items() if title.startswith("The rules")).rows[0] == [
        "1", "5-9 sentences", "a context of 5", "Long Context", "yes", "40", "23"]


def test_the_figure_shows_kept_found_skipped_and_sums(tmp_path):
    (tmp_path / "classified.json").write_text(json.dumps(ACCOUNT))
    figure, caption = draw("classified_questions", RunTables({}, {}, [], None, [], tmp_path))
    counts, skipped = figure.axes
    said, [image] = [text.get_text() for text in counts.texts], counts.images
    assert image.get_clim() == (-20, 20)  # darker for more, the middle of the map for none
    assert said == ["20", "of 1,000", "13", "of 30", "0", "of 0", "·", "7", "of 7", "3", "of 3", "20", "20", "3", "in all"]
    assert [text.get_text() for text in skipped.texts] == ["30", "30"] and "Skipped" in caption
