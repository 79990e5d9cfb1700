"""The states after chosen tokens, of every backend: those of the loop over tokens, and no others held."""
import pytest
import torch
from oracles import deviation

from mamba_mi import UserError
from mamba_mi.backends import reference
from tests.backends.test_scan import SHAPES, Args, drawn, fierce
from tests.live_memory import LiveMemory


@pytest.fixture(params=SHAPES)
def shape(request):
    return request.param


def by_hand(args, positions, h0=None, dt_write=None):
    """Each from a scan of its own that ends there."""
    ends = [t % args.v_BLHP.shape[1] + 1 for t in positions]
    return torch.stack([reference.scan(*args.cut(0, end), h0=h0, dt_write=None if dt_write is None else dt_write[:, :end])[1]
                        for end in ends], dim=1)


@pytest.mark.parametrize("length", [1, 70, 130])
def test_states_at_positions_are_those_of_the_loop_in_the_order_asked(backend, shape, length):
    args, h0 = drawn(shape, length)
    dt_write = drawn(shape, length, seed=1)[0].dt_BLH
    positions = [length - 1, 0, -1, length // 2, min(64, length - 1), min(63, length - 1), length // 2]
    for start, write in ((None, None), (h0, None), (h0[:1], dt_write)):
        h_BSHPN = backend.states_at(*args[:4], positions, h0=start, dt_write=write)
        assert deviation(h_BSHPN, by_hand(args, positions, start, write)) <= 1e-12
    assert torch.equal(backend.states_at(*args[:4], positions[:1]), backend.states_at(*args[:4], [-1]))


def test_rows_that_share_a_start_need_only_one_copy_of_it(backend, shape):
    args, h0 = drawn(shape, 5, rows=6)
    for starts in (1, 2, 3):
        h_BSHPN = backend.states_at(*args[:4], [1, 4], h0=h0[:starts])
        assert deviation(h_BSHPN, by_hand(args, [1, 4], h0[torch.arange(6) % starts])) <= 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_fierce_decays_give_the_right_states(backend, shape, dtype, bound):
    args, h0 = fierce(shape, 70)
    short = Args(*(x.to(dtype) for x in args))
    h_BSHPN, truth = backend.states_at(*short[:4], [6, 7, 68], h0=h0.to(dtype)), by_hand(short_as_long(short), [6, 7, 68], h0)
    for head in range(h_BSHPN.shape[2]):
        assert deviation(h_BSHPN[:, :, head], truth[:, :, head]) <= bound


def short_as_long(args):
    return Args(*(x.double() for x in args))


def test_a_short_type_gives_states_in_float32(backend, shape):
    args, h0 = drawn(shape, 20)
    v, dt, A, B, _ = args
    short = v.bfloat16(), dt.float(), A.float(), B.bfloat16()
    h_BSHPN = backend.states_at(*short, [3, 19], h0=h0.float())
    assert h_BSHPN.dtype == torch.float32
    assert deviation(h_BSHPN, by_hand(Args(*(x.double() for x in short), args.C_BLGN), [3, 19], h0.float().double())) <= 1e-5


def test_the_states_have_the_gradients_of_the_loop(backend, shape):
    args, h0 = drawn(shape, 20)
    grads = []
    for made in (lambda *x: backend.states_at(*x[:4], [3, 19], h0=x[4]),
                 lambda *x: by_hand(Args(*x[:4], args.C_BLGN), [3, 19], x[4])):
        given = [x.clone().requires_grad_() for x in (*args[:4], h0)]
        made(*given).pow(3).sum().backward()
        grads.append([x.grad for x in given])
    for got, want in zip(*grads, strict=True):
        assert deviation(got, want) <= 1e-10


def test_nothing_is_held_but_what_is_asked_for(backend):
    """Far less than every state of the pass, and little more for one position than for none but the last."""
    args, _ = drawn("mamba2", 130)
    with LiveMemory() as scan:
        backend.scan(*args)
    with LiveMemory() as states:
        backend.states_at(*args[:4], [60])
    every = 8 * 130 * args.v_BLHP.shape[0] * 4 * 3 * 8
    assert states.most <= scan.most + every / 20


def test_a_position_that_is_not_there_is_named(backend):
    args, _ = drawn("mamba1", 4)
    for positions in ([4], [-5, 0], []):
        with pytest.raises(UserError, match="^positions=.*: (there are 0-3, and from the end -1 to -4|at least one is needed; there are 0-3)$"):
            backend.states_at(*args[:4], positions)
    with pytest.raises(UserError, match="^positions=last: give whole numbers"):
        backend.states_at(*args[:4], "last")
