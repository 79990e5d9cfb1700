"""Subspaces against planted ones, numpy's own decompositions and the definition of row and null space."""
import numpy as np
import pytest
import torch

from mamba_mi.config import UserError, stream
from mamba_mi.interventions import subspace

D = 12


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=stream(seed, "subspace", *shape))


def angle(a_RD, b_RD) -> float:
    """The sine of the largest principal angle between two spans."""
    a, b = (np.linalg.qr(x.T.numpy())[0] for x in (a_RD, b_RD))
    return float(np.sqrt(max(0.0, 1 - np.linalg.svd(a.T @ b)[1].min() ** 2)))


def test_two_classes_and_rank_one_give_the_difference_of_means():
    x_ND, class_N = random(60, D), torch.arange(60) % 3 % 2
    difference_D = x_ND[class_N == 1].mean(dim=0) - x_ND[class_N == 0].mean(dim=0)
    assert angle(subspace.mean_difference(x_ND, class_N, 1), difference_D[None]) < 1e-9


def test_planted_class_means_are_recovered_among_larger_noise_that_principal_components_follow():
    planted_RD, nuisance_RD = random(3, D), random(2, D, seed=5)
    class_N = torch.arange(4000) % 6
    x_ND = random(6, 3, seed=1)[class_N] @ planted_RD + 20 * random(4000, 2, seed=2) @ nuisance_RD
    complement = torch.linalg.svd(nuisance_RD)[2][2:]  # what the noise does not reach is found exactly
    found = subspace.mean_difference(x_ND @ complement.T, class_N, 3)
    assert angle(found, planted_RD @ complement.T) < 1e-6
    assert angle(subspace.principal(x_ND, 2), nuisance_RD) < 0.2


def test_principal_components_are_numpys():
    x_ND = random(50, D)
    values, vectors = np.linalg.eigh(np.cov(x_ND.numpy().T))
    assert angle(subspace.principal(x_ND, 3), torch.from_numpy(vectors[:, -3:].T.copy())) < 1e-7


def test_isotropic_draws_hold_each_direction_in_the_share_of_their_rank():
    held = [(subspace.isotropic(D, 3, stream(i, "draw"))[:, 0] ** 2).sum().item() for i in range(2000)]
    assert np.mean(held) == pytest.approx(3 / D, abs=4 * np.std(held) / np.sqrt(2000))


def test_shaped_draws_have_the_samples_covariance():
    x_ND = random(40, D) * torch.logspace(0, -2, D, dtype=torch.float64) + 5.0
    drawn_MD = torch.cat([subspace.shaped(x_ND, 1, stream(i, "draw")) for i in range(4000)])
    # a unit vector along a normal draw: where Cov is one-sided, so are the draws
    normal_MD = torch.from_numpy(np.random.default_rng(0).multivariate_normal(np.zeros(D), np.cov(x_ND.numpy().T), 4000))
    normal_MD /= normal_MD.norm(dim=1, keepdim=True)
    want, got = (m.T @ m / 4000 for m in (normal_MD, drawn_MD))
    assert (want - got).abs().max() < 0.02


def test_orthogonal_draws_are_orthogonal():
    fitted_RD = random(3, D)
    draw_RD = subspace.orthogonal(fitted_RD, stream(0, "draw"))
    assert (draw_RD @ fitted_RD.T).abs().max() < 1e-12
    torch.testing.assert_close(draw_RD @ draw_RD.T, torch.eye(3, dtype=torch.float64))


def test_the_null_part_is_invisible_to_the_reader_and_the_row_part_is_all_it_sees():
    reader_WD, directions_RD = random(5, D, seed=7), random(2, D)
    row_RD, null_RD = subspace.split(directions_RD, reader_WD)
    assert len(row_RD) == len(null_RD) == 2
    assert (reader_WD @ null_RD.T).abs().max() < 1e-9
    assert angle(torch.cat([row_RD, reader_WD]), reader_WD) < 1e-6  # inside the row space
    both = torch.linalg.lstsq(torch.cat([row_RD, null_RD]).T, directions_RD.T).solution
    torch.testing.assert_close(torch.cat([row_RD, null_RD]).T @ both, directions_RD.T)


def test_a_reader_of_full_rank_leaves_no_null_part():
    row_RD, null_RD = subspace.split(random(2, D), random(20, D, seed=7))
    assert len(row_RD) == 2 and null_RD.shape == (0, D)


@pytest.mark.parametrize("make, message", [
    (lambda: subspace.mean_difference(random(20, D), torch.arange(20) % 3, 3), "3 classes of answers span only 2"),
    (lambda: subspace.principal(random(4, D), 6), "4 samples span only 3"),
    (lambda: subspace.orthogonal(random(7, D), stream(0, "draw")), "no subspace of that rank is orthogonal"),
])
def test_more_directions_than_there_are_raise(make, message):
    with pytest.raises(UserError, match=message):
        make()
