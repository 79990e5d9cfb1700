"""The norms of every backend, plain and gated, against numpy in float64, at the widths and strides models hand them over in."""
import numpy as np
import pytest
import torch
from oracles import deviation

from mamba_mi.backends import reference
from mamba_mi.config import stream

KINDS = {torch.float32: 1e-6, torch.float64: 1e-13}
EPS = 0.1  # as large as what is normed: one that is left out, or stands beside the root, shows


@pytest.fixture(params=KINDS, ids=str)
def kind(request):
    return request.param


def drawn(kind, rows=2, length=3, width=24):
    """Two parts of a wider projection, and a weight."""
    normal = torch.randn(rows, length, 2 * width + 1, dtype=torch.float64, generator=stream(0, "norms", rows, length, width)).to(kind)
    weight = torch.randn(width, dtype=torch.float64, generator=stream(1, "norms", width)).to(kind)
    return normal[..., 1:width + 1], normal[..., width + 1:], weight


def in_numpy(x, weight, groups, z=None):
    x, weight = x.double().detach().numpy(), weight.double().detach().numpy()
    if z is not None:
        z = z.double().detach().numpy()
        x = x * z / (1 + np.exp(-z))
    parts = x.reshape(*x.shape[:-1], groups, -1)
    return (parts / np.sqrt((parts**2).mean(-1, keepdims=True) + EPS)).reshape(x.shape) * weight


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("rows", "length", "width"), [(2, 3, 24), (1, 1, 3), (3, 70, 96)])
def test_both_norms_are_what_numpy_makes_of_them(backend, kind, rows, length, width, groups):
    x, z, weight = drawn(kind, rows, length, width)
    before = x.clone(), z.clone()
    for got, want in ((backend.norm(x, weight, EPS, groups=groups), in_numpy(x, weight, groups)),
                      (backend.gated_norm(x, z, weight, EPS, groups=groups), in_numpy(x, weight, groups, z))):
        assert got.dtype == kind and deviation(got, want) <= 3 * KINDS[kind]
    assert torch.equal(x, before[0]) and torch.equal(z, before[1])


def test_a_width_of_one_is_normed(backend):
    x, z, weight = drawn(torch.float64, 3, 4, 1)
    x, z = (torch.empty_strided(x.shape, (4, 1, 5), dtype=x.dtype).copy_(each) for each in (x, z))  # any stride is right for one
    assert deviation(backend.norm(x, weight, EPS), in_numpy(x, weight, 1)) <= 1e-13
    assert deviation(backend.gated_norm(x, z, weight, EPS), in_numpy(x, weight, 1, z)) <= 1e-13


def test_a_norm_is_in_the_type_of_its_weight_and_a_gated_one_in_that_of_what_is_gated(backend):
    x, z, weight = drawn(torch.float32)
    short = [each.bfloat16() for each in (x, z)]
    normed, gated = backend.norm(short[0], weight, EPS), backend.gated_norm(*short, weight, EPS, groups=3)
    assert normed.dtype == torch.float32 and deviation(normed, in_numpy(short[0], weight, 1)) <= 1e-6
    assert gated.dtype == torch.bfloat16 and deviation(gated.float(), in_numpy(short[0], weight, 3, short[1])) <= 2e-2


@pytest.mark.parametrize("groups", [1, 3])
def test_gradients_are_those_of_plain_torch_and_can_be_taken_twice(backend, groups):
    """Also where the weight alone is trained."""
    given = [each.clone().requires_grad_() for each in drawn(torch.float64)]
    how = {"eps": EPS, "groups": groups}
    for each, of in ((backend, given), (backend, [given[0].detach(), given[1].detach(), given[2]])):
        asked = [x for x in of if x.requires_grad]
        for verb, args in (("norm", (of[0], of[2])), ("gated_norm", of)):
            got, want = (torch.autograd.grad(getattr(by, verb)(*args, **how).sin().sum(), asked, allow_unused=True) for by in (each, reference))
            for dx, wanted in zip(got, want, strict=True):
                assert (dx is None) == (wanted is None) and (dx is None or deviation(dx, wanted) <= 1e-12)
    assert torch.autograd.gradcheck(lambda y, z, w: backend.gated_norm(y, z, w, **how), given, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda y, z, w: backend.gated_norm(y, z, w, **how), given, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, w: backend.norm(x, w, **how), given[::2], fast_mode=True)
