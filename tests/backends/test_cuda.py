"""The backend `cuda` through stand-ins for its libraries: what it hands them, what it leaves to `chunked`, what it says."""
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from oracles import deviation

import mamba_mi
from mamba_mi import UserError, backends
from mamba_mi.backends import chunked, cuda, cuda_gradients, cuda_library, reference
from tests.backends import stand_in, stand_in_seams, test_conv
from tests.backends.test_gradients import case, gradients
from tests.backends.test_scan import SHAPES, drawn, fierce

ONE = [shape for shape, (_, width, state, _, decays) in SHAPES.items() if decays == 1 < max(width, state)]
MANY = [shape for shape in SHAPES if shape not in ONE]
MODELS = ["tiny", "tiny-mamba1", "tiny-hyena", "tiny-moe", "tiny-densemamba", "tiny-retnet"]


@pytest.fixture(params=SHAPES)
def shape(request):
    return request.param


def told():
    return " ".join(cuda_gradients.told)


def called():
    return {name for name, _ in stand_in.CALLS}


def test_each_kind_of_scan_has_its_kernel_and_nothing_is_said(stood_in, shape):
    backend = stood_in()
    args, h0 = drawn(shape, 70)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backend.scan(*args, h0=h0)
        _, h = backend.scan(*args)
        assert h.untyped_storage().nbytes() == 8 * h.numel()  # not a part of what the kernel keeps
        backend.conv(*test_conv.drawn(5, 4)[:3])
        gradients(backend.scan, args, None, None, drawn(shape, 70, seed=2)[0].v_BLHP, None)
    assert called() == {"mamba_chunk_scan_combined" if shape in ONE else "selective_scan_fn", "causal_conv1d_fn"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_type_is_summed_in_float32(stood_in, shape, dtype):
    backend = stood_in()
    args, h0 = drawn(shape, 9)
    y, h = backend.scan(*(x.to(dtype) for x in args), h0=h0.float())
    assert y.dtype == dtype and h.dtype == torch.float32
    assert {kind for _, kind in stand_in.CALLS} == {torch.float32}


@pytest.mark.parametrize("starts", [0, 1, 2])
@pytest.mark.parametrize("silent", ["y", "state", "neither"])
def test_all_gradients_are_the_references_whoever_takes_them(stood_in, shape, silent, starts):
    backend = stood_in()
    args, h0, _, dy, dh = case(shape, 70, starts=starts)
    dy, dh = None if silent == "y" else dy, None if silent == "state" else dh
    for got, want in zip(gradients(backend.scan, args, h0, None, dy, dh), gradients(reference.scan, args, h0, None, dy, dh), strict=True):
        assert deviation(got, want) <= 1e-10
    said = "the gradient of a last state is taken by" if starts == 0 else "starts from a state"
    assert bool(told()) == (said in told()) == (shape in MANY and (starts > 0 or silent != "state"))


def test_a_gradient_can_be_taken_twice_and_keeps_nothing_of_the_kernel_after_the_first(stood_in, shape):
    backend = stood_in()
    v, *rest = drawn(shape, 9)[0]
    v.requires_grad_()
    y, _ = backend.scan(v, *rest)
    loss = y.square().sum()
    node = loss.grad_fn.next_functions[0][0].next_functions[0][0]
    first, = torch.autograd.grad(loss, v, retain_graph=True)
    assert type(node).__name__ == "BorrowedBackward" and node.graph is None
    again, = torch.autograd.grad(loss, v)
    assert torch.equal(first, again) and first.any()


@pytest.mark.parametrize("length", [1, 17])
def test_second_derivatives_are_those_of_the_recurrence_and_told(stood_in, shape, length):
    """The kernels' own would be 0, in silence."""
    backend = stood_in()
    given = [x.requires_grad_() for x in drawn(shape, length, rows=1)[0]]
    assert torch.autograd.gradgradcheck(lambda *given: backend.scan(*given)[0], given, fast_mode=True)
    assert "a second derivative is taken by chunked" in told()


@pytest.mark.parametrize("work", [1, 1000])
def test_what_is_left_of_a_start_is_added_some_tokens_at_a_time(stood_in, monkeypatch, work):
    backend = stood_in()
    monkeypatch.setattr(cuda, "WORK", work)
    for shape in MANY:
        args, h0 = drawn(shape, 33, rows=4)
        for got, want in zip(backend.scan(*args, h0=h0[:2]), reference.scan(*args, h0=h0[:2]), strict=True):
            assert deviation(got, want) <= 1e-12
        args, h0 = fierce(shape, 300)
        single = [x.float() for x in (*args, h0)]
        for got, want in zip(backend.scan(*single[:5], h0=single[5]), reference.scan(*(x.double() for x in single[:5]), h0=single[5].double())):
            assert deviation(got, want) <= 1e-5
    assert not told()


def test_autocast_leaves_the_scan_its_types(stood_in, shape):
    backend = stood_in()
    *given, h0 = (x.float() for x in (*drawn(shape, 70)[0], drawn(shape, 70)[1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = backend.scan(*given, h0=h0)
    assert all(torch.equal(x, y) for x, y in zip(under, backend.scan(*given, h0=h0), strict=True))


def wide(shape):
    args, h0 = drawn(shape, 5)
    if shape in MANY:  # as many states as it has not
        args = args._replace(A_HN=args.A_HN[:, :1].expand(-1, 257), B_BLGN=args.B_BLGN[..., :1].expand(-1, -1, -1, 257),
                             C_BLGN=args.C_BLGN[..., :1].expand(-1, -1, -1, 257))
    return args


@pytest.mark.parametrize(("said", "how"), [
    ("writes with the dt that decays", lambda shape: (drawn(shape, 5)[0], {"dt_write": torch.ones(2, 5, SHAPES[shape][0]).double()})),
    ("takes a negative dt for 0", lambda shape: (drawn(shape, 5)[0]._replace(dt_BLH=-drawn(shape, 5)[0].dt_BLH), {})),
    ("has at most 256 states, and 257 are asked for", lambda shape: (wide(shape), {}))], ids=["write", "negative", "states"])
def test_what_the_scans_cannot_do_is_chunkeds_and_told_once(stood_in, shape, said, how):
    backend = stood_in()
    args, how = how(shape)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            got = backend.scan(*args, **how)
    for one, other in zip(got, reference.scan(*args, **how), strict=True):
        assert deviation(one, other) <= 1e-12
    theirs = shape in {"takes": ONE, "has": MANY}.get(said.split()[0], SHAPES)
    assert [said in str(each.message) for each in caught] == [True] * theirs
    assert bool(called()) != theirs


def test_places_that_32_bits_cannot_reckon_are_chunkeds(stood_in, monkeypatch, shape):
    """What is given, and what Mamba-2's makes on the way: a state at the border of each of its chunks."""
    backend, (args, _) = stood_in(), drawn(shape, 130)
    given = max(x.numel() for x in args)
    made = 2 * 3 * math.prod(args.v_BLHP.shape[2:]) * args.B_BLGN.shape[3] if shape in ONE else 0
    for most, theirs in ((max(given, made), True), (max(given, made) + 1, False)):
        monkeypatch.setattr(cuda_library, "MOST_NUMBERS", most)
        for one, other in zip(backend.scan(*args), reference.scan(*args), strict=True):
            assert deviation(one, other) <= 1e-12
        assert f"reckons places in 32 bits, and {max(given, made)} numbers are asked for" in told()
        assert bool(called()) != theirs


def test_of_a_part_the_conv_reckons_the_places_of_the_whole(stood_in, monkeypatch):
    backend, wide = stood_in(), torch.randn(2, 5, 24, dtype=torch.float64)
    given = wide[..., 8:16], torch.randn(8, 4, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    for most, theirs in ((9 * 24 + 8, True), (9 * 24 + 9, False)):
        monkeypatch.setattr(cuda_library, "MOST_NUMBERS", most)
        for one, other in zip(backend.conv(*given), reference.conv(*given), strict=True):
            assert deviation(one, other) <= 1e-12
        assert bool(called()) != theirs


@pytest.mark.parametrize("dtype", [torch.float64], ids=str)
def test_float64_is_chunkeds(stood_in, shape, dtype):
    backend = stood_in(types=())
    args, h0 = drawn(shape, 5)
    backend.scan(*args, h0=h0)
    backend.conv(*test_conv.drawn(5, 4)[:3])
    assert not called() and told().count("the library has no float64") == 2


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 8])
@pytest.mark.parametrize(("channels", "inside", "after"), [(16, 16, 0), (16, 48, 0), (16, 48, 1), (16, 35, 1), (5, 5, 0), (5, 11, 0)])
@pytest.mark.parametrize("past", [0, 1, 2])
def test_the_conv_lays_its_inputs_as_the_library_demands(stood_in, width, length, channels, inside, after, past):
    """A part of wider projections, at strides and addresses it would refuse; their gradients as autograd hands them over."""
    backend = stood_in()
    u_BLC, weight_CK, bias_C, tail_BKC = test_conv.drawn(length, width, rows=2, channels=channels)
    weight_CK, bias_C = weight_CK.requires_grad_(), bias_C.requires_grad_()
    whole = torch.zeros(2, length, inside, dtype=u_BLC.dtype)
    part = slice(inside - channels - after, inside - after)
    whole[..., part] = u_BLC
    found = []
    for each in (backend, reference):
        given = whole.clone().requires_grad_()
        y, tail = each.conv(given[..., part], weight_CK, bias_C, tail=tail_BKC[:past] if past else None)
        found.append([y, *torch.autograd.grad(y.transpose(1, 2).unflatten(1, (1, -1))[:, 0].square().sum(), (given, weight_CK, bias_C)),
                      tail[:1]])
    for got, want in zip(*found, strict=True):
        assert deviation(got.detach(), want.detach()) <= 1e-12
    assert called() == {"causal_conv1d_fn"}


def test_a_gradient_that_is_a_part_of_another_is_laid_so_too(stood_in):
    backend = stood_in()
    u_BLC, weight_CK, bias_C, _ = test_conv.drawn(8, 4, rows=2, channels=16)
    dy_BLC = test_conv.drawn(8, 4, rows=2, channels=19)[0][..., :16]
    got, want = (torch.autograd.grad(each.conv(u_BLC.requires_grad_(), weight_CK, bias_C)[0], u_BLC, dy_BLC)[0]
                 for each in (backend, reference))
    assert deviation(got, want) <= 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_every_family_says_the_same_through_it(stood_in, name):
    """Twice: in one pass, and going on from a past."""
    lm = mamba_mi.load(name, backend="chunked", device="cpu", dtype="float64")
    tokens = torch.arange(1, 21)[None].repeat(2, 1)
    want, _ = lm(tokens)
    backend = stood_in()
    other = lm.on("chunked")
    for layer in other.layers:
        layer.backend = backend
    assert deviation(other(tokens)[0].detach(), want.detach()) <= 1e-9
    _, past = other(tokens[:1, :12])
    assert deviation(other(tokens[:, 12:], past=past)[0].detach(), want[:, 12:].detach()) <= 1e-9
    assert called() or name == "tiny-retnet"


OLD = {"1.2": {name: holds for name, holds in stand_in.NEW.items() if "ssd" not in name} | {"causal_conv1d": {
           "causal_conv1d_fn": stand_in_seams.causal_conv1d_fn_of_1_0}},
       "2.0": stand_in.NEW | {"mamba_ssm.ops.triton.ssd_combined": {"mamba_chunk_scan_combined": stand_in_seams.mamba_chunk_scan_combined_of_2_0}},
       "without Mamba-1": stand_in.NEW | {"mamba_ssm.ops.selective_scan_interface": {
           "selective_scan_fn": stand_in.selective_scan_fn, "selective_scan_cuda": None}},
       "without a conv": {name: holds for name, holds in stand_in.NEW.items() if "conv" not in name}}


@pytest.mark.parametrize(("version", "said"), [
    ("1.2", "mamba-ssm 0 has no mamba_chunk_scan_combined"), ("2.0", ""), ("without Mamba-1", "mamba-ssm 0 is built without selective_scan_cuda"),
    ("without a conv", "causal-conv1d is not installed")])
def test_older_and_smaller_libraries_do_what_they_can(stood_in, version, said):
    backend = stood_in(OLD[version])
    for shape in SHAPES:
        args, h0 = drawn(shape, 9)
        for got, want in zip(backend.scan(*args, h0=h0), reference.scan(*args, h0=h0), strict=True):
            assert deviation(got, want) <= 1e-12
    u_BLC, weight_CK, bias_C, tail_BKC = test_conv.drawn(9, 4)
    y, _ = backend.conv(u_BLC, weight_CK, bias_C, tail=tail_BKC)
    assert deviation(y, reference.conv(u_BLC, weight_CK, bias_C, tail=tail_BKC)[0]) <= 1e-12
    assert said in told() and bool(told()) == bool(said) == (len(called()) == 2)


def missing_with(tmp_path: Path, package: str, source: str | None, cuda_there: bool = True) -> str:
    """What is printed of `missing()` in a process of its own, where these sources are mamba_ssm's."""
    if source is not None:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(source)
    asked = f"import torch; torch.cuda.is_available = lambda: {cuda_there}\nfrom mamba_mi.backends import cuda\nprint(cuda.missing())"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{asked}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stderr == ""
    return done.stdout


NOISE = "import sys, warnings; print('hello'); print('oh', file=sys.stderr); warnings.warn('no')\n"


@pytest.mark.parametrize(("source", "said"), [
    (None, "mamba-ssm is not installed (pip install mamba-ssm causal-conv1d, which needs nvcc)"),
    (NOISE + "raise OSError('undefined symbol: _ZN3c10\\nand more')", "mamba-ssm is installed, but its import fails: OSError: undefined symbol: _ZN3c10"),
    (NOISE + "import no_such_module", "mamba-ssm is installed, but its import fails: ModuleNotFoundError: No module named 'no_such_module'"),
    (NOISE, "")], ids=["none", "a broken build", "a need of its own", "a whole one"])
def test_what_is_missing_is_said_in_a_line_and_the_librarys_noise_is_not_heard(tmp_path, source, said):
    if source is None and cuda_library.find_spec("mamba_ssm"):
        pytest.skip("mamba-ssm is installed here")
    assert missing_with(tmp_path, "mamba_ssm", source) == said + "\n"


def test_without_a_device_nothing_is_imported(tmp_path):
    assert missing_with(tmp_path, "mamba_ssm", "import sys; sys.exit('imported')", cuda_there=False) == "there is no CUDA device here\n"


def test_products_in_float32_are_not_taken_in_tf32_unless_the_user_says_so(stood_in, monkeypatch):
    for before, after in ((None, "ieee"), ("tf32x3", "tf32x3")):
        monkeypatch.delenv("TRITON_F32_DEFAULT", raising=False)
        if before:
            monkeypatch.setenv("TRITON_F32_DEFAULT", before)
        stood_in()
        cuda_library.library()
        assert cuda_library.os.environ["TRITON_F32_DEFAULT"] == after


def test_it_does_not_run_on_the_cpu(stood_in):
    stood_in()
    with pytest.raises(UserError, match="backend=cuda cannot run: it runs on cuda, not on cpu"):
        backends.choose("cuda", "cpu")
    assert chunked.long_conv is cuda.long_conv and chunked.retain is cuda.retain
