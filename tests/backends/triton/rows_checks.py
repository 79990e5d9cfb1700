"""Knockouts, hidden-attention rows and states at positions: interpreted where TRITON_INTERPRET=1, else on the CUDA device."""
import pytest
import torch
from oracles import deviation

from mamba_mi import UserError
from mamba_mi.backends import attention, chunked, reference, triton
from mamba_mi.backends.kernels import many_decays, one_decay, rows
from mamba_mi.config import stream
from tests.backends.test_scan import SHAPES, drawn

DEVICE = "cpu" if triton.INTERPRETED else "cuda"
TYPES = [(torch.float64, 1e-12), (torch.float32, 1e-6)]


FIRST = ("many-decays-in-groups", "mamba2-groups")  # the others are slow


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name not in FIRST)) for name in SHAPES])
def shape(request):
    return request.param


@pytest.fixture(params=TYPES, ids=["float64", "float32"])
def kind(request):
    return request.param


def moved(x, dtype):
    return x if x is None or not x.is_floating_point() else x.to(DEVICE, dtype)


def without(args, h0, gone_BJL, queries, dt_write):
    """Brute force: a scan for each set, with nothing written at its sources."""
    ys = [reference.scan(*args, h0=h0, dt_write=dt_write.masked_fill(gone_BJL[:, j, :, None], 0))[0][:, queries]
          for j in range(gone_BJL.shape[1])]
    return torch.stack(ys, dim=1)


@pytest.mark.parametrize(("length", "sets", "starts"), [(5, 3, 0), pytest.param(21, 18, 1, marks=pytest.mark.slow), (4, 1, 2)])
def test_a_query_reads_what_a_scan_without_its_sources_says(shape, kind, length, sets, starts):
    dtype, bound = kind
    args, h0 = drawn(shape, length)
    args.dt_BLH[:, ::7] *= -1
    dt_write, h0 = drawn(shape, length, seed=1)[0].dt_BLH, h0[:starts] if starts else None
    gone_BJL = torch.rand(2, sets, length, generator=stream(0, "gone")) < 0.4
    queries = [length - 1, 0, -2]
    y = triton.knockout_rows(*(moved(x, dtype) for x in args), gone_BJL.to(DEVICE), queries, h0=moved(h0, dtype),
                             dt_write=moved(dt_write, dtype))
    assert deviation(y.cpu(), without(args, h0, gone_BJL, queries, dt_write)) <= bound


@pytest.mark.parametrize("sizes", [(2, 70, 20, 1, 1), pytest.param((40, 1, 40, 2, 40), marks=pytest.mark.slow)], ids=str)
def test_more_sets_width_and_channels_than_a_tile_holds(sizes, monkeypatch):
    monkeypatch.setitem(SHAPES, "large", sizes)
    args, h0 = drawn("large", 5, rows=2)
    gone_1JL = torch.rand(1, 70, 5, generator=stream(0, "gone")) < 0.4
    y = triton.knockout_rows(*(moved(x, torch.float32) for x in args), gone_1JL.to(DEVICE), [4], h0=moved(h0, torch.float32))
    assert deviation(y.cpu(), without(args, h0, gone_1JL.expand(2, -1, -1), [4], args.dt_BLH)) <= 1e-6


def test_rows_of_the_hidden_attention_are_those_of_the_matrix(shape, kind):
    dtype, bound = kind
    args, _ = drawn(shape, 9)
    args.dt_BLH[:, ::7] *= -1
    given = [moved(x, dtype) for x in args[1:]]
    M_BHQL = attention.mixing(*args[1:], rows=[8, 0, -4])
    assert deviation(triton.mixing(*given, rows=[8, 0, -4]).cpu(), M_BHQL) <= bound
    some = triton.mixing(*given, rows=[5], heads=[-1, 0])
    assert deviation(some.cpu(), M_BHQL[:, [-1, 0]][:, :, [2]]) <= bound
    for how, want in together(M_BHQL).items():
        assert deviation(triton.mixing_over_heads(*given, how=how, rows=[8, 0, -4]).cpu(), want) <= bound


def together(M_BHQL):
    return {"mean": M_BHQL.mean(1), "norm": M_BHQL.square().mean(1).sqrt()}


def test_rows_are_taken_together_a_few_at_a_time(monkeypatch):
    made = []
    monkeypatch.setattr(rows, "_back", lambda *a, plain=rows._back, **how: made.append(a[-1].shape) or plain(*a, **how))
    monkeypatch.setattr(rows, "WORK", 2 * 2 * 2 * 5)  # two rows of two groups' and two prompts' sums
    args, _ = drawn("mamba2-groups", 5)
    for how, want in together(attention.mixing(*args[1:])).items():
        assert deviation(triton.mixing_over_heads(*(moved(x, torch.float64) for x in args[1:]), how=how).cpu(), want) <= 1e-12
    assert {shape[2] for shape in made} == {2, 1} and len(made) == 6


def test_a_row_may_write_with_a_dt_of_its_own_and_be_of_more_heads_than_a_tile_holds(monkeypatch):
    monkeypatch.setitem(SHAPES, "large", (40, 1, 40, 2, 40))
    args, _ = drawn("large", 4)
    dt_write = drawn("large", 4, seed=1)[0].dt_BLH
    given = [moved(x, torch.float64) for x in args[1:]]
    M_BHQL = attention.mixing(*args[1:], rows=[3]) * (dt_write / args.dt_BLH).transpose(1, 2)[:, :, None]
    how = {"rows": [3], "dt_write": moved(dt_write, torch.float64)}
    assert deviation(triton.mixing(*given, **how).cpu(), M_BHQL) <= 1e-12
    for name, want in together(M_BHQL).items():
        assert deviation(triton.mixing_over_heads(*given, how=name, **how).cpu(), want) <= 1e-12


@pytest.mark.parametrize("length", [4, 33])
def test_states_at_positions_are_those_of_the_loop(shape, kind, length, monkeypatch):
    monkeypatch.setattr(one_decay, "CHUNK", 16)
    monkeypatch.setattr(many_decays, "CHUNK", 4)
    dtype, bound = kind
    if length > 4 and (dtype == torch.float64 or SHAPES[shape][-1] > 1):
        length = 9
    args, h0 = drawn(shape, length)
    dt_write = drawn(shape, length, seed=1)[0].dt_BLH
    positions = [length - 1, 0, 2, length - 2, 2, min(15, length - 1), min(16, length - 1)]
    for start, write in ((None, args.dt_BLH), (h0[:1], dt_write)):
        h = triton.states_at(*(moved(x, dtype) for x in args[:4]), positions, h0=moved(start, dtype),
                             dt_write=moved(write, dtype)).cpu()
        for k, t in enumerate(positions):
            want = reference.scan(*args.cut(0, t + 1), h0=start, dt_write=write[:, :t + 1])[1]
            assert deviation(h[:, k], want) <= bound


def test_a_position_a_row_or_a_head_that_is_not_there_is_named():
    args, _ = drawn("mamba1", 4)
    given = [moved(x, torch.float32) for x in args]
    with pytest.raises(UserError, match=r"^positions=\[4\]: there are 0-3"):
        triton.states_at(*given[:4], [4])
    for asked in ({"rows": [4]}, {"heads": [6]}):
        with pytest.raises(UserError, match="^(rows=.4.: there are 0-3|heads=.6.: there are 0-5)"):
            triton.mixing(*given[1:], **asked)
    with pytest.raises(UserError, match="^how='max': heads are taken together by mean or norm"):
        triton.mixing_over_heads(*given[1:], how="max")


@pytest.mark.parametrize("verb", ["states_at", "mixing", "mixing_over_heads"])
def test_where_gradients_are_asked_for_they_are_those_of_plain_torch(verb):
    args, _ = drawn("mamba2-groups", 4)
    how = {"states_at": {"positions": [3, 1]}, "mixing": {"rows": [3], "heads": [1]}, "mixing_over_heads": {"how": "norm", "rows": [3]}}[verb]
    grads = []
    for backend in (triton, chunked):
        given = [moved(x, torch.float64).requires_grad_() for x in args]
        used = given[:4] if verb == "states_at" else given[1:]
        getattr(backend, verb)(*used, **how).pow(3).sum().backward()
        grads.append([x.grad.cpu() for x in used])
    for got, want in zip(*grads, strict=True):
        assert deviation(got, want) <= 1e-12


def test_a_gradient_is_refused_where_there_is_none():
    args, _ = drawn("mamba1", 4)
    v, dt, A, B, C = (moved(x, torch.float32) for x in args)
    gone_1JL, dt = torch.zeros(1, 1, 4, dtype=torch.bool, device=DEVICE), dt.requires_grad_()
    with pytest.raises(UserError, match="^knockout_rows has no gradients: call it under torch.no_grad"):
        triton.knockout_rows(v, dt, A, B, C, gone_1JL, [3])
    with torch.no_grad():
        triton.knockout_rows(v, dt, A, B, C, gone_1JL, [3])


def test_autocast_leaves_the_sums_their_own():
    args, h0 = drawn("mamba2", 20)
    given, h0 = [moved(x, torch.float32) for x in args], moved(h0, torch.float32)
    gone_1JL = torch.rand(1, 3, 20, generator=stream(0, "gone")).to(DEVICE) < 0.4

    def made():
        return triton.knockout_rows(*given, gone_1JL, [5, -1], h0=h0), triton.states_at(*given[:4], [5, -1], h0=h0)

    apart = made()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert all(torch.equal(x, y) for x, y in zip(made(), apart, strict=True))
