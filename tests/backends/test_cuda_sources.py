"""The adapter against mamba-ssm's own Python, from a wheel beside the repository: its checks, its layouts, its Triton kernels in
the interpreter. Of its compiled extension there is a stand-in, which computes by the library's own `selective_scan_ref`."""
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
    assert u.dtype == delta.dtype == B.dtype == C.dtype == A.dtype == torch.float32
    assert u.stride(-1) == 1 or u.size(-1) == 1, "u"
    assert delta.stride(-1) == 1 or delta.size(-1) == 1, "delta"
    (batch, dim, seqlen), dstate = u.shape, A.shape[1]
    assert delta.shape == u.shape and A.shape == (dim, dstate) and dstate <= 256
    assert B.shape == C.shape == (batch, B.shape[1], dstate, seqlen)
    out, last = selective_scan_ref(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state=True)
    x = torch.full((batch, dim, (seqlen + 2047) // 2048, 2 * dstate), torch.nan)
    x[:, :, -1, 1::2] = last
    return out, x
'''
RUN = '''
import contextlib
import torch
torch.cuda.device = lambda index: contextlib.nullcontext()  # the interpreter's tensors are on none
from mamba_mi.backends import cuda, cuda_gradients, cuda_library, reference
from tests.backends.test_scan import SHAPES, drawn

assert not cuda_library.missing(), cuda_library.missing()
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


def of_the_wheel(tmp_path, asked: str) -> str:
    """What a process prints that has the wheel's sources, the extension's stand-in, and Triton in its interpreter."""
    with zipfile.ZipFile(WHEELS[-1]) as wheel:
        wheel.extractall(tmp_path, [name for name in wheel.namelist() if name.startswith("mamba_ssm/") and name.endswith(".py")])
    (tmp_path / "selective_scan_cuda.py").write_text(EXTENSION)
    env = os.environ | {"TRITON_INTERPRET": "1", "MAMBA_DETERMINISTIC": "1",  # no tuning, which needs a device
                        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPO / "tests"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", asked + RUN], cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_mamba1s_scan_is_handed_to_their_own_function(tmp_path):
    said = of_the_wheel(tmp_path, "ONE, TRIED = False, [(1, 0), (1, 1), (33, 0), (33, 2), (70, 1)]")
    assert said.count("\n") == 16 and "told set()" in said and "mamba_chunk_scan_combined" not in said


@pytest.mark.slow
def test_mamba2s_scan_runs_their_kernels_in_tritons_interpreter(tmp_path):
    said = of_the_wheel(tmp_path, "ONE, TRIED = True, [(1, 1), (70, 0), (70, 1)]")
    assert said.count("\n") == 10 and "told set()" in said and "mamba_chunk_scan_combined" not in said
