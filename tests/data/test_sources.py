"""Names of sources to positions, on a prompt small enough to count by hand."""
import pytest

from mamba_mi import UserError
from mamba_mi.config import stream
from mamba_mi.data.sources import check_names, is_named, named, positions

SPANS = {"bos": (0, 1), "subject": (3, 5)}  # BOS the mother |of Ann| was born in the city of


@pytest.mark.parametrize("name, want", [
    ("none", ()), ("last", (11,)), ("second_to_last", (10,)), ("first", (1,)), ("bos", (0,)), ("subject", (3, 4)),
    ("relation", (1, 2, 5, 6, 7, 8, 9, 10, 11)), ("relation_without_last", (1, 2, 5, 6, 7, 8, 9, 10)), ("context", (1, 2))])
def test_each_name(name, want):
    assert positions(name, 12, SPANS) == want


def test_what_a_prompt_lacks_is_none():
    assert positions("context", 5, {"subject": (0, 2)}) is None and positions("bos", 5, {}) is None
    assert positions("second_to_last", 2, {"bos": (0, 1)}) is None
    assert positions("random", 4, {"subject": (0, 2)}, generator=stream(0)) is None  # one free token, two wanted


def test_controls_have_the_subjects_size_and_keep_off_it():
    drawn = [positions("random", 12, SPANS, generator=stream(seed)) for seed in range(60)]
    assert {len(p) for p in drawn} == {2} and set().union(*drawn) == {1, 2, 5, 6, 7, 8, 9, 10} and len(set(drawn)) > 10
    far = [positions("beyond_conv", 12, SPANS, conv_width=4, generator=stream(seed)) for seed in range(60)]
    # the conv brings the subject's last token, 4, to slots up to 7
    assert set().union(*far) == {1, 2, 8, 9, 10}


def test_without_a_subject_and_with_a_typo():
    with pytest.raises(UserError, match="no subject"):
        positions("subject", 4, {})
    with pytest.raises(UserError, match="did you mean 'subject'"):
        check_names("method.sources", ["subjects"])
    with pytest.raises(UserError, match="each once"):
        check_names("method.sources", ["last", "last"])


TOLD = {"key": (3, 4), "value": (4, 6)}  # <kv> a b |k| v w| c d k


def test_a_span_is_a_source_and_so_is_the_slot_after_it():
    assert positions("value", 9, TOLD) == (4, 5) and positions("key+1", 9, TOLD) == (4,)
    assert positions("value+1", 9, TOLD) == (5, 6) and positions("value+2", 9, TOLD) == (6, 7)
    assert positions("subject+1", 12, SPANS) == (4, 5) and positions("last+1", 9, TOLD) is None
    assert positions("value+4", 9, TOLD) == (8,)  # what lies beyond the prompt is not there


def test_controls_without_a_subject_keep_off_every_span():
    drawn = [positions("random", 9, TOLD, generator=stream(seed)) for seed in range(40)]
    assert {len(p) for p in drawn} == {1} and set().union(*drawn) == {0, 1, 2, 6, 7}
    far = [positions("beyond_conv", 12, TOLD, conv_width=4, generator=stream(seed)) for seed in range(40)]
    assert set().union(*far) == {0, 1, 2, 9, 10}
    with pytest.raises(UserError, match="no other span"):
        positions("random", 9, {"bos": (0, 1)})


def test_names_that_prompts_of_some_spans_have():
    assert named(SPANS) == ("none", "last", "second_to_last", "first", "subject", "relation", "relation_without_last", "context",
                            "random", "beyond_conv")
    assert named(TOLD) == ("none", "last", "second_to_last", "first", "random", "beyond_conv", "key", "key+1", "value", "value+1")
    assert is_named("subject+1", SPANS) and is_named("bos", TOLD) and not is_named("context", TOLD)
    assert not any(is_named(name, SPANS) for name in ("random+1", "none+1", "value", "subject+x"))
    with pytest.raises(UserError, match="source valu.*did you mean 'value'"):
        positions("valu", 9, TOLD)
