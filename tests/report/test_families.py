"""Families side by side: what is the same thing in all is said, and what is not."""
from mamba_mi.report.families import differ, table

MAMBA = {"variant": "mamba2", "layers": 6, "parameters": 700_000, "mixed": "scan_out", "mixing": [0, 1, 2, 3, 4, 5], "parts": ["heads", 8],
         "conv": 4, "about": ""}
MOE = {**MAMBA, "variant": "moe", "mixing": [0, 2, 4], "parts": ["channels", 256]}
RETNET = {**MAMBA, "variant": "retnet", "mixed": "retained", "conv": 1, "about": "It is no DenseMamba."}


def test_of_one_family_nothing_is_said():
    assert differ({"tiny": MAMBA, "other": MAMBA}) == [] and table({"tiny": MAMBA, "other": MAMBA}) == []


def test_what_differs_is_said_once_and_of_whom():
    told = " ".join(differ({"tiny": MAMBA, "tiny-moe": MOE, "tiny-retnet": RETNET}))
    assert "3 families: tiny is mamba2; tiny-moe is moe; tiny-retnet is retnet" in told
    assert "scan output in tiny, tiny-moe; retention output in tiny-retnet" in told
    assert "tiny-moe mixes tokens in layers 0, 2, 4 of 6 alone" in told
    assert "tiny-retnet has no conv" in told and told.endswith("tiny-retnet: It is no DenseMamba.")


def test_of_two_families_these_are_the_sentences():
    same = "The residual stream and what a mixer adds to it are the same thing in all of them."
    assert differ({"tiny": MAMBA, "tiny-moe": MOE}) == [
        f"The models are of 2 families: tiny is mamba2; tiny-moe is moe. {same}",
        "A layer is not the same step in all: tiny-moe mixes tokens in layers 0, 2, 4 of 6 alone."]
    assert differ({"tiny": MAMBA, "other": MAMBA, "tiny-retnet": RETNET}) == [
        f"The models are of 2 families: tiny, other are mamba2; tiny-retnet is retnet. {same}",
        "What the mixing of tokens gives is another quantity in each: scan output in tiny, other; retention output in tiny-retnet. "
        "Their numbers stand side by side, and are no contrast.",
        "tiny-retnet has no conv: what a conv carries past a slot elsewhere has no counterpart there.",
        "tiny-retnet: It is no DenseMamba."]
    assert "tiny-retnet, third have no conv:" in " ".join(differ({"tiny": MAMBA, "tiny-retnet": RETNET, "third": RETNET}))


def test_what_is_the_same_is_not_told_as_a_difference():
    told = " ".join(differ({"tiny": MAMBA, "tiny-moe": {**MOE, "mixing": MAMBA["mixing"]}}))
    assert "another quantity" not in told and "not the same step" not in told and "no conv" not in told


def test_the_table_has_a_row_a_model():
    (_, columns), = table({"tiny": MAMBA, "tiny-moe": MOE, "tiny-retnet": RETNET})
    assert [row[0] for row in columns.rows] == ["tiny", "tiny-moe", "tiny-retnet"]
    assert dict(zip(columns.headings, columns.rows[0], strict=True)) == {
        "model": "tiny", "family": "mamba2", "parameters": "700,000", "layers": "6", "layers that mix tokens": "all", "by": "8 heads",
        "what mixing gives": "scan output", "conv reaches": "3 tokens"}
    assert [name for name, is_number in zip(columns.headings, columns.numeric, strict=True) if is_number] == ["parameters", "layers"]
    assert columns.rows[1][4] == "0, 2, 4" and columns.rows[2][-1] == "no conv"
