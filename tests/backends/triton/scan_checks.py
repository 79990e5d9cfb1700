"""The scan's kernels against the loops over tokens: interpreted where TRITON_INTERPRET=1, else on the CUDA device."""
import pytest
import torch
from oracles import deviation

from mamba_mi import backends
from mamba_mi.backends import reference, triton
from mamba_mi.backends.kernels import many_decays, one_decay
from tests.backends.test_scan import SHAPES, Args, by_hand, drawn, fierce

DEVICE = "cpu" if triton.INTERPRETED else "cuda"
EXACT, FLOAT32 = 1e-12, 1e-6
FIRST = ("mamba1", "mamba2-groups")  # the others are slow


@pytest.fixture(autouse=True)
def long(monkeypatch):
    """How long chunks are; here short, which is quicker interpreted."""
    was = one_decay.CHUNK
    monkeypatch.setattr(one_decay, "CHUNK", 16)
    return was


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name not in FIRST)) for name in SHAPES])
def shape(request):
    return request.param


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name not in FIRST)) for name, sizes in SHAPES.items()
                        if sizes[-1] == 1])
def in_chunks(request):
    return request.param


def moved(x, dtype=torch.float32):
    return None if x is None else x.to(DEVICE, dtype)


def scanned(args, h0=None, *, dtype=torch.float32, **how):
    """y and the last state, on the CPU again."""
    how = {name: moved(x, dtype) if isinstance(x, torch.Tensor) else x for name, x in how.items()}
    y, h = triton.scan(*(moved(x, dtype) for x in args), h0=moved(h0, dtype), **how)
    return y.cpu(), None if h is None else h.cpu()


def assert_right(args, h0, bound, **how):
    for got, want in zip(scanned(args, h0, **how), by_hand(args, h0), strict=True):
        assert deviation(got, want) <= bound


def test_it_is_a_backend_of_this_device():
    assert "triton" in backends.available(DEVICE)


@pytest.mark.parametrize("length", [1, 5])
def test_the_token_loop_in_both_types_from_any_start(shape, length):
    args, h0 = drawn(shape, length)
    for start in (None, h0[:1], h0):
        assert_right(args, start, EXACT, dtype=torch.float64)
        assert_right(args, start, FLOAT32)


@pytest.mark.parametrize("length", [pytest.param(16, marks=pytest.mark.slow), pytest.param(17, marks=pytest.mark.slow), 33])
def test_chunks_from_any_start(in_chunks, length):
    args, h0 = drawn(in_chunks, length)
    for start in (None, h0[:1], h0):
        assert_right(args, start, FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("length", [63, 64, 65, 130])
def test_chunks_as_long_as_they_are(length, long, monkeypatch):
    monkeypatch.setattr(one_decay, "CHUNK", long)
    args, h0 = drawn("mamba2", length)
    assert_right(args, h0, FLOAT32)


def test_one_decay_in_float64_has_no_product_that_is_shorter():
    args, h0 = drawn("mamba2", 17)
    assert_right(args, h0, EXACT, dtype=torch.float64)


@pytest.mark.parametrize("sizes", [(3, 70, 20, 1, 1), (2, 17, 70, 1, 1), (40, 1, 40, 2, 40)], ids=str)
def test_more_than_a_tile_holds(sizes, monkeypatch):
    """A head wider, a state larger, more channels than one program takes; none a multiple of it."""
    monkeypatch.setitem(SHAPES, "large", sizes)
    args, h0 = drawn("large", 20, rows=1)
    assert_right(args, h0, FLOAT32)


@pytest.mark.parametrize("length", [3, 33])
def test_what_is_written_and_what_decays_come_apart_where_dt_is_negative_too(in_chunks, length):
    args, h0 = drawn(in_chunks, length)
    args.dt_BLH[:, ::7] *= -1
    dt_write = drawn(in_chunks, length, seed=1)[0].dt_BLH
    truth = reference.scan(*args, h0=h0, dt_write=dt_write)
    for got, want in zip(scanned(args, h0, dt_write=dt_write), truth, strict=True):
        assert deviation(got, want) <= FLOAT32


@pytest.mark.parametrize("length", [5, 70])
def test_fierce_decays_stay_right_head_by_head(length, long, monkeypatch):
    monkeypatch.setattr(one_decay, "CHUNK", long)
    for shape in ("mamba1", "mamba2-groups") if length < 64 else ("mamba2-groups",):
        args, h0 = fierce(shape, length)
        for at, (got, want) in enumerate(zip(scanned(args, h0), by_hand(args, h0), strict=True)):
            for head in range(args.v_BLHP.shape[2]):
                one = (slice(None),) * (2 - at) + (head,)
                assert deviation(got[one], want[one]) <= 1e-5


def test_an_edited_dt_of_a_million_wipes_the_state_and_leaves_later_decays_exact():
    """What it adds to a cumulated sum would swallow them, in float64 too."""
    args, h0 = fierce("mamba2", 20)
    args.dt_BLH[:, 3] = 1e6
    y, h = scanned(args, h0)
    truth_y, truth_h = by_hand(args, h0)
    for head in range(args.v_BLHP.shape[2]):
        assert deviation(y[:, 4:, head], truth_y[:, 4:, head]) <= 1e-5
        assert deviation(h[:, head], truth_h[:, head]) <= 1e-5


@pytest.mark.parametrize("length", [4, 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_types_are_summed_in_float32_and_rounded_once(dtype, length):
    args, h0 = drawn("mamba2", length)
    short = Args(*(x.to(torch.float32 if name in ("dt_BLH", "A_HN") else dtype) for name, x in args._asdict().items()))
    y, h = triton.scan(*(x.to(DEVICE) for x in short), h0=moved(h0))
    long_y, long_h = triton.scan(*map(moved, short), h0=moved(h0))
    assert y.dtype == dtype and h.dtype == torch.float32
    assert torch.equal(y, long_y.to(dtype)) and torch.equal(h, long_h)


@pytest.mark.parametrize("length", [4, 20])
def test_leaving_the_last_state_out_changes_no_bit_and_nothing_given_is_changed(length):
    args, h0 = drawn("mamba2", length)
    given = [moved(x) for x in (*args, h0)]
    before = [x.clone() for x in given]
    y = triton.scan(*given[:5], h0=given[5])[0]
    alone, none = triton.scan(*given[:5], h0=given[5], keep_h=False)
    assert torch.equal(alone, y) and none is None
    assert all(torch.equal(x, old) for x, old in zip(given, before, strict=True))


@pytest.mark.parametrize("length", [4, 16])
def test_arguments_may_lie_anywhere_in_memory_and_rows_on_one_another(length):
    """v, B and C as parts of one tensor, as the conv leaves them; a prompt once for all its rows; A with its columns apart."""
    args, h0 = drawn("mamba2-groups", length, rows=1)
    v, dt, A, B, C = map(moved, args)
    parts = torch.cat([x.flatten(2) for x in (v, B, C)], dim=2).expand(3, -1, -1).split([12, 16, 16], dim=2)
    v, B, C = (x.unflatten(2, shape) for x, shape in zip(parts, ((4, 3), (2, 8), (2, 8)), strict=True))
    y, h = triton.scan(v, dt.expand(3, -1, -1), A, B, C, h0=moved(h0))
    back = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (v, B, C)]
    for got in (y, triton.scan(back[0], dt.expand(3, -1, -1), A, *back[1:], h0=moved(h0))[0]):
        assert deviation(got.cpu(), by_hand(args, h0)[0].repeat(3, axis=0)) <= FLOAT32
    many = torch.stack([A[:, 0], 2 * A[:, 0]])[..., None].expand(-1, -1, 4).permute(1, 2, 0).flatten(1)  # H × 8
    got, _ = triton.scan(v, dt.expand(3, -1, -1), many, B, C)
    assert deviation(got.cpu(), reference.scan(v, dt.expand(3, -1, -1), many, B, C)[0].cpu()) <= FLOAT32


def test_the_states_before_chunks_are_those_of_the_loop(monkeypatch):
    monkeypatch.setattr(many_decays, "CHUNK", 4)
    for shape, mix, length, chunk in (("mamba1", many_decays.mix, 9, 4), ("mamba2", one_decay.mix, 33, 16)):
        args, h0 = drawn(shape, length)
        v, dt, A, B, C = map(moved, args)
        how = {"borders": True} if mix is many_decays.mix else {}
        kept = mix(v, dt, dt, A, B, C, moved(h0), False, **how)[2].cpu()
        assert deviation(kept[0], h0) <= FLOAT32
        for k in range(1, len(kept)):
            assert deviation(kept[k], by_hand(args.cut(0, k * chunk), h0)[1]) <= FLOAT32
