"""Names of sources to positions, on a prompt small enough to count by hand."""
import pytest

from mamba_mi import UserError
from mamba_mi.config import stream
from mamba_mi.data.sources import check_names, positions

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
