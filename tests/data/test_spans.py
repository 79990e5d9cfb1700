import pytest

from mamba_mi.data.encoding import encode
from mamba_mi.data.reading import Unusable
from mamba_mi.data.spans import is_role, roles, token_span

SUBJECTS = [("The mother tongue of", " 大江健三郎", " is"), ("The mother tongue of", " Zoë Müller", " is"),
            ("", "Zoë Müller", ", the"), ("", "大", ""), ("The anthem of", " 🎵é", "’s king is"), ("of", " 大", "き is")]


@pytest.mark.parametrize(("before", "subject", "after"), SUBJECTS)
def test_a_span_is_the_tokens_whose_bytes_are_the_subject_s(either_tokenizer, byte_span, before, subject, after):
    text, start, end = before + subject + after, len(before), len(before + subject)
    [tokens] = encode([text], either_tokenizer)
    assert token_span(tokens.offsets, start, end) == byte_span(either_tokenizer, tokens.ids, text, start, end)


def test_a_span_without_tokens_is_refused():
    with pytest.raises(Unusable, match="covers no token"):
        token_span([(0, 3), (4, 7)], 3, 4)


def test_roles_of_a_prompt_with_everything():
    spans = {"bos": (0, 1), "subject": (3, 6)}
    assert list(roles(9, spans).items()) == [
        ("bos", (0,)), ("pre_subject", (1, 2)), ("subject_1", (3,)), ("subject_2", (4,)), ("subject_3", (5,)),
        ("subject_last", (5,)), ("subject", (3, 4, 5)), ("between", (6, 7)), ("last", (8,))]


def test_a_role_without_positions_is_absent():
    assert roles(2, {"subject": (0, 1)}) == {"subject_1": (0,), "subject_last": (0,), "subject": (0,), "last": (1,)}


def test_last_stays_the_last_token_where_the_subject_ends_the_prompt():
    assert roles(3, {"subject": (1, 3)}) == {"pre_subject": (0,), "subject_1": (1,), "subject_2": (2,),
                                             "subject_last": (2,), "subject": (1, 2), "last": (2,)}


def test_without_a_subject_there_is_no_role_relative_to_it():
    assert roles(4, {"bos": (0, 1)}) == {"bos": (0,), "last": (3,)}


def test_the_joint_roles_share_out_every_position_once():
    for length in range(2, 9):
        for bos in ({}, {"bos": (0, 1)}):
            for start in range(len(bos), length - 1):
                for end in range(start + 1, length):
                    found = roles(length, bos | {"subject": (start, end)})
                    joint = ("bos", "pre_subject", "subject", "between", "last")
                    assert sorted(p for name in joint for p in found.get(name, ())) == list(range(length))
                    each = [found[f"subject_{k}"] for k in range(1, end - start + 1)]
                    assert sum(each, ()) == found["subject"]
                    assert each[-1] == found["subject_last"]


def test_other_spans_are_roles_under_their_own_name():
    assert roles(6, {"subject": (1, 2), "verb": (3, 5)})["verb"] == (3, 4)


@pytest.mark.parametrize("spans", [{"bos": (0, 1), "subject": (2, 5)}, {"subject": (0, 7)}])
def test_the_names_roles_makes_are_reserved(spans):
    assert all(is_role(name) or name == "subject" for name in roles(8, spans))
    assert not any(map(is_role, ("subject", "verb", "lasting", "subject_one")))
