"""The backend `cuda` itself: its kernels on a GPU against the reference on the CPU in float64."""
import pytest
import torch
from oracles import deviation
from small import small

from mamba_mi import backends
from mamba_mi.backends import cuda, proving, reference
from mamba_mi.config import stream
from mamba_mi.models.whole import in_one_call
from mamba_mi.trace import BLIND, Trace
from tests.backends import test_conv
from tests.backends.test_cuda_whole import SIZES
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


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("length", [1, 17, 300])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", SIZES)
def test_a_layer_is_the_references_watched_or_not(variant, dtype, length, keep):
    layer, wide = (small(variant, dtype=dtype, **SIZES[variant]).layers[1] for _ in range(2))
    layer, wide = layer.to("cuda"), wide.to("cpu").double()
    layer.backend, wide.backend = cuda, reference
    x = torch.randn(2, length, 32, dtype=torch.float64, generator=stream(0, "stream", length)).float()
    assert in_one_call(layer, type(layer), f"whole_{variant}", x.cuda(), BLIND, None)
    want, wanted = wide(x.double(), keep=keep)
    for trace in (BLIND, Trace()):
        trace.begin(0, length)
        out, kept = layer(x.cuda(), trace, keep=keep)
        pairs = [(out.cpu() - x, want - x.double()), *((one.cpu().double(), other) for one, other in zip(kept or (), wanted or ()))]
        for got, exact in pairs:
            assert deviation(got, exact) <= (BOUND if dtype == "float32" else 3e-2)
