"""Subspaces of a site: fitted to classes of answers, drawn at random as their controls, split by what reads the site.

Shape legend: N samples, D width of the site, R rank, C classes, W rows of a reading matrix.
"""
from __future__ import annotations

import torch
from torch import Tensor

from mamba_mi.config import UserError
from mamba_mi.interventions.ops import orthonormal

DEPENDENT = 1e-6  # singular values below this share of the largest count as zero: weights are float32


def mean_difference(x_ND: Tensor, class_N: Tensor, rank: int) -> Tensor:
    """The `rank` directions that carry most of the variance between class means, R by D, orthonormal.

    Two classes and rank 1 give the plain difference of means. Classes count by their samples, as in the
    between-class scatter of discriminant analysis (Fisher 1936).
    """
    classes, label_N = class_N.unique(return_inverse=True)
    x_ND = x_ND.double()
    count_C = torch.bincount(label_N).double()
    mean_CD = torch.zeros(len(classes), x_ND.shape[1], dtype=torch.float64).index_add_(0, label_N, x_ND) / count_C[:, None]
    between_CD = (mean_CD - x_ND.mean(dim=0)) * count_C.sqrt()[:, None]
    return _leading(between_CD, rank, f"the means of {len(classes)} classes of answers")


def principal(x_ND: Tensor, rank: int) -> Tensor:
    """The first `rank` principal components of the samples, R by D, orthonormal."""
    x_ND = x_ND.double()
    return _leading(x_ND - x_ND.mean(dim=0), rank, f"{len(x_ND)} samples")


def _leading(x_ND: Tensor, rank: int, of: str) -> Tensor:
    strength, directions = torch.linalg.svd(x_ND, full_matrices=False)[1:]
    there = int((strength > DEPENDENT * strength[:1].clamp_min(1e-300)).sum())
    if rank > there:
        raise UserError(f"method.rank={rank}: {of} span only {there} dimensions; lower method.rank or fit on more pairs "
                        "(method.train)")
    return directions[:rank]


def isotropic(width: int, rank: int, generator: torch.Generator) -> Tensor:
    """A uniformly random subspace: `rank` orthonormal directions, R by D."""
    return orthonormal(torch.randn(rank, width, dtype=torch.float64, generator=generator)).T


def shaped(x_ND: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """The span of `rank` normal draws with the samples' covariance: random, but where the activations live.

    A draw is a normal combination of the centred samples, which has exactly that covariance.
    """
    draws_RN = torch.randn(rank, len(x_ND), dtype=torch.float64, generator=generator)
    return orthonormal(draws_RN @ (x_ND.double() - x_ND.double().mean(dim=0))).T


def orthogonal(directions_RD: Tensor, generator: torch.Generator) -> Tensor:
    """A random subspace of the same rank inside the complement of the span of `directions_RD`."""
    basis_DR, (rank, width) = orthonormal(directions_RD), directions_RD.shape
    if 2 * rank > width:
        raise UserError(f"method.rank={rank}: no subspace of that rank is orthogonal to one of {width} dimensions")
    draws_RD = torch.randn(rank, width, dtype=torch.float64, generator=generator)
    return orthonormal(draws_RD - draws_RD @ basis_DR @ basis_DR.T).T


def split(directions_RD: Tensor, reader_WD: Tensor) -> tuple[Tensor, Tensor]:
    """The parts of a subspace that the linear map reading the site sees and does not: row space, null space.

    Each is the span of the directions' projections, R' by D with R' <= R, empty where nothing is left. Patching the
    null-space part changes nothing the map reads; an effect of the whole that it explains is an illusion
    (Makelov, Lange & Nanda 2023).
    """
    strength_D, axes_DD = torch.linalg.eigh(reader_WD.double().T @ reader_WD.double())
    read_D = strength_D > (DEPENDENT**2) * strength_D.max()
    return tuple(_span(directions_RD.double() @ axes @ axes.T) for axes in (axes_DD[:, read_D], axes_DD[:, ~read_D]))


def _span(x_RD: Tensor) -> Tensor:
    strength, directions = torch.linalg.svd(x_RD, full_matrices=False)[1:]
    return directions[strength > DEPENDENT]
