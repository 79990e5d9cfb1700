"""The scan of every backend against a numpy loop over tokens, and what must hold of any scan."""
from typing import NamedTuple

import numpy as np
import oracles
import pytest
import torch
from oracles import deviation
from torch import Tensor

from mamba_mi.backends import chunked, reference
from mamba_mi.config import stream
from tests.available import at_once

LENGTHS = (1, 2, 3, 31, 32, 33, 63, 64, 65, 70, 127, 128, 129, 130)  # around the borders of chunks
# heads, head width, state, groups, decays a head
SHAPES = {"mamba1": (6, 1, 5, 1, 5), "mamba1-one-state": (6, 1, 1, 1, 1), "mamba2": (4, 3, 8, 1, 1),
          "mamba2-groups": (4, 3, 8, 2, 1), "a-group-a-head": (4, 3, 8, 4, 1),
          "many-decays-in-groups": (4, 3, 5, 2, 5)}


class Args(NamedTuple):
    v_BLHP: Tensor
    dt_BLH: Tensor
    A_HN: Tensor
    B_BLGN: Tensor
    C_BLGN: Tensor

    def cut(self, start, end):
        """The tokens start … end-1."""
        return Args(*(x if name == "A_HN" else x[:, start:end] for name, x in self._asdict().items()))


def drawn(shape, length, rows=2, seed=0):
    """Random arguments of the scan, and a state to start from."""
    H, P, N, G, decays = SHAPES[shape]
    generator = stream(seed, shape, length)

    def normal(*size):
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    args = Args(normal(rows, length, H, P), torch.nn.functional.softplus(normal(rows, length, H) - 1),
                -normal(H, decays).exp(), normal(rows, length, G, N), normal(rows, length, G, N))
    return args, normal(rows, H, P, N)


def by_hand(args, h0=None):
    """The oracle's y and last state, row by row."""
    v, dt, A, B, C = (x.double().numpy() for x in args)
    rows = [oracles.scan(v[r], dt[r], A, B[r], C[r], None if h0 is None else h0[r % len(h0)].double().numpy())
            for r in range(len(v))]
    return np.stack([y for y, _, _ in rows]), np.stack([states[-1] for _, _, states in rows])


@pytest.fixture(params=SHAPES)
def shape(request):
    return request.param


def test_a_negative_dt_as_an_edit_can_make_it_lets_the_state_grow(backend, shape):
    args, h0 = drawn(shape, 70)
    args.dt_BLH[:, ::7] *= -1
    y, h = backend.scan(*args, h0=h0)
    for got, want in zip((y, h), by_hand(args, h0), strict=True):
        assert deviation(got, want) < 1e-10


@pytest.mark.parametrize("length", at_once([256, 257], [255, 256, 257, 511, 513, 1024, 2047, 2048, 2049]))
def test_so_it_is_at_every_length_in_float32_with_its_gradients(backend, length):
    """One row and two, from zero and from a state; gradients of half of them, which reference's loop makes slow."""
    for shape, rows in (("mamba1", 1), ("mamba2-groups", 2)):
        args, h0 = drawn(shape, length, rows)
        start = h0 if length % 2 else None
        truth = by_hand(args, start)
        short = Args(*(x.float() for x in args))
        got = backend.scan(*short, h0=None if start is None else start.float())
        assert all(deviation(x, want) <= 1e-5 for x, want in zip(got, truth, strict=True))
        if length in (257, 2049):
            wide, narrow = ([x.clone().requires_grad_() for x in given] for given in (args, short))
            for given, kernel in ((wide, reference), (narrow, backend)):
                y, h = kernel.scan(*given, h0=h0.to(given[0].dtype))
                (y.square().sum() + h.square().sum()).backward()
            assert all(deviation(x.grad, want.grad) <= 1e-5 for x, want in zip(narrow, wide, strict=True))


@pytest.mark.parametrize("start", [False, True], ids=["from-zero", "from-h0"])
def test_scan_is_the_loop_over_tokens(backend, shape, start):
    for length in LENGTHS:
        args, h0 = drawn(shape, length)
        h0 = h0 if start else None
        y, h = backend.scan(*args, h0=h0)
        truth_y, truth_h = by_hand(args, h0)
        assert deviation(y, truth_y) <= 1e-12, length
        assert deviation(h, truth_h) <= 1e-12, length


def test_rows_that_share_a_start_need_only_one_copy_of_it(backend, shape):
    for length in (3, 70):
        args, h0 = drawn(shape, length, rows=6)
        for given in (h0[:1], h0[:2], h0[:3]):
            y, h = backend.scan(*args, h0=given)
            truth_y, truth_h = by_hand(args, given)
            assert deviation(y, truth_y) <= 1e-12
            assert deviation(h, truth_h) <= 1e-12


@pytest.mark.parametrize("length", [1, 3, 66])
@pytest.mark.parametrize("starts", [1, 2, 3, 6])
def test_rows_a_few_at_a_time_start_where_they_would_together(shape, starts, length, monkeypatch):
    monkeypatch.setattr(chunked, "WORK", 150)
    args, _ = drawn(shape, length, rows=6)
    h0 = drawn(shape, length, rows=6, seed=1)[1][:starts]
    truth, last = by_hand(args, h0)
    y, h = chunked.scan(*args, h0=h0)
    assert deviation(y, truth) <= 1e-12 and deviation(h, last) <= 1e-12
    assert deviation(chunked.scan(*args, h0=h0, keep_h=False)[0], truth) <= 1e-12


@pytest.mark.parametrize("starts", [2, 3])
def test_one_token_goes_on_from_shared_states_and_writes_with_a_dt_of_its_own(backend, shape, starts):
    """Without the state after it: a way of its own in some backends."""
    args, h0 = drawn(shape, 1, rows=6)
    write = drawn(shape, 1, rows=6, seed=1)[0].dt_BLH
    y, _ = backend.scan(*args, h0=h0[:starts], keep_h=False, dt_write=write)
    for r in range(6):
        row = Args(*(x if x is args.A_HN else x[r:r + 1] for x in args))
        truth = reference.scan(*row, h0=h0[r % starts][None], dt_write=write[r:r + 1])[0]
        assert deviation(y[r:r + 1], truth) <= 1e-12


def test_a_scan_cut_anywhere_goes_on_from_its_state(backend, shape):
    args, h0 = drawn(shape, 130)
    whole_y, whole_h = backend.scan(*args, h0=h0)
    for cut in (1, 2, 63, 64, 65, 127, 128, 129):
        head_y, h = backend.scan(*args.cut(0, cut), h0=h0)
        tail_y, h = backend.scan(*args.cut(cut, 130), h0=h)
        assert deviation(torch.cat([head_y, tail_y], dim=1), whole_y) <= 1e-12, cut
        assert deviation(h, whole_h) <= 1e-12, cut


def test_the_scan_is_linear_in_v(backend, shape):
    args, _ = drawn(shape, 70)
    other = drawn(shape, 70, seed=1)[0].v_BLHP
    mixed = backend.scan(*args._replace(v_BLHP=2 * args.v_BLHP - 3 * other))
    parts = [backend.scan(*args._replace(v_BLHP=v)) for v in (args.v_BLHP, other)]
    for mix, first, second in zip(mixed, *parts, strict=True):
        assert deviation(mix, 2 * first - 3 * second) <= 1e-12


def test_leaving_the_last_state_out_changes_no_bit_and_nothing_given_is_changed(backend, shape):
    args, h0 = drawn(shape, 70)
    before = [x.clone() for x in (*args, h0)]
    y = backend.scan(*args, h0=h0)[0]
    assert torch.equal(backend.scan(*args, h0=h0, keep_h=False)[0], y)
    assert all(torch.equal(x, old) for x, old in zip((*args, h0), before, strict=True))


def test_a_row_is_its_own_whatever_rows_are_beside_it(backend, shape):
    args, h0 = drawn(shape, 70, rows=3)
    together = backend.scan(*args, h0=h0)
    for r in range(3):
        row = Args(*(x if x is args.A_HN else x[r:r + 1] for x in args))
        for alone, all_rows in zip(backend.scan(*row, h0=h0[r:r + 1]), together, strict=True):
            assert deviation(alone[0], all_rows[r]) <= 1e-13


def fierce(shape, length):
    """What checkpoints hold: A from -4e-4 to -36316 (Mamba-2) and -3e8 (Mamba-1); dt from 1e-10 to 1."""
    args, h0 = drawn(shape, length)
    generator, (H, _, _, _, decays) = stream(9, shape), SHAPES[shape]
    low, high = np.log(4e-4), np.log(3e8)
    A_HN = -torch.exp(low + (high - low) * torch.rand(H, decays, generator=generator, dtype=torch.float64))
    A_HN[0], A_HN[1], A_HN[-1] = -4e-4, -36316, -3e8
    dt_BLH = torch.exp(np.log(1e-10) * torch.rand(2, length, H, generator=generator, dtype=torch.float64))
    dt_BLH[:, ::7] = 1.0
    # after a token that wipes the state come some that hardly decay: what a cumulated sum in float32 loses
    return args._replace(A_HN=A_HN, dt_BLH=dt_BLH), h0


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_fierce_decays_over_a_long_prompt_stay_finite_and_right(backend, shape, dtype, bound):
    """Head by head, so that a loud head does not hide a quiet one's error."""
    for length in (70, 300):
        args, h0 = fierce(shape, length)
        args, h0 = Args(*(x.to(dtype) for x in args)), h0.to(dtype)
        y, h = backend.scan(*args, h0=h0)
        truth_y, truth_h = by_hand(args, h0)
        for head in range(args.v_BLHP.shape[2]):
            assert deviation(y[:, :, head], truth_y[:, :, head]) <= bound
            assert deviation(h[:, head], truth_h[:, head]) <= bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_types_are_summed_in_float32_and_rounded_once(backend, shape, dtype):
    args, h0 = drawn(shape, 70)
    short = Args(*(x.to(torch.float32 if name in ("dt_BLH", "A_HN") else dtype)
                   for name, x in args._asdict().items()))
    y, h = backend.scan(*short, h0=h0.float())
    long_y, long_h = backend.scan(*(x.float() for x in short), h0=h0.float())
    assert y.dtype == dtype and h.dtype == torch.float32
    assert torch.equal(y, long_y.to(dtype)) and torch.equal(h, long_h)


@pytest.mark.parametrize("length", [3, 66])
def test_the_gradient_is_that_of_the_finite_difference(backend, shape, length):
    """To every argument, along a random direction each; training and attribution rest on it."""
    args, h0 = drawn(shape, length)
    given = [x.clone().requires_grad_(True) for x in (*args, h0)]
    mixes = [torch.randn(x.shape, generator=stream(0, "mix"), dtype=x.dtype) for x in (args.v_BLHP, h0)]

    def loss(*given):
        outputs = backend.scan(*given[:5], h0=given[5])
        return sum((x * mix).sum() for x, mix in zip(outputs, mixes, strict=True))

    loss(*given).backward()
    for k, x in enumerate(given):
        direction = torch.randn(x.shape, generator=stream(k, "direction"), dtype=x.dtype) * x.detach().abs()
        with torch.no_grad():
            up, down = (loss(*(y + step * direction if y is x else y for y in given))
                        for step in (1e-5, -1e-5))
        measured = float(up - down) / 2e-5
        assert float((x.grad * direction).sum()) == pytest.approx(measured, rel=1e-6, abs=1e-7)



@pytest.mark.parametrize("length", [3, 70])
def test_what_is_written_and_what_decays_come_apart(backend, shape, length):
    """With a dt of 0 at some tokens, where no division by it could put another write in."""
    args, h0 = drawn(shape, length)
    dt_write = drawn(shape, length, seed=1)[0].dt_BLH
    args = args._replace(dt_BLH=args.dt_BLH * (torch.arange(length) % 3 > 0)[:, None])
    y, h = backend.scan(*args, h0=h0, dt_write=dt_write)
    v, dt, A, B, C = (x.numpy() for x in args)
    for r in range(2):
        truth_y, _, states = oracles.scan(v[r], dt[r], A, B[r], C[r], h0[r].numpy(), dt_write[r].numpy())
        assert deviation(y[r], truth_y) <= 1e-12 and deviation(h[r], states[-1]) <= 1e-12
    for one, other in zip(backend.scan(*args, dt_write=args.dt_BLH), backend.scan(*args), strict=True):
        assert torch.equal(one, other)
