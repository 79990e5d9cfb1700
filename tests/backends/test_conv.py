"""The causal depthwise convolution of every backend against a numpy loop over tokens."""
import numpy as np
import oracles
import pytest
import torch
from oracles import deviation

from mamba_mi.backends import reference
from mamba_mi.config import stream


def drawn(length, width, rows=3, channels=5):
    generator = stream(0, "conv", length, width)
    sizes = ((rows, length, channels), (channels, width), (channels,), (rows, width - 1, channels))
    return [torch.randn(*size, dtype=torch.float64, generator=generator) for size in sizes]


@pytest.fixture(params=[1, 2, 3, 4])
def width(request):
    return request.param


@pytest.mark.parametrize("past", [0, 1, 3], ids=["from-nothing", "from-one-past", "from-a-past-a-row"])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 70])
def test_conv_is_the_loop_over_tokens_and_hands_on_its_last_inputs(backend, length, width, past):
    u_BLC, weight_CK, bias_C, tail_BKC = drawn(length, width)
    tail = tail_BKC[:past] if past else None
    y_BLC, after_BKC = backend.conv(u_BLC, weight_CK, bias_C, tail=tail)
    for r in range(3):
        before = tail_BKC[r % past].numpy() if past else np.zeros((width - 1, 5))
        truth = oracles.causal_conv(u_BLC[r].numpy(), weight_CK.numpy(), bias_C.numpy(), before)
        assert deviation(y_BLC[r], truth) <= 1e-13
        seen = np.concatenate([before, u_BLC[r].numpy()])
        # a zero start may be handed on once for all rows
        assert np.array_equal(after_BKC[r % len(after_BKC)], seen[len(seen) - (width - 1):])


def test_silu_over_the_conv_is_silu_after_it(backend, width):
    u_BLC, weight_CK, bias_C, tail_BKC = drawn(9, width)
    plain, after = backend.conv(u_BLC, weight_CK, bias_C, tail=tail_BKC)
    y_BLC, tail = backend.conv(u_BLC, weight_CK, bias_C, tail=tail_BKC, silu=True)
    assert deviation(y_BLC, plain.numpy() / (1 + np.exp(-plain.numpy()))) <= 1e-13
    assert torch.equal(tail, after)


def test_a_conv_cut_anywhere_goes_on_from_its_tail(backend, width):
    u_BLC, weight_CK, bias_C, tail_BKC = drawn(9, width)
    whole, last = backend.conv(u_BLC, weight_CK, bias_C, tail=tail_BKC)
    for cut in range(1, 9):
        head, tail = backend.conv(u_BLC[:, :cut], weight_CK, bias_C, tail=tail_BKC)
        rest, tail = backend.conv(u_BLC[:, cut:], weight_CK, bias_C, tail=tail)
        assert deviation(torch.cat([head, rest], dim=1), whole) <= 1e-13
        assert torch.equal(tail, last)


def test_nothing_given_to_the_conv_is_changed(backend, width):
    given = drawn(5, width)
    before = [x.clone() for x in given]
    backend.conv(*given[:3], tail=given[3])
    assert all(torch.equal(x, old) for x, old in zip(given, before, strict=True))


@pytest.mark.parametrize("past", [0, 1, 3], ids=["from-nothing", "from-one-past", "from-a-past-a-row"])
@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_the_convs_gradients_are_the_references(backend, length, width, past):
    u_BLC, weight_CK, bias_C, tail_BKC = drawn(length, width)
    wanted = torch.randn(u_BLC.shape, dtype=u_BLC.dtype, generator=stream(0, "wanted"))

    def gradients(conv):
        given = [x.clone().requires_grad_() for x in (u_BLC, weight_CK, bias_C, tail_BKC[:max(past, 1)])]
        y_BLC, after_BKC = conv(*given[:3], tail=given[3] if past else None)
        (y_BLC * wanted).sum().add(after_BKC.square().sum() if past else 0).backward()
        return [x.grad for x in given[:3 + bool(past)]]

    for got, want in zip(gradients(backend.conv), gradients(reference.conv), strict=True):
        assert want.numel() == 0 or deviation(got, want) <= 1e-13


def test_the_convs_gradients_have_gradients(backend):
    given = [x.requires_grad_() for x in drawn(5, 3)]

    def conv(*given):
        return backend.conv(*given[:3], tail=given[3])

    assert torch.autograd.gradcheck(conv, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(conv, given, fast_mode=True)


def test_autocast_convolves_short_inputs_with_wide_weights_and_back(backend):
    u_BLC, weight_CK, bias_C, _ = (x.float() for x in drawn(9, 4))
    short = u_BLC.bfloat16().requires_grad_()
    weight_CK, bias_C = weight_CK.requires_grad_(), bias_C.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        backend.conv(short, weight_CK, bias_C)[0].sum().backward()
    weight_grad, weight_CK.grad = weight_CK.grad, None
    wide = short.detach().float().requires_grad_()
    backend.conv(wide, weight_CK, bias_C)[0].sum().backward()
    assert short.grad.dtype == torch.bfloat16 and deviation(short.grad.float(), wide.grad) <= 1e-2
    assert deviation(weight_grad, weight_CK.grad) <= 1e-5
