"""Metrics of logits whose padded vocabulary rows are -inf: against numpy and scipy on the unpadded rows alone."""
import numpy as np
import pytest
import torch
from scipy import special, stats

from mamba_mi.measure.metrics import hit, kl, log_probability, logit_difference, probability, rank

B, V, PADDED = 6, 11, 16


@pytest.fixture
def logits_BV():
    x_BV = torch.randn(B, PADDED, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    x_BV[:, V:] = -torch.inf
    return x_BV


@pytest.fixture
def target_B():
    return torch.tensor([0, 3, 10, 5, 5, 7])


def test_logit_difference_is_right_minus_wrong(logits_BV, target_B):
    wrong_B = torch.tensor([1, 2, 3, 4, 6, 8])
    expected = [float(logits_BV[b, target_B[b]] - logits_BV[b, wrong_B[b]]) for b in range(B)]
    assert logit_difference(logits_BV, target_B, wrong_B).tolist() == expected


def test_probability_is_softmax_over_the_unpadded_rows(logits_BV, target_B):
    x_BV = logits_BV[:, :V].numpy()
    at = np.arange(B), target_B.numpy()
    np.testing.assert_allclose(probability(logits_BV, target_B), special.softmax(x_BV, axis=1)[at], rtol=1e-14)
    np.testing.assert_allclose(log_probability(logits_BV, target_B), special.log_softmax(x_BV, axis=1)[at], rtol=1e-14)


def test_rank_is_the_place_in_a_stable_descending_sort(logits_BV):
    logits_BV[0, 4] = logits_BV[0, 7] = logits_BV[0].max()      # two tokens tie at the top
    logits_BV[1, 2] = logits_BV[1, 9]
    for target in range(V):
        target_B = torch.full((B,), target)
        expected = [int((np.argsort(-row, kind="stable") == target).argmax()) for row in logits_BV.numpy()]
        assert rank(logits_BV, target_B).tolist() == expected
        assert hit(logits_BV, target_B).tolist() == (logits_BV.argmax(dim=-1) == target).double().tolist()


def test_a_broken_pass_is_never_a_hit(logits_BV, target_B):
    logits_BV[0, 1] = torch.nan
    top_B = logits_BV[:, :V].nan_to_num(-torch.inf).argmax(dim=-1)
    assert hit(logits_BV, top_B).tolist() == [0, 1, 1, 1, 1, 1]
    assert rank(torch.full((1, 4), torch.nan), torch.tensor([2])).tolist() == [4]


def test_kl_is_scipys_entropy_over_the_unpadded_rows(logits_BV):
    patched_BV = logits_BV.flip(0) + 0.5
    p_BV, q_BV = (special.softmax(x_BV[:, :V].numpy(), axis=1) for x_BV in (logits_BV, patched_BV))
    np.testing.assert_allclose(kl(logits_BV, patched_BV), stats.entropy(p_BV, q_BV, axis=1), rtol=1e-12)
    assert kl(logits_BV, logits_BV + 2).abs().max() < 1e-14


def test_kl_is_infinite_where_patching_forbids_what_was_possible_and_zero_the_other_way():
    clean_BV = torch.tensor([[0.0, 0.0, -torch.inf]], dtype=torch.float64)
    patched_BV = torch.tensor([[0.0, -torch.inf, -torch.inf]], dtype=torch.float64)
    assert kl(clean_BV, patched_BV).item() == torch.inf
    assert kl(patched_BV, clean_BV).item() == pytest.approx(np.log(2), rel=1e-14)


def test_kl_has_a_gradient_beside_padded_rows(logits_BV):
    patched_BV = logits_BV.flip(0).clone().requires_grad_(True)
    kl(logits_BV, patched_BV).sum().backward()
    expected_BV = patched_BV.detach().softmax(dim=-1) - logits_BV.softmax(dim=-1)
    torch.testing.assert_close(patched_BV.grad, expected_BV, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype, wide", [(torch.float64, torch.float64), (torch.float32, torch.float32),
                                         (torch.bfloat16, torch.float32), (torch.float16, torch.float32)])
def test_half_precision_is_taken_in_float32_and_float64_stays(logits_BV, target_B, dtype, wide):
    x_BV, wrong_B = logits_BV.to(dtype), (target_B + 1) % V
    found = {"difference": logit_difference(x_BV, target_B, wrong_B), "probability": probability(x_BV, target_B),
             "log": log_probability(x_BV, target_B), "kl": kl(x_BV, x_BV.flip(0)), "hit": hit(x_BV, target_B)}
    exact_BV = x_BV.double()
    assert {values.dtype for values in found.values()} == {wide}
    tolerance = 1e-14 if wide == torch.float64 else 1e-5
    expected = {"difference": logit_difference(exact_BV, target_B, wrong_B), "kl": kl(exact_BV, exact_BV.flip(0)),
                "probability": probability(exact_BV, target_B), "log": log_probability(exact_BV, target_B)}
    for name, values in expected.items():
        torch.testing.assert_close(found[name].double(), values, rtol=tolerance, atol=1e-14)
