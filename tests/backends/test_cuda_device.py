"""The backend `cuda` itself: its kernels on a GPU against the reference on the CPU in float64."""
import pytest
import torch
from oracles import deviation

from mamba_mi import backends
from mamba_mi.backends import cuda, proving, reference
from tests.backends import test_conv
from tests.backends.test_gradients import case, gradients
from tests.backends.test_scan import SHAPES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(cuda.missing()), reason=f"backend=cuda cannot run: {cuda.missing()}")]
BOUND = 1e-5


def there(x):
    return None if x is None else type(x)(*map(there, x)) if isinstance(x, tuple) else x.float().to("cuda")


@pytest.fixture(params=SHAPES)
def shape(request):
    return request.param


def test_it_is_proved_and_taken():
    assert proving.prove("cuda", "cuda") == ""
    assert backends.choose("auto", "cuda").used == "cuda"


@pytest.mark.parametrize("starts", [0, 1, 2])
@pytest.mark.parametrize("length", [1, 17, 70, 300])
def test_its_scans_and_their_gradients_are_the_references(shape, length, starts):
    given = case(shape, length, starts=starts)
    args, h0, *_ = given
    for got, want in zip(cuda.scan(*there(args), h0=there(h0)), reference.scan(*args, h0=h0), strict=True):
        assert deviation(got.cpu(), want) <= BOUND
    for k, (got, want) in enumerate(zip(gradients(cuda.scan, *map(there, given)), gradients(reference.scan, *given), strict=True)):
        assert deviation(got.cpu(), want) <= 10 * BOUND, f"argument {k}"


@pytest.mark.parametrize("channels", [5, 16])
@pytest.mark.parametrize("length", [1, 3, 70])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_its_conv_is_the_references_with_its_gradients(channels, length, width):
    given = test_conv.drawn(length, width, rows=2, channels=channels)
    found = []
    for conv, own in ((cuda.conv, [there(x).requires_grad_() for x in given]), (reference.conv, [x.requires_grad_() for x in given])):
        y, tail = conv(*own[:3], tail=own[3])
        found.append([y, tail, *torch.autograd.grad(y.square().sum(), own)])
    for got, want in zip(*found, strict=True):
        assert deviation(got.detach().cpu(), want.detach()) <= 10 * BOUND
