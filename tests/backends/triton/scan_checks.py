"""The scan's kernels against the loops over tokens: interpreted where TRITON_INTERPRET=1, else on the CUDA device."""
import pytest
import torch
from oracles import deviation

from mamba_mi import backends
from mamba_mi.backends import triton
from tests.backends.test_scan import SHAPES, Args, by_hand, drawn

DEVICE = "cpu" if triton.INTERPRETED else "cuda"
FLOAT32 = 1e-6


@pytest.fixture(params=SHAPES)
def shape(request):
    return request.param


def moved(x, dtype=torch.float32):
    return None if x is None else x.to(DEVICE, dtype)


def scanned(args, h0=None, *, dtype=torch.float32, **how):
    """y and the last state, on the CPU again."""
    how = {name: moved(x, dtype) if isinstance(x, torch.Tensor) else x for name, x in how.items()}
    y, h = triton.scan(*(moved(x, dtype) for x in args), h0=moved(h0, dtype), **how)
    return y.cpu(), None if h is None else h.cpu()


def test_it_is_a_backend_of_this_device():
    assert "triton" in backends.available(DEVICE)


@pytest.mark.parametrize("length", [1, 3, 17, 65])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, FLOAT32), (torch.float64, 1e-12)], ids=str)
def test_the_scan_is_the_loop_over_tokens(shape, length, dtype, bound):
    args, h0 = drawn(shape, length)
    for start in (None, h0[:1], h0):
        for got, want in zip(scanned(args, start, dtype=dtype), by_hand(args, start), strict=True):
            assert deviation(got, want) <= bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_types_are_summed_in_float32_and_rounded_once(shape, dtype):
    args, h0 = drawn(shape, 33)
    short = Args(*(x.to(torch.float32 if name in ("dt_BLH", "A_HN") else dtype) for name, x in args._asdict().items()))
    y, h = triton.scan(*(x.to(DEVICE) for x in short), h0=moved(h0))
    long_y, long_h = triton.scan(*map(moved, short), h0=moved(h0))
    assert y.dtype == dtype and h.dtype == torch.float32
    assert torch.equal(y, long_y.to(dtype)) and torch.equal(h, long_h)
