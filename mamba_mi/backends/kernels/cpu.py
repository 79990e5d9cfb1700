"""The loops of `mamba_mi.backends.compiled`, for numba: the scan of many decays, the conv, and two passes over channels.

A tensor comes as one flat array and the strides of its rows and tokens (`at`); its channels lie side by side. A loop over
a constant few channels becomes vector instructions. What all is made of, exp2, silu and softplus, is the library's in
float64, and in float32 polynomials that vectorise, within 3e-7 of the true value; they interpolate at Chebyshev's points,
and are made here. One file: numba keeps machine code by the file a loop is in.
Shape legend: B batch, L length, E channels, C channels of the conv, K conv width, N state, G groups, J blocks of W channels.
"""
from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import wraps
from pickle import UnpicklingError

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

W = 32  # channels a block: what of a token is read or written is two cache lines, side by side
TOKENS = 16  # of all blocks, one after another, before the next few: what these read and write stays in cache
# no reassociation: (z + ROUND) - ROUND must round; no "there are no NaNs": one must come out where one went in
FAST = {"contract", "nsz", "arcp"}
LOG2E, TINY = math.log2(math.e), 1e-100
HALF, ONE, LOG2E_32, LEAST, MOST = map(np.float32, (0.5, 1, LOG2E, -126, 127))
ROUND = np.float32(1.5 * 2**23)  # added, it leaves the nearest integer in a float32's last bits


def _polynomial(function: Callable, degree: int, low: float, high: float) -> list[np.float32]:
    """Its coefficients, lowest first."""
    fitted = np.polynomial.Chebyshev.interpolate(function, degree, domain=[low, high])
    return [np.float32(c) for c in fitted.convert(kind=np.polynomial.Polynomial).coef]


# (2^r - 1) / r: 1 at r = 0 to the bit, for what is wrong there is wrong at every token of a decay that is slow
E1, E2, E3, E4, E5 = _polynomial(lambda r: np.expm1(math.log(2) * (r + TINY)) / (r + TINY), 4, -0.5, 0.5)
# log1p(u) / u where u <= 1
L0, L1, L2, L3, L4, L5, L6, L7, L8, L9 = _polynomial(lambda u: np.log1p(u) / u, 9, 0.0, 1.0)


@intrinsic
def _bits(context, x):
    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _float(context, x):
    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@numba.njit(inline="always", fastmath=FAST)
def _exp2(z):
    """2 to a float32 `z` <= 127; below -126 it stays at 2 to the -126."""
    z = z if z > LEAST else LEAST  # not max(): of that numba makes more, for NaN
    whole = z + ROUND
    r = z - (whole - ROUND)
    power = ((((E5 * r + E4) * r + E3) * r + E2) * r + E1) * r + ONE
    return _float(_bits(power) + (_bits(whole) << np.int32(23)))


def exp2(x):
    """2 to the power `x`, x <= 127."""
    return np.exp2(x)


def silu(x):
    """x / (1 + exp(-x))."""
    return x / (1 + np.exp(-x))


def softplus(x):
    """log(1 + exp(x))."""
    return max(x, 0.0) + np.log1p(np.exp(-abs(x)))


@numba.njit(inline="always", fastmath=FAST)
def _silu(x):
    z = -x * LOG2E_32
    return x / (ONE + _exp2(z if z < MOST else MOST))


@numba.njit(inline="always", fastmath=FAST)
def _softplus(z):
    u = _exp2(-abs(z) * LOG2E_32)
    log1p = u * (((((((((L9 * u + L8) * u + L7) * u + L6) * u + L5) * u + L4) * u + L3) * u + L2) * u + L1) * u + L0)
    return (z + abs(z)) * HALF + log1p  # NaN where z is


def _by_type(wide: Callable, narrow: Callable) -> None:
    """Within a loop, `wide` of a float32 is `narrow`."""
    @overload(wide, inline="always")
    def chosen(x):
        return (lambda x: narrow(x)) if x == types.float32 else wide


for _wide, _narrow in ((exp2, _exp2), (silu, _silu), (softplus, _softplus)):
    _by_type(_wide, _narrow)


def compiled(loop: Callable) -> Callable:
    """`loop` as machine code, compiled when first called and kept on disk where there is a place for it."""
    how = {"nogil": True, "fastmath": FAST, "error_model": "numpy"}
    anew = numba.njit(**how)(loop)
    try:
        kept = [numba.njit(cache=True, **how)(loop)]
    except RuntimeError:  # nowhere to keep it
        return anew

    @wraps(loop)
    def run(*given):
        if kept:
            try:
                return kept[0](*given)
            except (OSError, EOFError, ValueError, UnpicklingError) as error:  # a full disk, a file that was cut off
                kept.clear()
                warnings.warn(f"backend=compiled: {loop.__name__} is compiled anew, for what numba keeps on disk is of no use "
                              f"({type(error).__name__}: {error}); remove the files *.nbi and *.nbc there", stacklevel=2)
        return anew(*given)

    return run


@compiled
def scan(first, stop, v, v_at, dt, dt_at, w, w_at, A_JNW, B_BLGN, C_BLGN, block_J3, h0_bJNW, y_BLE, h_BJNW):
    """h_t = 2^(dt_t A) h_{t-1} + w_t v_t B_t and y_t = C_t · h_t, for pairs of row and block, counted row after row, from
    `first` to `stop`.

    `block_J3` says of each block its first channel, how many it has, and its group. Row r starts from h0[r % len(h0)], from
    zero if there is none; the last states go into `h_BJNW`, if it has rows.
    """
    length, states, blocks = y_BLE.shape[1], A_JNW.shape[1], len(A_JNW)
    h_JNW = np.empty(A_JNW.shape, y_BLE.dtype)
    y_W, dt_W, x_W = np.empty(W, y_BLE.dtype), np.zeros(W, y_BLE.dtype), np.zeros(W, y_BLE.dtype)
    while first < stop:
        row, low = divmod(first, blocks)
        high = min(blocks, low + stop - first)
        first += high - low
        if len(h0_bJNW):
            h_JNW[low:high] = h0_bJNW[row % len(h0_bJNW), low:high]
        else:
            h_JNW[low:high] = 0
        for start in range(0, length, TOKENS):
            for j in range(low, high):
                e, size, group = block_J3[j]
                h_NW, A_NW = h_JNW[j], A_JNW[j]
                for t in range(start, min(start + TOKENS, length)):
                    at_v, at_dt, at_w = (row * v_at[0] + t * v_at[1] + e, row * dt_at[0] + t * dt_at[1] + e,
                                         row * w_at[0] + t * w_at[1] + e)
                    v_E, dt_E, w_E = v[at_v:at_v + size], dt[at_dt:at_dt + size], w[at_w:at_w + size]
                    if size == W:  # a constant count, so that these are vectors too
                        for i in range(W):
                            y_W[i], dt_W[i], x_W[i] = 0, dt_E[i], w_E[i] * v_E[i]
                    else:
                        for i in range(size):
                            y_W[i], dt_W[i], x_W[i] = 0, dt_E[i], w_E[i] * v_E[i]
                    for n in range(states):
                        b, c = B_BLGN[row, t, group, n], C_BLGN[row, t, group, n]
                        for i in range(W):
                            h = exp2(dt_W[i] * A_NW[n, i]) * h_NW[n, i] + b * x_W[i]
                            h_NW[n, i] = h
                            y_W[i] += c * h
                    y_BLE[row, t, e:e + size] = y_W[:size]
        if len(h_BJNW):
            h_BJNW[row, low:high] = h_JNW[low:high]


@compiled
def conv(first, stop, u, u_at, weight_KC, bias_C, tail_bKC, y_BLC, activate):
    """y_t = bias + Σ_k weight_k ∘ u_{t-K+1+k}, through SiLU if `activate`; tokens from `first` to `stop`, counted row after
    row. Row r's inputs before the pass are tail[r % len(tail)]."""
    length, channels, width = y_BLC.shape[1], len(bias_C), len(weight_KC)
    for token in range(first, stop):
        row, t = divmod(token, length)
        y_C = y_BLC[row, t]
        y_C[:] = bias_C
        for k in range(width):
            s, weight_C = t - width + 1 + k, weight_KC[k]
            if s < 0:
                tail_C = tail_bKC[row % len(tail_bKC), width - 1 + s]
                for c in range(channels):
                    y_C[c] += weight_C[c] * tail_C[c]
            else:
                u_C = u[row * u_at[0] + s * u_at[1]:][:channels]
                for c in range(channels):
                    y_C[c] += weight_C[c] * u_C[c]
        if activate:
            for c in range(channels):
                y_C[c] = silu(y_C[c])


@compiled
def gate(first, stop, y, y_at, z, z_at, out_BLE):
    """y ∘ silu(z), for tokens from `first` to `stop`, counted row after row."""
    length, channels = out_BLE.shape[1:]
    for token in range(first, stop):
        row, t = divmod(token, length)
        y_E, z_E = y[row * y_at[0] + t * y_at[1]:][:channels], z[row * z_at[0] + t * z_at[1]:][:channels]
        out_E = out_BLE[row, t]
        for e in range(channels):
            out_E[e] = y_E[e] * silu(z_E[e])


@compiled
def step_sizes(first, stop, z, z_at, bias_E, out_BLE):
    """softplus(z + bias), for tokens from `first` to `stop`, counted row after row."""
    length, channels = out_BLE.shape[1:]
    for token in range(first, stop):
        row, t = divmod(token, length)
        z_E, out_E = z[row * z_at[0] + t * z_at[1]:][:channels], out_BLE[row, t]
        for e in range(channels):
            out_E[e] = softplus(z_E[e] + bias_E[e])
