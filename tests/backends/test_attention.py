"""M itself: the definition's entries, on demand by row and head, and never with the state as a fifth axis."""
import numpy as np
import oracles
import pytest
import torch
from oracles import deviation
from torch.utils._python_dispatch import TorchDispatchMode

from mamba_mi import UserError
from mamba_mi.backends import attention
from tests.backends.test_scan import SHAPES, by_hand, drawn, fierce


@pytest.fixture(params=SHAPES)
def shape(request):
    return request.param


def true_matrix(args):
    return np.stack([oracles.mixing_matrix(args.dt_BLH[r].double().numpy(), args.A_HN.double().numpy(),
                                           args.B_BLGN[r].double().numpy(), args.C_BLGN[r].double().numpy())
                     for r in range(len(args.v_BLHP))])


def test_the_matrix_is_its_definition_and_times_v_it_is_the_scan(shape):
    args, _ = drawn(shape, 17)
    M_BHTS = attention.mixing(*args[1:])
    assert deviation(M_BHTS, true_matrix(args)) <= 1e-13
    assert deviation((M_BHTS @ args.v_BLHP.transpose(1, 2)).transpose(1, 2), by_hand(args)[0]) <= 1e-12
    assert not M_BHTS.triu(1).any()


def test_rows_and_heads_are_to_be_had_alone(shape, monkeypatch):
    args, _ = drawn(shape, 17)
    whole = attention.mixing(*args[1:])
    for rows, heads in (([16], [0]), ([-1, 3], None), (None, [3, 1]), (5, 2)):
        part = attention.mixing(*args[1:], rows=rows, heads=heads)
        r, h = ([x] if isinstance(x, int) else slice(None) if x is None else x for x in (rows, heads))
        assert deviation(part, whole[:, h][:, :, r]) <= 1e-13
    monkeypatch.setattr(attention, "BLOCK", 1)  # a head at a time
    assert deviation(attention.mixing(*args[1:]), whole) <= 1e-13
    assert deviation(attention.scan(*args)[0], by_hand(args)[0]) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_fierce_decays_give_neither_nan_nor_a_wrong_entry(shape, dtype):
    args, _ = fierce(shape, 40)
    args = type(args)(*(x.to(dtype) for x in args))
    M_BHTS, truth = attention.mixing(*args[1:]), true_matrix(args)
    assert torch.isfinite(M_BHTS).all()
    for head in range(M_BHTS.shape[1]):
        assert deviation(M_BHTS[:, head], truth[:, head]) <= (1e-12 if dtype == torch.float64 else 1e-5)


class Largest(TorchDispatchMode):
    """The most numbers any tensor made inside it has."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            self.most = max(self.most, x.numel() if isinstance(x, torch.Tensor) else 0)
        return out


def test_many_decays_never_make_length_squared_times_channels_or_times_states(monkeypatch):
    length, channels, states = 32, 48, 16
    monkeypatch.setattr(attention, "BLOCK", length * length * 4)
    x = torch.rand(1, length, channels)
    A, B = -torch.rand(channels, states), torch.rand(1, length, 1, states)
    with Largest() as scan:
        attention.scan(x[..., None], x, A, B, B)
    assert scan.most == 4 * length * length  # four channels' M, whatever the number of states
    with Largest() as mixing:
        attention.mixing(x, A, B, B)
    assert mixing.most == channels * length * length


@pytest.mark.parametrize("asked", [{"rows": [17]}, {"rows": []}, {"heads": [-5, 99]}], ids=str)
def test_rows_and_heads_that_are_not_there_are_refused(asked):
    with pytest.raises(UserError, match=f"{next(iter(asked))}=.*there are 0-"):
        attention.mixing(*drawn("mamba2", 17)[0][1:], **asked)
