"""The table of variants, cell by cell: each fact under the heading it belongs to, each number as it was found."""
import pytest

from mamba_mi.report import models_words as words

FACTS = {"variant": "x", "what": "layers that mix", "licence": "MIT", "format": "one file", "oracle": "a sum in numpy", "about": "",
         "checkpoints": {"x-1b": {"repo": "org/X-1B", "parameters": 1_372_178_432},
                         "x-2b": {"repo": "org/X-2B", "parameters": 129_135_360}}, "options": {"modulate": [True, False], "act": ["gelu", "silu"]},
         "embedded": {"name": "tiny-x", "parameters": 12345, "recall": {"hit": 0.9, "ci_low": 0.85, "ci_high": 0.95, "n": 64}},
         "sites": ["resid", "out"], "backends": ["chunked", "reference"], "experiments": ["patching", "train"],
         "numerics": {"float32": 5e-7, "float64": 1e-15}, "real_weights": "never tried"}
BARE = {**FACTS, "variant": "y", "about": "It is another model.", "checkpoints": {}, "options": {}}
UNSHIPPED = {**FACTS, "variant": "z", "embedded": {"name": "small z", "parameters": 999, "recall": None}}
CELLS = {"variant": "x", "what it is": "layers that mix", "published as": "x-1b (org/X-1B, 1.37B), x-2b (org/X-2B, 129M)",
         "licence": "MIT", "format": "one file"}
EXACT = {"variant": "x", "embedded model": "tiny-x, 12,345 parameters", "recall": "0.900 [0.850, 0.950], n = 64",
         "experiments": "patching, train", "oracle": "a sum in numpy", "float32 off the oracle": "5e-07",
         "float64 off the oracle": "1e-15", "real weights": "never tried"}
ROW = {"conditions": {"variant": "x"}, "mean": 3.2e-7, "ci_low": 2.1e-7, "ci_high": 4.4e-7, "n": 64}
SITES = {"variant": "x", "sites": "resid out", "backends": "chunked reference",
         "options": "model.modulate: True or False; model.act: gelu or silu"}


def cells(columns, row=0):
    assert not any(columns.numeric) and len(columns.numeric) == len(columns.headings)  # all are texts
    return dict(zip(columns.headings, columns.rows[row], strict=True))


def test_a_fact_stands_under_its_heading():
    assert cells(words.table([FACTS, BARE])) == CELLS
    assert cells(words.exact([FACTS, BARE])) == EXACT and cells(words.sites([FACTS, BARE])) == SITES


def test_a_runs_own_deviation_stands_in_its_variants_row():
    other = {**ROW, "conditions": {"variant": "y"}, "mean": 1e-6, "ci_low": 1e-6, "ci_high": 1e-6}
    assert cells(words.exact([FACTS, BARE], [other, ROW])) == EXACT | {"embedded, float32 off float64": "3.2e−07 [2.1e−07, 4.4e−07]"}


def test_what_is_not_there_is_said():
    assert cells(words.exact([FACTS, UNSHIPPED]), 1) == EXACT | {
        "variant": "z", "embedded model": "none ships; here an untrained one, 999 parameters", "recall": "none"}
    found, sites = cells(words.table([FACTS, BARE]), 1), cells(words.sites([FACTS, BARE]), 1)
    assert found["what it is"] == "layers that mix. It is another model."
    assert found["published as"] == "nothing: no public checkpoint" and sites["options"] == "none"


def test_the_markdown_is_both_tables_with_their_rules():
    def lines(row):
        return [f"| {' | '.join(row)} |", f"|{' --- |' * len(row)}", f"| {' | '.join(row.values())} |", ""]

    assert words.markdown([FACTS]) == "\n".join(lines(CELLS) + lines(EXACT) + lines(SITES))


def test_a_finding_names_the_least_and_the_most_exact_with_intervals_and_n():
    other = {**ROW, "conditions": {"variant": "y"}, "mean": 1e-6, "ci_low": 9e-7, "ci_high": 2e-6}
    first, where = words.findings([other, ROW])
    assert first == ("2 variants: the float32 logits of their embedded models, or of an untrained one where none ships, are off "
                     "float64's by 3.2e−07 [2.1e−07, 4.4e−07] (x) to "
                     "1.0e−06 [9.0e−07, 2.0e−06] (y) of the largest on average (n = 64 prompts).")
    assert "report.html" in where and "artifacts/models.json" in where


@pytest.mark.parametrize("said", ["No published weights were ever loaded", "is our own implementation's; the one from an independent "
                                  "implementation is of random checkpoints in the published layout"])
def test_it_is_no_secret_that_no_published_file_was_read(said):
    assert any(said in caveat for caveat in words.CAVEATS)
