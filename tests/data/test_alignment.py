import pytest

from mamba_mi.data.alignment import ALIGNED, aligned


@pytest.mark.parametrize(("length", "spans", "roles"), [
    (10, {"bos": (0, 1), "subject": (3, 7)}, "bos pre_subject pre_subject subject_first subject_middle subject_middle subject_last "
                                             "after_subject further last"),
    (7, {"subject": (1, 2)}, "pre_subject subject_last after_subject further further further last"),
    (6, {"subject": (0, 2), "verb": (3, 5)}, "subject_first subject_last after_subject further further last"),
    (4, {"subject": (1, 3)}, "pre_subject subject_first subject_last last"),  # the token after the subject is the last
    (4, {"subject": (1, 4)}, "pre_subject subject_first subject_middle last"),  # and here the subject's own
    (6, {"bos": (0, 1), "verb": (2, 4)}, "bos other verb verb other last"),
    (3, {}, "other other last"), (1, {"bos": (0, 1)}, "last")])
def test_every_position_has_its_one_role(length, spans, roles):
    assert aligned(length, spans) == tuple(roles.split())
    assert set(roles.split()) <= {*ALIGNED, "verb"}
