"""mamba-ssm's norms and its calls of whole layers as their sources say they are called, and what they refuse; by the recurrence.

Written from ops/triton/layer_norm.py, layernorm_gated.py and ssd_combined.py and ops/selective_scan_interface.py (2.3.2, and what
came after), their signatures at 1.2 and 2.0 too. None of their gradients can be differentiated again.
"""
import torch

from tests.backends.stand_in_seams import CALLS, Once, causal_conv1d_fn_of_1_0, check, known, recurrence


def _normed(x, weight, eps, groups):
    parts = x.unflatten(-1, (groups, -1))
    return (parts / (parts.pow(2).mean(-1, keepdim=True) + eps).sqrt()).flatten(-2) * weight


def _laid(x, group_size):
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    assert rows.stride(-1) == 1
    if group_size > 65536 // x.element_size():
        raise RuntimeError("This layer norm doesn't support feature dim >= 64KB.")


def rms_norm_fn_of_1_2(x, weight, bias, residual=None, prenorm=False, residual_in_fp32=False, eps=1e-6):
    assert bias is None and residual is None and not prenorm and not residual_in_fp32
    CALLS.append(("rms_norm_fn", x.dtype))
    assert known(x.dtype) and weight.shape == x.shape[-1:]
    _laid(x, x.shape[-1])
    return Once.apply(lambda x, weight: _normed(x.double(), weight.double(), eps, 1).to(x.dtype), 1, lambda dy: None, x, weight)


def rms_norm_fn(x, weight, bias, residual=None, x1=None, weight1=None, bias1=None, eps=1e-6, dropout_p=0.0, rowscale=None,
                prenorm=False, residual_in_fp32=False, return_dropout_mask=False):
    assert x1 is None and weight1 is None and bias1 is None and not dropout_p and rowscale is None and not return_dropout_mask
    return rms_norm_fn_of_1_2(x, weight, bias, residual, prenorm, residual_in_fp32, eps)


def rmsnorm_fn(x, weight, bias, z=None, eps=1e-6, group_size=None, norm_before_gate=True):
    assert bias is None
    CALLS.append(("rmsnorm_fn", x.dtype))
    width = x.shape[-1]
    group_size = width if group_size is None else group_size
    assert known(x.dtype) and weight.shape == (width,) and width % group_size == 0
    _laid(x, group_size)
    if z is not None:
        assert z.shape == x.shape and known(z.dtype)
        _laid(z, group_size)

    def run(x, weight, z):
        x_, weight, z = (None if each is None else each.double() for each in (x, weight, z))
        if z is not None and not norm_before_gate:
            x_ = x_ * z * z.sigmoid()
        y = _normed(x_, weight, eps, width // group_size)
        return (y * z * z.sigmoid() if z is not None and norm_before_gate else y).to(x.dtype)

    return Once.apply(run, 1, lambda dy: None, x, weight, z)


def unseen(*given):
    """The calls' own gradients are never asked for, and autocast would have them take products in its type."""
    assert not torch.is_autocast_enabled("cpu") and not (torch.is_grad_enabled() and any(x.requires_grad for x in given))


def _convolved(x, weight, bias):
    """The conv with its SiLU of channels first, as they are handed on to causal-conv1d's own function."""
    kept = len(CALLS)
    y = causal_conv1d_fn_of_1_0(x, weight, bias, "silu")
    del CALLS[kept:]
    return y.double()


def mamba_inner_fn_of_1_2(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias, A, B=None,
                          C=None, D=None, delta_bias=None, B_proj_bias=None, C_proj_bias=None, delta_softplus=True):
    assert B is None and C is None and B_proj_bias is None and C_proj_bias is None and out_proj_bias is None
    unseen(xz, conv1d_weight, A, D)
    CALLS.append(("mamba_inner_fn", xz.dtype))
    (batch, twice, _), (dim, dstate), rank = xz.shape, A.shape, delta_proj_weight.shape[1]
    check(known(xz.dtype) and twice == 2 * dim, "input_type")
    check(all(w.dtype == xz.dtype for w in (x_proj_weight, delta_proj_weight, out_proj_weight)), "mat1 and mat2 must have the same dtype")
    check(all(w.dtype == torch.promote_types(xz.dtype, torch.float32) for w in (A, D, delta_bias)), "weight_type == Float")
    check(dstate <= 256 and D.shape == delta_bias.shape == (dim,), "CHECK_SHAPE")
    check(conv1d_weight.shape[1] == 1 and x_proj_weight.shape == (rank + 2 * dstate, dim), "CHECK_SHAPE")
    kind = xz.dtype
    xz = xz if xz.stride(-1) == 1 else xz.contiguous()
    x, z = xz.chunk(2, dim=1)
    v_BEL = _convolved(x, conv1d_weight[:, 0], conv1d_bias)
    low, B_, C_ = (x_proj_weight.double() @ v_BEL).to(kind).double().split([rank, dstate, dstate], dim=1)
    delta = (delta_proj_weight.double() @ low).to(kind).double() + delta_bias.double()[:, None]
    dt_BLE = (torch.log1p(torch.exp(delta)) if delta_softplus else delta).transpose(1, 2)
    each = [m.transpose(1, 2)[:, :, None].expand(-1, -1, dim, -1) for m in (B_, C_)]
    y, _ = recurrence(v_BEL.transpose(1, 2)[..., None], dt_BLE, A.double(), *each, torch.zeros(batch, dim, 1, dstate, dtype=torch.float64))
    z_BLE = z.transpose(1, 2).double()
    gated = (y[..., 0] + v_BEL.transpose(1, 2) * D.double()) * z_BLE * z_BLE.sigmoid()
    return (gated.to(kind).double() @ out_proj_weight.double().T).to(kind)


def mamba_inner_fn(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias, A, B=None, C=None,
                   D=None, delta_bias=None, B_proj_bias=None, C_proj_bias=None, delta_softplus=True, checkpoint_lvl=1, b_rms_weight=None,
                   c_rms_weight=None, dt_rms_weight=None, b_c_dt_rms_eps=1e-6):
    assert checkpoint_lvl in (0, 1) and b_rms_weight is None and c_rms_weight is None and dt_rms_weight is None
    return mamba_inner_fn_of_1_2(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias, A, B, C,
                                 D, delta_bias, B_proj_bias, C_proj_bias, delta_softplus)


def mamba_split_conv1d_scan_combined(zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, chunk_size, initial_states=None, seq_idx=None,
                                     dt_limit=(0.0, float("inf")), return_final_states=False, activation="silu", rmsnorm_weight=None,
                                     rmsnorm_eps=1e-6, outproj_weight=None, outproj_bias=None, headdim=None, ngroups=1,
                                     norm_before_gate=True, state_dtype=None):
    assert initial_states is None and seq_idx is None and state_dtype is None
    return mamba_split_conv1d_scan_combined_of_2_0(
        zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, chunk_size, dt_limit=dt_limit, return_final_states=return_final_states,
        activation=activation, rmsnorm_weight=rmsnorm_weight, rmsnorm_eps=rmsnorm_eps, outproj_weight=outproj_weight,
        outproj_bias=outproj_bias, headdim=headdim, ngroups=ngroups, norm_before_gate=norm_before_gate)


def mamba_split_conv1d_scan_combined_of_2_0(zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, chunk_size, initial_states=None,
                                            seq_idx=None, dt_limit=(0.0, float("inf")), return_final_states=False, activation="silu",
                                            rmsnorm_weight=None, rmsnorm_eps=1e-6, outproj_weight=None, outproj_bias=None, headdim=None,
                                            ngroups=1, norm_before_gate=True):
    assert initial_states is None and seq_idx is None and outproj_weight is None and outproj_bias is None and activation == "silu"
    unseen(zxbcdt, conv1d_weight, A, D)
    CALLS.append(("mamba_split_conv1d_scan_combined", zxbcdt.dtype))
    (batch, _, width), (nheads,) = zxbcdt.shape, D.shape
    dim = nheads * headdim
    dstate = (len(conv1d_weight) - dim) // ngroups // 2
    assert known(zxbcdt.dtype) and nheads % ngroups == 0 and chunk_size & (chunk_size - 1) == 0
    assert width == 2 * dim + 2 * ngroups * dstate + nheads and dt_bias.shape == A.shape == (nheads,)
    z, xBC, dt = zxbcdt.split([dim, dim + 2 * ngroups * dstate, nheads], dim=-1)
    xBC = _convolved(xBC.transpose(1, 2), conv1d_weight, conv1d_bias).transpose(1, 2)
    x, B, C = xBC.split([dim, ngroups * dstate, ngroups * dstate], dim=-1)
    x = x.unflatten(-1, (nheads, headdim))
    B, C = (m.unflatten(-1, (ngroups, dstate)).repeat_interleave(nheads // ngroups, 2) for m in (B, C))
    dt = torch.log1p(torch.exp(dt.double() + dt_bias.double())).clamp(*dt_limit)
    y, h = recurrence(x, dt, A.double()[:, None], B, C, torch.zeros(batch, nheads, headdim, dstate, dtype=torch.float64))
    y = (y + x * D.double()[:, None]).flatten(2)
    gate = z.double() * z.double().sigmoid()
    if rmsnorm_weight is None:
        out = y * gate
    elif norm_before_gate:
        _laid(z, dim // ngroups)
        out = _normed(y, rmsnorm_weight.double(), rmsnorm_eps, ngroups) * gate
    else:
        _laid(z, dim // ngroups)
        out = _normed(y * gate, rmsnorm_weight.double(), rmsnorm_eps, ngroups)
    out, h = out.to(zxbcdt.dtype), h.to(torch.promote_types(zxbcdt.dtype, torch.float32))
    return (out, h) if return_final_states else out
