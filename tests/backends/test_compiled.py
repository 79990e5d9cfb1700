"""What only the compiled loops have: blocks of channels, threads, float32's own exp2, and what they leave to others."""
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from oracles import deviation

from mamba_mi.backends import chunked, compiled, reference
from mamba_mi.config import stream
from tests.available import at_once
from tests.backends.test_scan import Args, by_hand

SIZES = [(1, 1), (31, 1), (32, 1), (33, 1), (96, 2), (70, 2), (99, 3)]  # channels, groups: whole blocks, parts, blocks by group


def drawn(channels, groups, length=37, rows=2, states=5, kind=torch.float32):
    generator = stream(0, "compiled", channels, groups)

    def normal(*size):
        return torch.randn(*size, generator=generator).to(kind)

    args = Args(normal(rows, length, channels, 1), torch.nn.functional.softplus(normal(rows, length, channels) - 2),
                -normal(channels, states).exp(), normal(rows, length, groups, states), normal(rows, length, groups, states))
    return args, normal(rows, channels, 1, states)


@pytest.fixture
def left_to_chunked(monkeypatch):
    """The calls that the loops left to the other backend."""
    calls, scan = [], chunked.scan
    monkeypatch.setattr(chunked, "scan", lambda *args, **how: calls.append(args) or scan(*args, **how))
    return calls


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("channels", "groups"), SIZES)
def test_every_split_into_blocks_is_the_loop_over_tokens(channels, groups, threads, monkeypatch, left_to_chunked):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(compiled, "ALONE", 1)
    for starts in (0, 1, 2):
        args, h0 = drawn(channels, groups)
        h0 = h0[:starts] if starts else None
        y, h = compiled.scan(*args, h0=h0)
        truth_y, truth_h = by_hand(args, h0)
        assert deviation(y, truth_y) <= 2e-6 and deviation(h, truth_h) <= 2e-6
        assert compiled.scan(*args, h0=h0, keep_h=False)[1] is None
    assert not left_to_chunked


@pytest.mark.parametrize("width", [2, 3])
def test_channels_of_one_head_share_its_dt_and_decays(width, left_to_chunked):
    args, _ = drawn(7, 1)
    wide = args._replace(v_BLHP=torch.randn(2, 37, 7, width, generator=stream(1, "wide")))
    h0 = torch.randn(2, 7, width, 5, generator=stream(2, "wide"))
    assert all(deviation(x, want) <= 2e-6 for x, want in zip(compiled.scan(*wide, h0=h0), by_hand(wide, h0), strict=True))
    assert not left_to_chunked


@pytest.mark.parametrize("channels", [40, 64])
def test_what_is_written_may_have_a_dt_of_its_own(channels):
    args, _ = drawn(channels, 1)
    write = torch.cat([drawn(channels, 2)[0].dt_BLH, args.dt_BLH], dim=2)[..., :channels]  # strides of its own
    truth = reference.scan(*(x.double() for x in args), dt_write=write.double())
    assert all(deviation(x, want) <= 2e-6 for x, want in zip(compiled.scan(*args, dt_write=write), truth, strict=True))


def test_numbers_of_several_types_are_not_mixed_in_a_loop():
    y, z = torch.randn(2, 3, 8, dtype=torch.float64, generator=stream(0, "mixed")).chunk(2, dim=-1)
    assert torch.equal(compiled.gate(y.float(), z), torch.nn.functional.silu(z) * y.float())
    assert compiled.softplus(z.float(), torch.zeros(4, dtype=torch.float64)).dtype == torch.float64


def test_what_is_not_kept_is_not_made(monkeypatch):
    args, h0 = drawn(8, 1)
    monkeypatch.setattr(chunked, "last_inputs", lambda *given: pytest.fail("a tail was made"))
    assert compiled.conv(args.v_BLHP[..., 0], torch.ones(8, 4), torch.zeros(8), keep_tail=False)[1] is None
    monkeypatch.setattr(compiled._Blocks, "join", lambda *given: pytest.fail("a state was made"))
    assert compiled.scan(*args, h0=h0, keep_h=False)[1] is None


def test_a_large_scan_is_shared_out_over_torchs_threads_and_a_small_one_is_not(monkeypatch):
    shared, pool = [], compiled._pool
    monkeypatch.setattr(compiled, "_pool", lambda process, threads: shared.append(threads) or pool(process, threads))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    compiled.scan(*drawn(33, 1, rows=1, length=2)[0])
    assert not shared
    compiled.scan(*drawn(330, 1, rows=1)[0])  # 61,050 numbers
    compiled.scan(*drawn(330, 1, rows=3)[0])
    assert set(shared) == {3} and len(shared) == 3  # a pool is asked for once a part


def test_threads_change_no_bit(monkeypatch):
    args, h0 = drawn(99, 3, rows=3)
    u, weight, bias = args.v_BLHP[..., 0], torch.randn(99, 4, generator=stream(0, "w")), torch.zeros(99)

    def everything():
        return [*compiled.scan(*args, h0=h0), *compiled.conv(u, weight, bias, silu=True), compiled.gate(u, args.dt_BLH),
                compiled.softplus(u, bias)]

    monkeypatch.setattr(compiled, "ALONE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = everything()
    for threads in (2, 3, 200):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        assert all(torch.equal(x, y) for x, y in zip(everything(), alone, strict=True))


def test_what_lies_in_a_wider_tensor_is_read_where_it_is():
    args, _ = drawn(40, 1)
    wide = torch.full((2, 37, 200), torch.nan)
    wide[..., 3:43], wide[..., 50:90] = args.v_BLHP[..., 0], args.dt_BLH
    within = args._replace(v_BLHP=wide[..., 3:43, None], dt_BLH=wide[..., 50:90])
    assert torch.equal(compiled.scan(*within)[0], compiled.scan(*args)[0])
    across = args._replace(dt_BLH=args.dt_BLH.transpose(1, 2).contiguous().transpose(1, 2))
    assert torch.equal(compiled.scan(*across)[0], compiled.scan(*args)[0])
    one = args._replace(v_BLHP=args.v_BLHP[:1].expand(2, -1, -1, -1))  # one row's numbers under the name of two
    assert torch.equal(compiled.scan(*one)[0], compiled.scan(*one._replace(v_BLHP=one.v_BLHP.clone()))[0])


@pytest.mark.parametrize("wrong", ["negative", "nan", "growing", "half", "gradient", "one decay"])
def test_what_the_loops_cannot_do_is_left_to_chunked(wrong, left_to_chunked):
    args, _ = drawn(8, 1, kind=torch.float16 if wrong == "half" else torch.float32)
    if wrong in ("negative", "nan"):
        args.dt_BLH[1, 3, 2] = -3.0 if wrong == "negative" else torch.nan
    if wrong == "growing":
        args.A_HN[2, 1] = 0.1
    if wrong == "one decay":
        args = args._replace(A_HN=args.A_HN[:, :1])
    if wrong == "gradient":
        args.v_BLHP.requires_grad_()
    y, _ = compiled.scan(*args)
    assert len(left_to_chunked) == (wrong != "half")  # widened to float32, a half is the loops' again
    assert y.dtype == args.v_BLHP.dtype and y.requires_grad == (wrong == "gradient")
    assert torch.equal(y.isnan(), chunked.scan(*args)[0].isnan()) and y.isnan().any() == (wrong == "nan")


def test_a_slow_decay_is_forgotten_no_faster_for_being_in_float32():
    args, _ = drawn(32, 1, length=4000, rows=1)
    args = args._replace(A_HN=torch.full((32, 5), -1e-3), B_BLGN=args.B_BLGN.abs(), v_BLHP=args.v_BLHP.abs())
    assert deviation(compiled.scan(*args)[0], by_hand(args)[0]) <= 1e-5


def test_exp2_is_within_3e_7_from_the_least_to_the_greatest():
    import numba

    from mamba_mi.backends.kernels import cpu

    power = cpu.exp2

    @numba.njit
    def powers(z, out):
        for i in range(len(z)):
            out[i] = power(z[i])

    z = np.concatenate([np.linspace(-126, 127, 100_001), np.linspace(-1, 1, 100_001)]).astype(np.float32)
    out = np.empty_like(z)
    powers(z, out)
    assert np.abs(out / np.exp2(z.astype(np.float64)) - 1).max() <= 3e-7
    whole = np.arange(-126, 128).astype(np.float32)
    powers(whole, out[:len(whole)])
    assert np.array_equal(out[:len(whole)], np.exp2(whole.astype(np.float64)).astype(np.float32))
    powers(np.array([-1e9, -np.inf], np.float32), out[:2])
    assert np.array_equal(out[:2], np.full(2, 2.0**-126, np.float32))


@pytest.mark.parametrize("broken", at_once(["cut off"], ["cut off", "full disk"]))
def test_what_is_kept_on_disk_may_be_broken(broken, tmp_path):
    program = """
import errno, sys, warnings
import torch
from numba.core.caching import IndexDataCacheFile
from mamba_mi.backends import compiled
if "full disk" in sys.argv:
    def save(*given):
        raise OSError(errno.ENOSPC, "No space left on device")
    IndexDataCacheFile.save = save
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as said:
    for _ in range(2):
        assert torch.equal(compiled.gate(torch.ones(1, 1, 3), torch.zeros(1, 1, 3)), torch.zeros(1, 1, 3))
print([str(each.message) for each in said])
"""
    def run():
        env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", program, broken], capture_output=True, text=True, env=env, cwd=os.getcwd())
        assert done.returncode == 0, done.stderr
        return done.stdout

    if broken == "full disk":
        assert run().count("gate is compiled anew") == 1
        return
    assert run() == "[]\n" and list(tmp_path.rglob("*.nbc"))
    for file in tmp_path.rglob("*.nb?"):
        file.write_bytes(file.read_bytes()[:20])
    assert run().count("gate is compiled anew, for what numba keeps on disk is of no use") == 1


def test_loops_are_compiled_where_nothing_can_be_kept_on_disk(tmp_path):
    program = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
import torch
from mamba_mi.backends import compiled
y = compiled.gate(torch.ones(1, 1, 3), torch.zeros(1, 1, 3))
assert not y.any()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ), cwd=os.getcwd())
    assert done.returncode == 0, done.stderr
