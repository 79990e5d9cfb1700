"""Compile every kernel a scan and its gradient launch, with no GPU: python compiled.py -> a line of JSON for each cubin.

A launch is taken where triton takes it, so what is compiled is what would run: the same constants, types and warps. Sizes are
those of published checkpoints, few tokens long.
"""
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from mamba_mi.backends import triton as backend

CAPABILITIES = (80, 90)
TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64", torch.uint8: "u8"}
MODELS = {  # heads, head width, state, groups, decays a head
    "mamba-130m": (1536, 1, 16, 1, 16), "mamba2-130m": (24, 64, 128, 1, 1), "mamba2-8-groups": (16, 64, 128, 8, 1)}
seen = set()


def compiled(kernel, *args, grid=None, warmup=False, num_warps=4, **constants):
    """In place of the launch: a cubin for each architecture, once for each way the kernel is launched."""
    parts = dict(zip(kernel.arg_names, args)) | constants
    signature, fixed, aligned = {}, {}, {}
    for k, name in enumerate(kernel.arg_names):
        x = parts[name]
        if isinstance(x, torch.Tensor):
            signature[name] = "*" + TYPES[x.dtype]
        elif name in constants or x == 1:
            signature[name], fixed[name] = "constexpr", x
        else:
            signature[name] = "i32"
        if name not in fixed and (isinstance(x, torch.Tensor) or x % 16 == 0):
            aligned[(k,)] = [["tt.divisibility", 16]]
    key = kernel.fn.__name__, *signature.items(), *fixed.items(), num_warps
    if repr(key) in seen:
        return
    seen.add(repr(key))
    for capability in CAPABILITIES:
        made = triton.compile(ASTSource(kernel, signature, fixed, aligned), target=GPUTarget("cuda", capability, 32),
                              options={"num_warps": num_warps})
        print(json.dumps({"kernel": kernel.fn.__name__, "sm": capability, "cubin": len(made.asm["cubin"]), "shared": made.metadata.shared,
                          "types": sorted({kind for kind in signature.values() if kind[0] == "*"}),
                          "products": sorted(set(re.findall(r"\b(?:wg)?mma[\w.]*", made.asm["ptx"]))),
                          **resources(made.asm["cubin"])}), flush=True)


def resources(cubin):
    """Registers and bytes of stack a thread takes; what registers do not hold goes to the stack."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], text=True, capture_output=True, check=True).stdout
    return {name: int(re.search(f"{given}:([0-9]+)", said)[1]) for name, given in (("registers", "REG"), ("stack", "STACK"))}


def given(sizes, dtype, length):
    """v, dt, A, B, C and a state to start from."""
    H, P, N, G, decays = sizes
    v, dt, A = torch.zeros(2, length, H, P, dtype=dtype), torch.zeros(2, length, H), torch.zeros(H, decays)
    B, C, h0 = torch.zeros(2, length, G, N, dtype=dtype), torch.zeros(2, length, G, N, dtype=dtype), torch.zeros(2, H, P, N)
    return [x.double() for x in (v, dt, A, B, C, h0)] if dtype == torch.float64 else [v, dt, A, B, C, h0]


def launch(sizes, dtype, length):
    """All kernels of a scan of this type, and those of its gradient."""
    args = given(sizes, dtype, length)
    backend.scan(*args[:5], h0=args[5])
    y, h = backend.scan(*(x.requires_grad_() for x in args[:5]), h0=args[5].requires_grad_())
    (y.sum() + h.sum()).backward()


def launch_rows(sizes, dtype):
    """All kernels of knockouts, of rows of M and of states at positions."""
    v, dt, A, B, C, h0 = given(sizes, dtype, 96)
    gone_BJL = torch.zeros(2, 40, 96, dtype=torch.bool)
    backend.knockout_rows(v, dt, A, B, C, gone_BJL, [50, -1], h0=h0)
    backend.mixing(dt, A, B, C, rows=[50, -1])
    backend.mixing(dt, A, B, C, rows=[50, -1], heads=[0, 1])
    for how in ("mean", "norm"):
        backend.mixing_over_heads(dt, A, B, C, how=how, rows=[50, -1])
    backend.states_at(v, dt, A, B, [50, -1], h0=h0)


if __name__ == "__main__":
    JITFunction.run = compiled
    for name in sys.argv[1:] or MODELS:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            launch(MODELS[name], dtype, 96)
            launch_rows(MODELS[name], dtype)
        launch(MODELS[name], torch.float32, 1)
