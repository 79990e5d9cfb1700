"""The adapter against mamba-ssm's own Python, from a wheel beside the repository: its checks, its layouts, its Triton kernels in
the interpreter. Of its compiled extension there is a stand-in, which computes by the library's own `selective_scan_ref`; of
causal-conv1d one that demands what its own does."""
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
WHEELS = sorted((REPO.parent / "shared" / "wheels").glob("mamba_ssm-*.whl"))
pytestmark = [pytest.mark.skipif(not WHEELS, reason="no mamba-ssm beside the repository, in ../shared/wheels"),
              pytest.mark.skipif(not find_spec("einops"), reason="einops is not installed, and mamba-ssm's sources need it"),
              pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed, and mamba-ssm's sources need it")]

EXTENSION = '''
import torch

def fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref
    assert u.dtype == delta.dtype == B.dtype == C.dtype and A.dtype == torch.float32
    assert all(x is None or x.dtype == torch.float32 for x in (D, delta_bias)) and (z is None or z.dtype == u.dtype)
    assert u.stride(-1) == 1 or u.size(-1) == 1, "u"
    assert delta.stride(-1) == 1 or delta.size(-1) == 1, "delta"
    (batch, dim, seqlen), dstate = u.shape, A.shape[1]
    assert delta.shape == u.shape and A.shape == (dim, dstate) and dstate <= 256
    assert B.shape == C.shape == (batch, B.shape[1], dstate, seqlen)
    out, last = selective_scan_ref(u, delta, A, B, C, D, None, delta_bias, delta_softplus, return_last_state=True)
    x = torch.full((batch, dim, (seqlen + 2047) // 2048, 2 * dstate), torch.nan)
    x[:, :, -1, 1::2] = last
    return (out, x) if z is None else (out, x, (out * torch.nn.functional.silu(z.float())).to(u.dtype))
'''
CONV = '''
from tests.backends.stand_in_seams import causal_conv1d_fn, causal_conv1d_fn_of_1_0

def causal_conv1d_fwd_function(x, weight, bias, seq_idx, initial_states, final_states_out, silu_activation):
    assert seq_idx is None and initial_states is None and final_states_out is None
    return causal_conv1d_fn_of_1_0(x, weight, bias, "silu" if silu_activation else None)

causal_conv1d_bwd_function = causal_conv1d_update_function = None
'''
BEFORE = '''
import contextlib
import torch
torch.cuda.device = lambda index: contextlib.nullcontext()  # the interpreter's tensors are on none
from mamba_mi.backends import cuda, cuda_gradients, cuda_library, reference

assert not cuda_library.missing(), cuda_library.missing()
'''
SCANS = '''
from tests.backends.test_scan import SHAPES, drawn

for shape in SHAPES:
    heads, width, state, groups, decays = SHAPES[shape]
    if (decays == 1 < max(width, state)) != ONE:
        continue
    for length, starts in TRIED:
        args, h0 = drawn(shape, length)
        given = [x.float() for x in args]
        h0 = h0[:starts].float() if starts else None
        found = cuda.scan(*given, h0=h0)
        wanted = reference.scan(*(x.double() for x in given), h0=None if h0 is None else h0.double())
        off = [float((x - y).abs().max() / y.abs().max()) for x, y in zip(found, wanted)]
        print(shape, length, starts, off)
        assert max(off) < 1e-5
print("told", cuda_gradients.told, "lacks", cuda_library.library().lacks)
'''
NORMS = '''
from tests.backends.test_norms import EPS, drawn, in_numpy

for kind in (torch.float32, torch.bfloat16):
    for rows, length, width in ((2, 3, 24), (1, 1, 3)):
        for groups in (1, 3):
            x, z, weight = drawn(torch.float32, rows, length, width)
            x, z = x.to(kind), z.to(kind)
            bound = 1e-6 if kind == torch.float32 else 1e-2
            for got, want, most in ((cuda.norm(x, weight, EPS, groups=groups), in_numpy(x, weight, groups), 1e-6),
                                    (cuda.gated_norm(x, z, weight, EPS, groups=groups), in_numpy(x, weight, groups, z), bound)):
                off = float((got.double() - torch.from_numpy(want)).abs().max() / abs(want).max())
                print(kind, width, groups, off)
                assert off < most
print("told", cuda_gradients.told)
'''
LAYERS = '''
from mamba_mi.config import stream
from mamba_mi.models import mamba1, mamba2

of, keep, sizes = ((mamba1, False, {"d_state": 4, "dt_rank": 2}),
                   (mamba2, True, {"d_state": 4, "headdim": 2, "ngroups": 2, "dt_limit": (0.01, 0.05)}))[MAMBA - 1]
config = of.Config(d_model=8, n_layer=1, vocab_size=1, padded_vocab=1, **sizes)
if MAMBA == 1:
    calls, inner = [], cuda_library.library().whole_mamba1
else:
    calls, inner = [], cuda_library.library().whole_mamba2
called = cuda_library.library()._replace(**{f"whole_mamba{MAMBA}": lambda *given, **how: calls.append(given[0].dtype) or inner(*given, **how)})
from mamba_mi.backends import cuda_whole
cuda_whole.library = lambda: called
for kind in (torch.float32, torch.bfloat16):
    for length in (1, 70):
        ours, wide = (of.Block(config, 0, backend).requires_grad_(False) for backend in (cuda, reference))
        ours.initialise(stream(0, "layers"))
        for name, parameter in ours.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if name in ours.float32_parameters else kind)
        wide = wide.double()
        wide.load_state_dict(ours.state_dict())
        x = torch.randn(2, length, 8, dtype=torch.float64, generator=stream(1, "layers")).float()
        out, kept = ours(x, keep=keep)
        want, wanted = wide(x.double(), keep=keep)
        pairs = [(out - x, want - x), *(zip(kept, wanted) if keep else ())]
        off = [float((one - other).abs().max() / other.abs().max()) for one, other in pairs]
        print(kind, length, off, calls)
        assert max(off) < (1e-5 if kind == torch.float32 else 2e-2)
assert len(calls) == 4, calls
print("told", cuda_gradients.told)
'''


def of_the_wheel(tmp_path, asked: str) -> str:
    """What a process prints that has the wheel's sources, the extension's stand-in, and Triton in its interpreter."""
    with zipfile.ZipFile(WHEELS[-1]) as wheel:
        wheel.extractall(tmp_path, [name for name in wheel.namelist() if name.startswith("mamba_ssm/") and name.endswith(".py")])
    (tmp_path / "selective_scan_cuda.py").write_text(EXTENSION)
    for name in ("__init__", "cpp_functions"):
        (tmp_path / "causal_conv1d").mkdir(exist_ok=True)
        (tmp_path / "causal_conv1d" / f"{name}.py").write_text(CONV)
    env = os.environ | {"TRITON_INTERPRET": "1", "MAMBA_DETERMINISTIC": "1",  # no tuning, which needs a device
                        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPO / "tests"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", BEFORE + asked], cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_mamba1s_scan_is_handed_to_their_own_function(tmp_path):
    said = of_the_wheel(tmp_path, "ONE, TRIED = False, [(1, 0), (1, 1), (33, 0), (33, 2), (70, 1)]" + SCANS)
    assert said.count("\n") == 16 and "told set()" in said and "mamba_chunk_scan_combined" not in said


@pytest.mark.slow
def test_mamba2s_scan_runs_their_kernels_in_tritons_interpreter(tmp_path):
    said = of_the_wheel(tmp_path, "ONE, TRIED = True, [(1, 1), (70, 0), (70, 1)]" + SCANS)
    assert said.count("\n") == 10 and "told set()" in said and "mamba_chunk_scan_combined" not in said


def test_their_norms_run_in_tritons_interpreter(tmp_path):
    said = of_the_wheel(tmp_path, NORMS)
    assert said.count("\n") == 17 and "told set()" in said


def test_a_layer_of_mamba1_is_handed_to_their_own_function(tmp_path):
    said = of_the_wheel(tmp_path, "MAMBA = 1" + LAYERS)
    assert said.count("\n") == 5 and "told set()" in said


@pytest.mark.slow
def test_a_layer_of_mamba2_runs_their_kernels_in_tritons_interpreter(tmp_path):
    said = of_the_wheel(tmp_path, "MAMBA = 2" + LAYERS)
    assert said.count("\n") == 5 and "told set()" in said
