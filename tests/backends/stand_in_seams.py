"""mamba-ssm's scans and causal-conv1d's conv as their sources say they are called, and what they refuse; by the recurrence.

Written from mamba-ssm's csrc/selective_scan/selective_scan.cpp, ops/selective_scan_interface.py and ops/triton/ssd_combined.py (2.3.2),
their signatures at 1.2 and 2.0 too, and causal-conv1d's csrc/causal_conv1d.cpp (1.6), its signature at 1.0 too. Like them, the
backward of the selective scan leaves the last state's gradient out, and no gradient can be differentiated again.
"""
import torch
from torch.autograd import Function

TYPES = [torch.float32, torch.bfloat16, torch.float16]
CALLS = []  # what was called, and in which type


def known(dtype):
    return dtype in TYPES


def check(holds, what):
    if not holds:
        raise RuntimeError(f"Expected {what} to be true, but got false.")


class Once(Function):
    """`run(*given)`, whose gradients are of its first `told` outputs, and constants; `laid` refuses that of y."""

    @staticmethod
    def forward(ctx, run, told, laid, *given):
        ctx.run, ctx.told, ctx.laid = run, told, laid
        ctx.save_for_backward(*given)
        return run(*given)

    @staticmethod
    def backward(ctx, *into):
        ctx.laid(into[0])
        with torch.enable_grad():
            own = [None if x is None else x.detach().requires_grad_() for x in ctx.saved_tensors]
            made = ctx.run(*own)
            made = made if isinstance(made, tuple) else (made,)
            pairs = [(y, dy) for y, dy in zip(made[:ctx.told], into) if dy is not None]
            found = iter(torch.autograd.grad([y for y, _ in pairs], [x for x in own if x is not None], [dy for _, dy in pairs],
                                             allow_unused=True))
        return None, None, None, *(None if x is None else next(found).detach() for x in own)


def recurrence(x_BLHP, dt_BLH, A_HN, B_BLHN, C_BLHN, h_BHPN):
    ys = []
    for t in range(x_BLHP.shape[1]):
        left = torch.exp(dt_BLH[:, t, :, None] * A_HN)[:, :, None]
        h_BHPN = left * h_BHPN + torch.einsum("bh,bhp,bhn->bhpn", dt_BLH[:, t], x_BLHP[:, t], B_BLHN[:, t])
        ys.append(torch.einsum("bhpn,bhn->bhp", h_BHPN, C_BLHN[:, t]))
    return torch.stack(ys, 1), h_BHPN


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
    assert D is None and z is None and delta_bias is None and not delta_softplus, "these stay in our models"
    CALLS.append(("selective_scan_fn", u.dtype))
    (batch, dim, seqlen), (_, dstate), n_groups = u.shape, A.shape, B.shape[1]
    check(u.dtype in TYPES, "input_type")
    check(A.dtype == torch.promote_types(u.dtype, torch.float32), "weight_type == Float")
    check(delta.dtype == u.dtype and B.dtype == u.dtype and C.dtype == u.dtype, "scalar_type() == input_type")
    check(dstate <= 256, "dstate <= 256")
    check(delta.shape == u.shape and A.shape == (dim, dstate) and dim % n_groups == 0, "CHECK_SHAPE")
    check(B.shape == C.shape == (batch, n_groups, dstate, seqlen), "CHECK_SHAPE")

    def run(u, delta, A, B, C):
        wide = [x.double() for x in (u, delta, B, C)]
        u_BLE, dt_BLE, (B_BLEN, C_BLEN) = wide[0].transpose(1, 2), wide[1].transpose(1, 2), (
            x.repeat_interleave(dim // n_groups, 1).permute(0, 3, 1, 2) for x in wide[2:])
        y, h = recurrence(u_BLE[..., None], dt_BLE, A.double(), B_BLEN, C_BLEN, torch.zeros(batch, dim, 1, dstate, dtype=torch.float64))
        kept = torch.stack([h[:, :, 0], h[:, :, 0]], -1).flatten(2).to(A.dtype)  # the state is every second number of what it keeps
        return y[..., 0].transpose(1, 2).contiguous().to(u.dtype), kept[..., 1::2]

    out, last = Once.apply(run, 1, lambda dout: None, u, delta, A, B, C)
    return (out, last) if return_last_state else out


def _chunk_scan(x, dt, A, B, C, chunk_size, initial_states, dt_softplus, dt_limit, return_final_states):
    CALLS.append(("mamba_chunk_scan_combined", x.dtype))
    (batch, seqlen, nheads, headdim), (_, _, ngroups, dstate) = x.shape, B.shape
    assert x.dtype in TYPES and not dt_softplus and chunk_size & (chunk_size - 1) == 0
    assert nheads % ngroups == 0 and B.shape == C.shape == (batch, seqlen, ngroups, dstate)
    assert dt.shape == (batch, seqlen, nheads) and A.shape == (nheads,)
    assert initial_states is None or initial_states.shape == (batch, nheads, headdim, dstate)

    def run(x, dt, A, B, C, initial_states):
        B_, C_ = (m.double().repeat_interleave(nheads // ngroups, 2) for m in (B, C))
        start = torch.zeros(batch, nheads, headdim, dstate) if initial_states is None else initial_states
        y, h = recurrence(x.double(), dt.double().clamp(*dt_limit), A.double()[:, None], B_, C_, start.double())
        return y.to(x.dtype), h.to(torch.promote_types(x.dtype, torch.float32))

    out, last = Once.apply(run, 2, lambda dout: None, x, dt, A, B, C, initial_states)
    return (out, last) if return_final_states else out


def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None,
                              cu_seqlens=None, dt_softplus=False, dt_limit=(0.0, float("inf")), return_final_states=False,
                              return_varlen_states=False):
    assert D is None and z is None and dt_bias is None and seq_idx is None and cu_seqlens is None and not return_varlen_states
    return _chunk_scan(x, dt, A, B, C, chunk_size, initial_states, dt_softplus, dt_limit, return_final_states)


def mamba_chunk_scan_combined_of_2_0(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None,
                                     dt_softplus=False, dt_limit=(0.0, float("inf")), return_final_states=False):
    assert D is None and z is None and dt_bias is None and seq_idx is None
    return _chunk_scan(x, dt, A, B, C, chunk_size, initial_states, dt_softplus, dt_limit, return_final_states)


def _laid(x, dim):
    check(x.stride(2) == 1 or x.stride(1) == 1, "x.stride(2) == 1 || x.stride(1) == 1")
    if x.stride(1) == 1 and x.stride(2) > 1:
        check(dim % 8 == 0, "dim % 8 == 0")
        check(x.stride(2) % 8 == 0 and x.stride(0) % 8 == 0, "x.stride(2) % 8 == 0 and x.stride(0) % 8 == 0")
        check(x.data_ptr() % 16 == 0, "a load of 16 bytes, which the GPU refuses elsewhere")


def causal_conv1d_fn_of_1_0(x, weight, bias=None, activation=None):
    check(activation in (None, "silu", "swish"), "activation must be None, silu, or swish")
    CALLS.append(("causal_conv1d_fn", x.dtype))
    batch, dim, seqlen = x.shape
    width = weight.shape[1]
    _laid(x, dim)
    check(x.dtype in TYPES and weight.dtype in TYPES and bias.dtype == weight.dtype, "scalar_type() == weight_type")
    check(2 <= width <= 4, "width >= 2 && width <= 4")
    check(weight.shape == (dim, width) and bias.shape == (dim,) and bias.stride(-1) == 1, "CHECK_SHAPE")

    def run(x, weight, bias):
        padded = torch.nn.functional.pad(x.double(), (width - 1, 0))
        y = torch.nn.functional.conv1d(padded, weight.double()[:, None], bias.double(), groups=dim)
        return torch.empty_like(x, requires_grad=False).copy_(torch.nn.functional.silu(y) if activation else y)

    def laid(dout):
        if last and dout.stride(1) == 1:  # else it makes a copy
            check(dout.stride(2) % 8 == 0 and dout.stride(0) % 8 == 0, "dout.stride(2) % 8 == 0 and dout.stride(0) % 8 == 0")

    last = x.stride(1) == 1 and x.stride(2) > 1
    return Once.apply(run, 1, laid, x, weight, bias)


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False, final_states_out=None,
                     activation=None):
    assert seq_idx is None and initial_states is None and not return_final_states and final_states_out is None
    return causal_conv1d_fn_of_1_0(x, weight, bias, activation)
