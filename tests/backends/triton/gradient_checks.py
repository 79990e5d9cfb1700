"""The kernels' gradients against autograd through the reference's loop: interpreted where TRITON_INTERPRET=1, else on the device."""
import pytest
import torch
from oracles import deviation

from mamba_mi.backends import reference, triton
from mamba_mi.backends.kernels import many_decays, one_decay, one_decay_back
from tests.backends.test_gradients import case, gradients
from tests.backends.test_scan import SHAPES, drawn, fierce

DEVICE = "cpu" if triton.INTERPRETED else "cuda"
EXACT, FLOAT32 = 1e-12, 1e-5
FIRST = ("many-decays-in-groups", "mamba2-groups")  # the others are slow


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(many_decays, "CHUNK", 4)
    monkeypatch.setattr(one_decay, "CHUNK", 16)


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name not in FIRST)) for name, sizes in SHAPES.items()
                        if sizes[-1] == 1])
def in_chunks(request):
    return request.param


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name not in FIRST)) for name in SHAPES])
def shape(request):
    return request.param


def cast(given, dtype):
    return [type(x)(*cast(x, dtype)) if isinstance(x, tuple) else None if x is None else x.to(DEVICE, dtype) for x in given]


def assert_as_the_reference(given, dtype, bound):
    ours = gradients(triton.scan, *cast(given, dtype))
    for k, (got, want) in enumerate(zip(ours, gradients(reference.scan, *given), strict=True)):
        assert deviation(got.cpu(), want) <= bound, f"argument {k}"


@pytest.mark.parametrize(("length", "starts", "negative"), [
    (1, 0, False), (1, 2, True), (4, 1, False), (9, 2, True), *(pytest.param(9, k, k == 1, marks=pytest.mark.slow) for k in (0, 1, 2))])
def test_the_token_loops_gradients_are_the_references(shape, length, starts, negative):
    given = case(shape, length, starts=starts, negative=negative, apart=length % 2 == 0)
    assert_as_the_reference(given, torch.float64, EXACT)


@pytest.mark.parametrize(("length", "negative"), [
    pytest.param(16, False, marks=pytest.mark.slow), pytest.param(33, False, marks=pytest.mark.slow), (33, True)])
def test_the_chunks_gradients_are_the_references(in_chunks, length, negative):
    given = case(in_chunks, length, rows=4, starts=2 * (length > 16), negative=negative, apart=negative)
    assert_as_the_reference(given, torch.float32, FLOAT32)


@pytest.mark.parametrize("sizes", [(3, 70, 20, 1, 1), (2, 17, 70, 1, 1), (40, 1, 40, 2, 40), (11, 2, 3, 1, 1)], ids=str)
@pytest.mark.slow
def test_more_than_a_tile_holds(sizes, monkeypatch):
    """A head wider, a state larger, more channels than one program takes; heads in parts of more than one."""
    monkeypatch.setitem(SHAPES, "large", sizes)
    monkeypatch.setattr(one_decay_back, "TOGETHER", 3)
    assert_as_the_reference(case("large", 17, rows=1, starts=1), torch.float32, FLOAT32)


@pytest.mark.parametrize("silent", ["y", "state"])
@pytest.mark.parametrize(("shape", "length"), [("mamba1", 6), pytest.param("mamba2", 20, marks=pytest.mark.slow)])
def test_y_and_the_last_state_have_gradients_alone(shape, length, silent):
    args, h0, dt_write, dy, dh = case(shape, length, starts=2)
    given = args, h0, dt_write, None if silent == "y" else dy, None if silent == "state" else dh
    assert_as_the_reference(given, torch.float32, FLOAT32)


@pytest.mark.parametrize(("shape", "length"), [("mamba1", 9), ("mamba2-groups", 33)])
def test_fierce_decays_have_right_gradients_head_by_head(shape, length):
    args, h0 = fierce(shape, length)
    dy, dh = drawn(shape, length, seed=2)[0].v_BLHP, drawn(shape, length, seed=2)[1]
    short = cast((args, h0, None, dy, dh), torch.float32)
    ours = [x.cpu() for x in gradients(triton.scan, *short)]
    theirs = gradients(reference.scan, *[type(args)(*(x.double().cpu() for x in short[0])),
                                         *(None if x is None else x.double().cpu() for x in short[1:])])
    for head in range(args.v_BLHP.shape[2]):
        for k, at in ((0, (..., head, slice(None))), (1, (..., head)), (2, head), (5, (slice(None), head))):
            got, want = ours[k][at], theirs[k][at].float()  # what float32 cannot tell from 0 is 0
            assert torch.equal(got, want) or deviation(got, want) <= FLOAT32, (head, k)


@pytest.mark.parametrize(("shape", "dtype", "bound"), [("mamba1", torch.float64, EXACT), ("mamba2", torch.float32, FLOAT32)],
                         ids=str)
def test_a_second_gradient_is_the_references(shape, dtype, bound):
    args, h0 = drawn(shape, 17, rows=1)

    def squared(scan, dtype, device):
        given = [x.to(device, dtype).requires_grad_() for x in (*args, h0)]
        y, h = scan(*given[:5], h0=given[5])
        first = torch.autograd.grad(y.square().sum() + h.sum(), given, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), given)

    for got, want in zip(squared(triton.scan, dtype, DEVICE), squared(reference.scan, torch.float64, "cpu"), strict=True):
        assert deviation(got.cpu(), want) <= bound


@pytest.mark.parametrize(("shape", "length"), [("mamba1", 2), pytest.param("mamba2", 17, marks=pytest.mark.slow)])
def test_an_argument_without_gradients_gets_none_and_they_do_not_depend_on_the_state_being_kept(shape, length):
    args, h0 = drawn(shape, length)
    for asked in range(6):
        given = [x.float().to(DEVICE).requires_grad_(k == asked) for k, x in enumerate((*args, h0))]
        y, h = triton.scan(*given[:5], h0=given[5])
        y.sum().backward()
        assert [x.grad is not None for x in given] == [k == asked for k in range(6)]
        again = [x.detach().requires_grad_(k == asked) for k, x in enumerate(given)]
        y, none = triton.scan(*again[:5], h0=again[5], keep_h=False)
        y.sum().backward()
        assert none is None and torch.equal(again[asked].grad, given[asked].grad)


@pytest.mark.parametrize(("shape", "length"), [("mamba1", 5), ("mamba2", 20)])
def test_autocast_and_short_types_leave_the_sums_their_own(shape, length):
    args, h0 = drawn(shape, length)
    given = cast((args, h0, None, torch.ones_like(args.v_BLHP), h0), torch.float32)
    apart = gradients(triton.scan, *given)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        under = gradients(triton.scan, *given)
    assert all(torch.equal(x, y) for x, y in zip(apart, under, strict=True))
    short = given[0]._replace(v_BLHP=given[0].v_BLHP.bfloat16())
    found = gradients(triton.scan, short, *given[1:3], given[3].bfloat16(), given[4])
    assert found[0].dtype == torch.bfloat16 and found[1].dtype == torch.float32
    assert deviation(found[1].cpu(), gradients(reference.scan, *cast((short, *given[1:]), torch.float64))[1].cpu()) <= FLOAT32
