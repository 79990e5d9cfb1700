"""M itself, of every backend: the definition's entries, on demand by row and head; in plain torch never with the state as a
fifth axis."""
import numpy as np
import oracles
import pytest
import torch
from oracles import deviation
from torch.utils._python_dispatch import TorchDispatchMode

from mamba_mi import UserError
from mamba_mi.backends import attention, mixing, reference
from tests.backends.test_scan import SHAPES, by_hand, drawn, fierce


@pytest.fixture(params=SHAPES)
def shape(request):
    return request.param


def true_matrix(args):
    return np.stack([oracles.mixing_matrix(args.dt_BLH[r].double().numpy(), args.A_HN.double().numpy(),
                                           args.B_BLGN[r].double().numpy(), args.C_BLGN[r].double().numpy())
                     for r in range(len(args.v_BLHP))])


def test_the_matrix_is_its_definition_and_times_v_it_is_the_scan(backend, shape):
    args, _ = drawn(shape, 17)
    M_BHTS = backend.mixing(*args[1:])
    assert deviation(M_BHTS, true_matrix(args)) <= 1e-13
    assert deviation((M_BHTS @ args.v_BLHP.transpose(1, 2)).transpose(1, 2), by_hand(args)[0]) <= 1e-12
    assert not M_BHTS.triu(1).any()


def test_rows_and_heads_are_to_be_had_alone(backend, shape, monkeypatch):
    args, _ = drawn(shape, 17)
    whole = backend.mixing(*args[1:])
    for rows, heads in (([16], [0]), ([-1, 3], None), (None, [3, 1]), (5, 2)):
        part = backend.mixing(*args[1:], rows=rows, heads=heads)
        r, h = ([x] if isinstance(x, int) else slice(None) if x is None else x for x in (rows, heads))
        assert deviation(part, whole[:, h][:, :, r]) <= 1e-13
    monkeypatch.setattr(mixing, "BLOCK", 1)  # a head at a time
    assert deviation(backend.mixing(*args[1:]), whole) <= 1e-13
    assert deviation(attention.scan(*args)[0], by_hand(args)[0]) <= 1e-12


@pytest.mark.parametrize("block", [1, 2 * 2 * 2 * 17, 1 << 16], ids=["one-head", "two-heads", "all"])
def test_heads_taken_together_are_the_signed_mean_and_the_root_mean_square_of_their_matrices(backend, shape, block, monkeypatch):
    monkeypatch.setattr(mixing, "BLOCK", block)
    args, _ = drawn(shape, 17)
    for rows in (None, [16, -3]):
        truth = true_matrix(args)[:, :, slice(None) if rows is None else rows]
        for how, want in (("mean", truth.mean(1)), ("norm", np.sqrt((truth**2).mean(1)))):
            assert deviation(backend.mixing_over_heads(*args[1:], how=how, rows=rows), want) <= 1e-13


def test_what_is_written_with_a_dt_of_its_own_decays_with_the_others(backend, shape):
    args, _ = drawn(shape, 9)
    dt_write = drawn(shape, 9, seed=1)[0].dt_BLH
    want = true_matrix(args) * (dt_write / args.dt_BLH).transpose(1, 2)[:, :, None].numpy()
    assert deviation(backend.mixing(*args[1:], dt_write=dt_write), want) <= 1e-13
    assert deviation(backend.mixing_over_heads(*args[1:], how="mean", dt_write=dt_write), want.mean(1)) <= 1e-13


def test_the_matrix_has_the_gradients_of_the_scan_that_it_is(backend, shape):
    args, _ = drawn(shape, 9)
    v, weight = args.v_BLHP, drawn(shape, 9, seed=1)[0].v_BLHP
    grads = []
    for made in (lambda *x: (backend.mixing(*x) @ v.transpose(1, 2)).transpose(1, 2), lambda *x: reference.scan(v, *x)[0]):
        given = [x.clone().requires_grad_() for x in args[1:]]
        (made(*given) * weight).sum().backward()
        grads.append([x.grad for x in given])
    for got, want in zip(*grads, strict=True):
        assert deviation(got, want) <= 1e-12


@pytest.mark.parametrize(("how", "plain"), [
    ("mean", lambda M: M.mean(1)), ("norm", lambda M: torch.linalg.vector_norm(M, dim=1) / M.shape[1] ** 0.5)])
@pytest.mark.parametrize("rows", [None, [4]])
def test_heads_taken_together_have_gradients_also_where_a_source_comes_after_its_query(backend, shape, how, plain, rows):
    args, _ = drawn(shape, 5)
    grads = []
    for made in (lambda *x: backend.mixing_over_heads(*x, how=how, rows=rows), lambda *x: plain(attention.mixing(*x, rows=rows))):
        given = [x.clone().requires_grad_() for x in args[1:]]
        M_BTS = made(*given)
        (M_BTS.pow(3) + M_BTS * torch.linspace(1, 2, 5, dtype=torch.float64)).sum().backward()
        grads.append([x.grad for x in given])
    for got, want in zip(*grads, strict=True):
        assert deviation(got, want) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_fierce_decays_give_neither_nan_nor_a_wrong_entry(backend, shape, dtype):
    args, _ = fierce(shape, 40)
    args = type(args)(*(x.to(dtype) for x in args))
    M_BHTS, truth = backend.mixing(*args[1:]), true_matrix(args)
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
    monkeypatch.setattr(mixing, "BLOCK", length * length * 4)
    x = torch.rand(1, length, channels)
    A, B = -torch.rand(channels, states), torch.rand(1, length, 1, states)
    with Largest() as scan:
        attention.scan(x[..., None], x, A, B, B)
    assert scan.most == 4 * length * length  # four channels' M, whatever the number of states
    with Largest() as written:
        attention.mixing(x, A, B, B)
    assert written.most == channels * length * length
    with Largest() as together:
        attention.mixing_over_heads(x, A, B, B, how="norm")
    assert together.most == 4 * length * length
    with Largest() as together:
        attention.mixing_over_heads(x, A, B, B, how="norm", rows=[3])
    assert together.most <= 4 * length * length


@pytest.mark.parametrize("asked", [{"rows": [17]}, {"rows": []}, {"heads": [-5, 99]}], ids=str)
def test_rows_and_heads_that_are_not_there_are_refused(backend, asked):
    with pytest.raises(UserError, match=f"{next(iter(asked))}=.*there are 0-"):
        backend.mixing(*drawn("mamba2", 17)[0][1:], **asked)


def test_a_way_to_take_heads_together_that_is_none_is_refused(backend):
    with pytest.raises(UserError, match="^how='max': heads are taken together by mean or norm$"):
        backend.mixing_over_heads(*drawn("mamba2", 3)[0][1:], how="max")
    with pytest.raises(UserError, match="^rows=.3.: there are 0-2"):
        backend.mixing_over_heads(*drawn("mamba2", 3)[0][1:], how="mean", rows=[3])
