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


def test_what_is_changed_is_shown_in_both_sides_and_the_worlds_prompts_come_with_a_word_more():
    record = {"category": "Simple Recall", "pattern": "people", "question": "Who?", "expected": "Oru", "context": "", "prompt": "Oru is in.", "subject": [0, 3],
              "corrupt": {"prompt": "Mirana is in.", "subject": [0, 6], "expected": "Mirana"}}
    assert words.examples([record, record]).rows == [["Simple Recall", "people", "Who?", "Oru", "Oru → Mirana: Mirana", "–"]]
    assert len(words.caveats("world")) == 3 and len(words.caveats("english")) == 2


def test_the_figure_has_a_point_a_prompt_and_the_share_of_the_commonest_answer(tmp_path):
    (tmp_path / "generation.json").write_text(json.dumps({"lexicon": "english", "seed": 0, "levels": [LEVEL, {**LEVEL, "level": "three_hop"}]}))
    facts, long = [3, 3, 3, 4, 4], [30, 35, 35, 40, 41]
    effects = pa.table({"task": ["two_hop"] * 10, "metric": ["facts"] * 5 + ["words"] * 5, "value": [float(n) for n in facts + long]})
    more = pa.table({"task": ["three_hop"] * 2, "metric": ["facts", "words"], "value": [4.0, 50.0]})
    effects = pa.concat_tables([effects, more])
    figure, _ = draw("prompts_levels", RunTables({}, {}, [], effects, [], tmp_path))
    told, counted, answers = figure.axes
    assert told.lines[0].get_xdata().tolist() == facts and counted.lines[0].get_xdata().tolist() == long
    assert told.lines[0].get_ydata().tolist() == pytest.approx([0.34, 0, -0.34, 0.34, 0])  # equal ones stand on each other
    alone = told.lines[1]
    assert (alone.get_xdata().tolist(), alone.get_ydata().tolist()) == ([4], [1.34]) and counted.lines[1].get_xdata().tolist() == [50]
    assert [bar.get_width() for bar in answers.patches] == [40, 40] and answers.texts[0].get_text() == "of 4"
