"""The hand-written gradients: those of autograd through the reference's loop, in memory that no state fills."""
from contextlib import contextmanager

import pytest
import torch
from oracles import deviation
from torch.utils._python_dispatch import TorchDispatchMode

from mamba_mi.backends import chunked, many_decays_gradients, one_decay_gradients, reference
from tests.backends.test_scan import SHAPES, drawn, fierce

LENGTHS = (1, 2, 15, 16, 17, 33, 63, 64, 65, 70)
FLOAT32 = 1e-5


@pytest.fixture(params=SHAPES)
def shape(request):
    return request.param


def gradients(scan, args, h0, dt_write, dy, dh):
    """Those of every argument given, along `dy` and `dh`; None where the output is not asked after."""
    given = [None if x is None else x.clone().requires_grad_() for x in (*args, h0, dt_write)]
    outputs = scan(*given[:5], h0=given[5], dt_write=given[6])
    pairs = [(y, d) for y, d in zip(outputs, (dy, dh)) if d is not None]
    inputs = [x for x in given if x is not None]
    found = torch.autograd.grad([y for y, _ in pairs], inputs, [d for _, d in pairs], allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found)]


def case(shape, length, *, rows=2, starts=0, negative=False, apart=False):
    """Arguments, and directions for y and the last state: so many `starts`, a dt that is `negative` at some tokens, what is
    written `apart` from what decays."""
    args, h0 = drawn(shape, length, rows=rows)
    if negative:
        args.dt_BLH[:, ::7] *= -1
    dt_write = drawn(shape, length, rows=rows, seed=1)[0].dt_BLH if apart else None
    other, dh = drawn(shape, length, rows=rows, seed=2)
    return args, h0[:starts] if starts else None, dt_write, other.v_BLHP, dh


def assert_as_the_reference(given, bound, cast=lambda x: x):
    ours = gradients(chunked.scan, *(type(x)(*map(cast, x)) if isinstance(x, tuple) else cast(x) for x in given))
    for k, (got, want) in enumerate(zip(ours, gradients(reference.scan, *given), strict=True)):
        assert deviation(got, want) <= bound, f"argument {k}"


@pytest.mark.parametrize("negative", [False, True], ids=["fading", "growing"])
@pytest.mark.parametrize("starts", [0, 2], ids=["from-zero", "from-h0"])
def test_the_gradients_are_the_references(shape, starts, negative):
    for length in LENGTHS:
        assert_as_the_reference(case(shape, length, starts=starts, negative=negative, apart=length % 2 == 0), 1e-10)


@pytest.mark.parametrize("length", [127, 128, 129, 257])
def test_so_they_are_around_far_borders_of_chunks(shape, length):
    given = case(shape, length, starts=1)
    assert_as_the_reference(given, 1e-10)
    assert_as_the_reference(given, FLOAT32, lambda x: None if x is None else x.float())


@pytest.mark.parametrize("starts", [1, 2, 3, 6])
def test_shared_starts_gather_the_gradients_of_all_rows_a_few_at_a_time(shape, starts, monkeypatch):
    monkeypatch.setattr(one_decay_gradients, "WORK", 1)
    for most in (1, 8, 50):
        monkeypatch.setattr(many_decays_gradients, "STATE", most)
        assert_as_the_reference(case(shape, 66, rows=6, starts=starts), 1e-10)


@pytest.mark.parametrize("silent", ["y", "state"])
def test_y_and_the_last_state_have_gradients_alone(shape, silent):
    args, h0, dt_write, dy, dh = case(shape, 70, starts=2)
    assert_as_the_reference((args, h0, dt_write, None if silent == "y" else dy, None if silent == "state" else dh), 1e-10)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, FLOAT32)], ids=str)
def test_fierce_decays_have_right_gradients_head_by_head(shape, dtype, bound):
    """With A as far as -3e8 a rounding of what has decayed away, times A, would be all one sees of dt's gradient."""
    args, h0 = fierce(shape, 70)
    args, h0 = type(args)(*(x.to(dtype) for x in args)), h0.to(dtype)
    dy, dh = (x.to(dtype) for x in (drawn(shape, 70, seed=2)[0].v_BLHP, drawn(shape, 70, seed=2)[1]))
    ours = gradients(chunked.scan, args, h0, None, dy, dh)
    exact = [type(args)(*(x.double() for x in args)), h0.double(), None, dy.double(), dh.double()]
    theirs = gradients(reference.scan, *exact)
    for head in range(args.v_BLHP.shape[2]):
        for k, at in ((0, (..., head, slice(None))), (1, (..., head)), (2, head), (5, (slice(None), head))):
            got, want = ours[k][at], theirs[k][at].to(dtype)  # what float32 cannot tell from 0 is 0
            assert torch.equal(got, want) or deviation(got, want) <= bound, (head, k)


@pytest.mark.parametrize("length", [1, 17])
def test_finite_differences_agree_to_the_second_order(shape, length):
    args, h0 = drawn(shape, length, rows=1)
    given = [x.requires_grad_() for x in (*args, h0)]

    def scan(*given):
        return chunked.scan(*given[:5], h0=given[5])

    assert torch.autograd.gradcheck(scan, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(scan, given, fast_mode=True)


def test_a_second_gradient_follows_each_argument_once_where_one_is_made_of_another(shape):
    """B made of v: v's own gradient must not hold B's again."""
    args, h0 = drawn(shape, 5, rows=1)
    _, _, heads, width = args.v_BLHP.shape

    def squared(scan):
        v = args.v_BLHP.clone().requires_grad_()
        y, _ = scan(v, args.dt_BLH, args.A_HN, args.B_BLGN * v.sum((2, 3), keepdim=True), args.C_BLGN, h0=h0)
        dv, = torch.autograd.grad(y.sum(), v, create_graph=True)
        return dv.detach(), torch.autograd.grad(dv.square().sum(), v)[0]

    for got, want in zip(squared(chunked.scan), squared(reference.scan), strict=True):
        assert deviation(got, want) <= 1e-10


def test_an_argument_without_gradients_gets_none(shape):
    args, h0 = drawn(shape, 20)
    for asked in range(6):
        given = [x.clone().requires_grad_(k == asked) for k, x in enumerate((*args, h0))]
        y, h = chunked.scan(*given[:5], h0=given[5])
        (y.sum() + h.sum()).backward()
        assert [x.grad is not None for x in given] == [k == asked for k in range(6)]


def test_a_state_that_is_left_out_changes_no_gradient(shape):
    args, h0, _, dy, _ = case(shape, 70, starts=2)

    def without(*given, **how):
        return chunked.scan(*given, keep_h=False, **how)

    for got, want in zip(*(gradients(scan, args, h0, None, dy, None) for scan in (without, chunked.scan)), strict=True):
        assert torch.equal(got, want)


@contextmanager
def saved():
    """The numbers autograd keeps, each tensor once."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.setdefault(x.data_ptr(), x), lambda x: x):
        yield kept


class Living(TorchDispatchMode):
    """The most numbers that one tensor made in it has."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            self.most = max(self.most, x.untyped_storage().nbytes() // x.element_size() if isinstance(x, torch.Tensor) else 0)
        return out


def states(shape, length):
    """How many numbers all states of the pass are; and what a scan keeps and makes at most at once."""
    args, _ = drawn(shape, length, rows=1)
    args = [x.requires_grad_() for x in args]
    with Living() as living, saved() as kept:
        chunked.scan(*args, keep_h=False)[0].sum().backward()
    heads, width, state = SHAPES[shape][:3]
    return length * heads * width * state, sum(x.numel() for x in kept.values()), living.most


@pytest.mark.parametrize(("shape", "sizes"), [("mamba1", (32, 1, 16, 1, 16)), ("mamba2", (2, 16, 64, 1, 1))])
def test_no_tensor_of_every_state_is_kept_or_made(shape, sizes, monkeypatch):
    monkeypatch.setitem(SHAPES, shape, sizes)
    monkeypatch.setattr(many_decays_gradients, "STATE", 512)
    length = 512
    every, kept, most = states(shape, length)
    given = sum(x.numel() for x in drawn(shape, length, rows=1)[0])
    assert kept <= given + every / 16 + 512 and most < every / 8  # 512: a start of zeros
    assert states(shape, 2 * length)[1] == pytest.approx(2 * kept, rel=0.05)


def test_autocast_leaves_the_scan_its_types(shape):
    args, h0 = drawn(shape, 70)
    args, h0 = type(args)(*(x.float() for x in args)), h0.float()
    dy = torch.ones_like(args.v_BLHP)
    apart = chunked.scan(*args, h0=h0), gradients(chunked.scan, args, h0, None, dy, h0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = chunked.scan(*args, h0=h0), gradients(chunked.scan, args, h0, None, dy, h0)
    assert all(torch.equal(x, y) for one, other in zip(apart, under) for x, y in zip(one, other, strict=True))
