"""The tables that ship: complete, in range, and the same numbers as the published files where these are at hand."""
import hashlib
import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mamba_mi import references
from mamba_mi.config import UserError
from mamba_mi.references import read

REPO = Path(__file__).resolve().parents[2]
SHARED = REPO.parent / "shared" / "data"
CURVES = {("last", "subject"), ("last", "first"), ("last", "last"), ("last", "relation"), ("relation", "subject"),
          ("relation", "context"), ("relation", "relation"), ("subject", "subject"), ("subject", "context")}
THEIRS = {"mamba-130m": "mamba1", "mamba2-130m": "mamba2"}
CATEGORIES = {None: "ALL", "all_but_slow": "SLOW_DECAY", "all_but_fast": "FAST_DECAY"}


def published(name: str) -> Path:
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not beside the repository, in ../shared/data")
    return SHARED / name


def test_the_options_are_the_tables():
    assert {path.stem for path in (REPO / "conf" / "reference").glob("*.yaml")} == {"none", *references.names()}


@pytest.mark.parametrize("name", references.names())
def test_a_table_says_where_it_is_from_and_holds_numbers_in_range(name):
    table = read(name)
    assert table.about and table.source and table.tolerance_why and table.path is None
    for n in table.numbers:
        assert n.model in table.models
        values = [n.mean] if n.over else list(n.values.values())
        assert values and all(math.isfinite(x) for x in values)
        assert n.metric == "logit_difference" or all(0 <= x <= 1 for x in values)
    for file in (REPO / "mamba_mi" / "references").glob("*.json"):
        assert file.stat().st_size < 40_000


@pytest.mark.parametrize("model", THEIRS)
def test_the_knockouts_are_complete(model):
    table = read("knockout-130m").of(model)
    assert len(table.prompts) == 11 and all(p.text and p.target and p.subject for p in table.prompts.values())
    knocked = [n for n in table.numbers if n.kind == "knockouts"]
    assert len(knocked) == 11 * 10 and {len(n.values) for n in knocked} == {8} and {n.window_size for n in knocked} == {15}
    assert {(n.query, n.source) for n in knocked if n.timescale is None} == CURVES
    assert {n.timescale for n in knocked} == set(CATEGORIES)
    assert {n.window_start for n in knocked} == set(range(10))
    assert [len(n.values) for n in table.numbers if n.kind == "answers"] == [11, 11]


# subject to last and last to last at starts 0, 6 and 9, as they are quoted
@pytest.mark.parametrize("model, source, means", [
    ("mamba-130m", "subject", (-0.3, -53.5, -61.6)), ("mamba2-130m", "subject", (-5.6, -56.4, -56.6)),
    ("mamba-130m", "last", (-59.9, -45.2, -100.0)), ("mamba2-130m", "last", (-16.7, -25.3, -27.2))])
def test_the_means_that_are_quoted_follow_from_the_table(model, source, means):
    numbers = read("knockout-130m").of(model).numbers
    bare = next(n for n in numbers if n.kind == "answers" and n.metric == "probability").values
    for start, mean in zip((0, 6, 9), means, strict=True):
        (n,) = [n for n in numbers if n.blocked == ("last", source, None, 15, start)]
        assert sum(100 * (x / bare[i] - 1) for i, x in n.values.items()) / 8 == pytest.approx(mean, abs=0.06)


def test_every_knockout_is_the_published_one():
    data = json.loads(published("mamba_knockout/reference_130m.json").read_text())
    counted = 0
    for model, arch in THEIRS.items():
        table, their = read("knockout-130m").of(model), data["baseline"][f"{arch}-130M"]
        by_text = {row["prompt"]: row for row in their}
        bare = {i: by_text[p.text] for i, p in table.prompts.items()}
        for n in table.numbers:
            for i, value in n.values.items():
                if n.kind == "answers":
                    want = float(bare[i]["target_probs"]) if n.metric == "probability" else float(bare[i]["model_correct"] == "True")
                else:
                    key = f"arch={arch}/size=130M/target={n.query}/source={n.source}/feature_category={CATEGORIES[n.timescale]}"
                    want = data["info_flow"][key]["data"][bare[i]["original_idx"]][str(n.window_start)]["true_probs"]
                assert value == pytest.approx(want, rel=6e-6)
                counted += 1
    assert counted == 2 * (11 * 10 * 8 + 22)


def test_the_rows_are_those_of_counterfact():
    facts = pq.read_table(published("counterfact-tracing.parquet")).to_pandas()
    for name in references.names():
        for p in read(name).prompts.values():
            if p.row is None:
                continue
            row = facts.iloc[p.row]
            if p.text:
                assert (row.prompt, row.target_true) == (p.text, p.target) and (p.subject or row.subject) == row.subject
            else:
                assert hashlib.sha256(row.prompt.encode()).hexdigest()[:8] == p.check


def test_the_gold_rows_are_the_published_ones():
    their = pq.read_table(published("mamba2-1.3b-counterfact-gold.parquet")).to_pandas()
    table = read("mamba2-1.3b-gold")
    probability, difference = (next(n.values for n in table.numbers if n.metric == metric)
                               for metric in ("probability", "logit_difference"))
    assert [p.row for p in table.prompts.values()] == list(their.index) and len(table.prompts) == 493
    assert [p.tokens for p in table.prompts.values()] == list(their.n_tokens)
    for i, row in zip(table.prompts, their.itertuples(), strict=True):
        assert probability[i] == pytest.approx(row.true_prob, rel=6e-6)
        assert difference[i] == pytest.approx(math.log(row.true_prob / row.false_prob), rel=6e-6)
        assert (difference[i] > 0) == row.hit


def test_a_number_of_another_model_names_the_models_there_are():
    with pytest.raises(UserError, match="model=tiny; it has some for mamba-130m, mamba2-130m; reference.path=FILE"):
        read("knockout-130m").of("tiny")
    with pytest.raises(UserError, match="of mamba-370m it has IOI.*it has some for mamba-130m"):
        read("published").of("mamba-370m")


GOOD = {"prompts": [{"id": "a", "text": "one two", "subject": "one", "target": " three"}],
        "numbers": [{"metric": "probability", "values": [0.5]}]}
KNOCKED = {"metric": "probability", "query": "last", "source": "subject", "window_size": 2, "values": [[0.4], [0.3]]}


def own(tmp_path, text) -> references.Reference:
    path = tmp_path / "mine.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return read("none", str(path))


def test_a_file_of_ones_own_is_of_any_model_and_its_windows_begin_with_the_first_layer(tmp_path):
    table = own(tmp_path, GOOD | {"numbers": [*GOOD["numbers"], KNOCKED]}).of("whatever")
    assert table.name == "mine" and [n.window_start for n in table.numbers] == [None, 0, 1]
    assert table.within("probability", 0.5, 0.5005) and not table.within("probability", 0.5, 0.5012)


@pytest.mark.parametrize("change, said", [
    ("{", "not a JSON file"), ("[]", "one object with prompts and numbers"), ({"numbers": []}, "holds no numbers"),
    ({"numbers": [{"metric": "prob", "values": [1]}]}, "no such metric prob; .*did you mean 'probability'"),
    ({"numbers": [{"metric": "probability", "values": [1, 2]}]}, "give 1 numbers, one a prompt"),
    ({"numbers": [{"metric": "probability", "values": ["x"]}]}, "give 1 numbers, one a prompt"),
    ({"numbers": [{"metric": "probability", "prompts": ["b"], "values": [1]}]}, "no such prompt b"),
    ({"numbers": [*GOOD["numbers"], KNOCKED | {"source": "subjet"}]}, "no such source subjet; .*did you mean 'subject'"),
    ({"numbers": [*GOOD["numbers"], KNOCKED | {"query": "first"}]}, "no such query first"),
    ({"numbers": [*GOOD["numbers"], KNOCKED | {"timescale": "slow"}]}, "no such timescale slow; there are all_but_slow"),
    ({"numbers": [*GOOD["numbers"], KNOCKED | {"window_size": None}]}, "give window_size"),
    ({"numbers": [KNOCKED]}, "of prompt a there is a knockout but no probability without it"),
    ({"prompts": [*GOOD["prompts"], *GOOD["prompts"]]}, "two prompts have one id"),
    ({"prompts": [{"id": "a", "text": "one two"}]}, "give text and target, or a row of CounterFact"),
    ({"prompts": [{"text": "one two", "target": "x"}]}, "neither id nor row"),
    ({"prompts": [GOOD["prompts"][0] | {"subject": "four"}]}, "the subject is not in its text"),
    ({"prompts": ["one two"]}, "not in the shape of a reference"),
    ({"tolerance": {"probabilty": [0, 0]}}, "did you mean 'probability'"), ({"tolerance": {"hit": 1}}, "give .absolute, relative."),
])
def test_a_file_that_is_wrong_is_one_line(tmp_path, change, said):
    with pytest.raises(UserError, match=said) as caught:
        own(tmp_path, change if isinstance(change, str) else GOOD | change)
    assert str(caught.value).startswith("reference.path=") and "\n" not in str(caught.value)


def test_a_missing_file_names_the_one_that_was_meant(tmp_path):
    own(tmp_path, GOOD)
    with pytest.raises(UserError, match="no such file; did you mean 'mine.json'"):
        read("none", str(tmp_path / "mine.jsn"))
    with pytest.raises(UserError, match="reference=publishd: .*did you mean 'published'"):
        read("publishd")
