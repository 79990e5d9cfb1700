"""What is said and drawn of generated prompts: numbers one can add up."""
import json

import pyarrow as pa
import pytest

from mamba_mi.report import prompts_words as words
from mamba_mi.report.figures import draw
from mamba_mi.report.tables import RunTables

LEVEL = {"level": "two_hop", "category": "Two-Hop Reasoning", "n": 5, "originals": 1, "facts": [3, 4], "hops": [2, 2], "words": [30, 41],
         "patterns": {"people": 5}, "answers": {"red": 2, "tea": 1, "hall": 1, "Oslo": 1}}


def test_a_level_is_a_row_with_the_three_commonest_answers():
    assert words.table([LEVEL, {**LEVEL, "hops": None}]).rows[0] == [
        "Two-Hop Reasoning", "5", "1", "3–4", "2", "30–41", "4", "red (40%), tea (20%), hall (20%)"]
    assert words.table([{**LEVEL, "hops": None}]).rows[0][4] == "–"


def test_one_level_is_no_levels():
    row = {"metric": "facts", "n": 5, "conditions": {"task": "two_hop"}}
    assert words.findings([row, {**row, "metric": "hops"}], {})[0].startswith("5 prompts of 1 level, no text twice")
    assert words.findings([row, row], {"combined": "why not"}) == [
        "10 prompts of 2 levels, no text twice, each with a partner of one changed fact.", "Combined is left out: why not."]


def test_the_figure_has_a_point_a_prompt_and_the_share_of_the_commonest_answer(tmp_path):
    (tmp_path / "generation.json").write_text(json.dumps({"lexicon": "english", "seed": 0, "levels": [LEVEL]}))
    facts, long = [3, 3, 3, 4, 4], [30, 35, 35, 40, 41]
    effects = pa.table({"task": ["two_hop"] * 10, "metric": ["facts"] * 5 + ["words"] * 5, "value": [float(n) for n in facts + long]})
    figure, _ = draw("prompts_levels", RunTables({}, {}, [], effects, [], tmp_path))
    told, counted, answers = figure.axes
    assert told.lines[0].get_xdata().tolist() == facts and counted.lines[0].get_xdata().tolist() == long
    assert told.lines[0].get_ydata().tolist() == pytest.approx([0.34, 0, -0.34, 0.34, 0])  # equal ones stand on each other
    assert [bar.get_width() for bar in answers.patches] == [40] and answers.texts[0].get_text() == "of 4"
