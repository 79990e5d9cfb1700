"""The passes over channels of every backend, softplus and gate, against numpy in float64; also where none is compiled."""
import numpy as np
import pytest
import torch
from oracles import deviation

from mamba_mi.config import stream

KINDS = {torch.float32: 1e-6, torch.float64: 1e-13}


@pytest.fixture(params=KINDS, ids=str)
def kind(request):
    return request.param


def drawn(rows, length, channels, kind):
    """Two tensors with channels in part of a wider one, as a projection's halves are."""
    x = torch.randn(rows, length, 2 * channels, dtype=torch.float64, generator=stream(0, "channels", rows, length))
    return (8 * x).to(kind).chunk(2, dim=-1)


@pytest.mark.parametrize(("rows", "length", "channels"), [(1, 1, 1), (2, 3, 33), (3, 70, 64)])
def test_softplus_and_gate_are_what_numpy_makes_of_them(backend, kind, rows, length, channels):
    y, z = drawn(rows, length, channels, kind)
    y_wide, z_wide = y.double().numpy(), z.double().numpy()
    before = y.clone(), z.clone()
    bias = torch.randn(channels, generator=stream(1, "bias")).to(kind)
    truth = np.logaddexp(0, z_wide + bias.double().numpy())
    got = backend.softplus(z, bias)
    assert deviation(got, truth) <= max(KINDS[kind], 2e-10)  # torch takes z itself above 20: off by exp(-20) / 20
    assert np.all(np.abs(got.double().numpy() / truth - 1) <= max(4 * KINDS[kind], 2e-10))  # a small dt too
    assert deviation(backend.gate(y, z), y_wide * z_wide / (1 + np.exp(-z_wide))) <= KINDS[kind]
    assert torch.equal(y, before[0]) and torch.equal(z, before[1])


def test_what_is_far_from_zero_neither_overflows_nor_hides_a_nan(backend, kind):
    z = torch.tensor([[[-1e4, -200.0, -90.0, 0.0, 90.0, 200.0, 1e4, torch.nan]]], dtype=kind)
    dt, gated = backend.softplus(z, torch.zeros(8, dtype=kind)), backend.gate(torch.ones_like(z), z)
    for got in (dt, gated):
        assert torch.equal(got[..., 4:7], z[..., 4:7]) and got[..., 7].isnan().all()
        assert (got[..., :3].abs() < 1e-30).all()
    assert dt[0, 0, 3] == pytest.approx(np.log(2), rel=1e-6) and gated[0, 0, 3] == 0


def test_one_row_gates_with_many(backend, kind):
    y, z = drawn(3, 5, 7, kind)
    assert deviation(backend.gate(y[:1], z), torch.nn.functional.silu(z.double()) * y[:1].double()) <= KINDS[kind]


def test_softplus_is_in_the_type_of_its_bias(backend):
    z = torch.randn(2, 3, 4, generator=stream(0, "z")).bfloat16()
    dt = backend.softplus(z, torch.zeros(4))
    assert dt.dtype == torch.float32
    assert deviation(dt, np.logaddexp(0, z.double().numpy())) <= 1e-6


def test_gradients_pass(backend):
    y, z = (x.clone().requires_grad_() for x in drawn(2, 3, 4, torch.float64))
    bias = torch.randn(4, dtype=torch.float64, generator=stream(1, "bias")).requires_grad_()
    assert torch.autograd.gradcheck(backend.softplus, (z, bias))
    assert torch.autograd.gradcheck(backend.gate, (y, z))
