"""Rows of CounterFact for a reference: by number and by text, and one line for each way they can be others."""
import hashlib
from dataclasses import replace

import pyarrow as pa
import pytest

from mamba_mi.config import UserError
from mamba_mi.data import Dataset, Dropped, Prompt
from mamba_mi.experiments._reproduce_compare import compare
from mamba_mi.experiments._reproduce_prompts import candidates
from mamba_mi.measure.effects import effects
from mamba_mi.references import Asked, Number, Reference
from mamba_mi.report import reproduce_words as words

TEXTS = ["The mother tongue of Ann is", "Bo plays the", "The twin city of Oslo is"]


def prompt(row: int, **changed) -> Prompt:
    return replace(Prompt(f"cf-{row:05d}", TEXTS[row], (1, 2, 3), " x", 9, {"subject": (0, 1)}), **changed)


FACTS = Dataset("counterfact", tuple(map(prompt, (2, 0))), "digest", dropped=(Dropped("cf-00001", TEXTS[1], "an earlier record"),))


def asked(row: int, **more) -> Asked:
    return Asked(f"cf-{row:05d}", row=row, check=hashlib.sha256(TEXTS[row].encode()).hexdigest()[:8], tokens=3, **more)


def reference(*rows: Asked, over: int | None = None) -> Reference:
    numbers = (Number("probability", {p.prompt_id: 0.5 for p in rows}, model="m"),)
    numbers += (Number("hit", {}, model="m", over=over, mean=0.25),) if over else ()
    return Reference("gold", "", "", {}, {"probability": (1e-3, 0), "hit": (0, 0), "mean": (0.01, 0)}, "", {p.prompt_id: p for p in rows},
                     numbers, (), "sha")


def test_rows_are_found_in_the_references_order_and_a_repeated_one_is_told():
    found = candidates(reference(*map(asked, range(3))), lambda: FACTS, None)
    assert [p.prompt_id for p in found.prompts] == ["cf-00000", "cf-00002"] and [d.prompt_id for d in found.dropped] == ["cf-00001"]
    assert found.fingerprint == "sha digest"


def test_a_mean_over_counterfact_takes_the_rest_as_well():
    found = candidates(reference(asked(0), over=3), lambda: FACTS, None)
    assert [p.prompt_id for p in found.prompts] == ["cf-00000", "cf-00002"]
    assert [p.prompt_id for p in candidates(reference(asked(0)), lambda: FACTS, None).prompts] == ["cf-00000"]


@pytest.mark.parametrize("rows, dataset, said", [
    ([asked(0)], replace(FACTS, prompts=(prompt(0, text="Another text"),)), "row 0 .*'Another text'.* is another prompt"),
    ([asked(0)], replace(FACTS, prompts=(prompt(0, token_ids=(1, 2)),)), "row 0 .*has 2 tokens and had 3: .*another tokenizer"),
    ([replace(asked(0), row=7, prompt_id="cf-00007")], FACTS, "row 7 is not in this CounterFact, which has 3 rows"),
    ([asked(0)], Dataset("facts", (prompt(0, prompt_id="job-1"),), ""), "this is dataset=facts; give dataset=counterfact"),
    ([asked(0)], replace(FACTS, prompts=(prompt(0, spans={"bos": (0, 1)}),)), "give dataset.bos=false")])
def test_other_rows_are_one_line_that_names_the_row(rows, dataset, said):
    with pytest.raises(UserError, match=said) as caught:
        candidates(reference(*rows), lambda: dataset, None)
    assert str(caught.value).startswith("reference=gold") and "\n" not in str(caught.value)


def measured(hits: list[float], probability: float) -> pa.Table:
    ids = [f"cf-{i:05d}" for i in range(len(hits))]
    nothing = {name: [None] * len(ids) for name in ("query", "timescale", "window_size", "window_start")}
    parts = [effects({"prompt_id": ids, **nothing, "source": ["none"] * len(ids), "metric": [metric] * len(ids), "value": values,
                      "baseline": values}) for metric, values in (("hit", hits), ("probability", [probability] * len(ids)))]
    return pa.concat_tables(parts)


def test_a_mean_is_judged_over_all_prompts_and_not_over_a_sample():
    whole, sample = (compare(measured([1.0, 0.0, 0.0, 0.0], 0.5), reference(asked(0), over=n), {}) for n in (4, 400))
    assert [(item["agree"], item["of"], item["ours"]) for item in whole["items"]] == [(1, 1, 0.5), (1, 1, 0.25)]
    assert (sample["items"][1]["agree"], sample["items"][1]["of"]) == (0, 0)
    assert words.rows(sample)[1]["agree"] == "not judged" and "Every published number is met: 1 of 1" in words.findings(sample)[0]
    assert any(line.startswith("Not judged, being a sample") for line in words.findings(sample))
    off = compare(measured([1.0, 1.0, 0.0, 0.0], 0.5), reference(asked(0), over=4), {})
    assert words.findings(off)[1].startswith("Off: mean hit over 4 prompts: ours 0.5000, published 0.2500")


def test_what_was_not_measured_is_told():
    compared = compare(measured([1.0], 0.5), reference(asked(0), asked(1)), {})
    assert (compared["items"][0]["n"], compared["items"][0]["n_published"]) == (1, 2)
    assert any("1 of 2" in line for line in words.caveats(compared))
    compared = compare(measured([1.0], 0.5), reference(asked(2)), {})
    assert compared["items"] == [] and "none of its prompts was measured" in words.caveats(compared)[-1]
