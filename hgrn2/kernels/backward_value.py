"""dv of one chunk, from the scores that the forward kept and the states' gradients; and the scores'
own gradients, for `backward_gate`: formed here once, not once for every tile of channels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.first_call import enqueue
from hgrn2.kernels.gate import (
    at_chunk,
    gated_tile,
    load_tile,
    operand,
    power,
    rows_to_tokens,
    running_sums,
    up_to,
)
from hgrn2.kernels.into import Into, before_activation
from hgrn2.kernels.keys import FreeKey
from hgrn2.kernels.settings import CHUNK, Settings, cdiv, dot_type


@triton.jit(do_not_specialize=["T", "chunks"])
def hgrn2_bwd_value_kernel(
    z,
    v,
    dy,
    bound,
    free_key,
    lengths,
    scores,
    dstates,
    dstates_reverse,
    raw_v,
    dv,
    dscores,
    z_stride_b,
    z_stride_t,
    z_stride_h,
    v_stride_b,
    v_stride_t,
    v_stride_h,
    dy_stride_b,
    dy_stride_t,
    dy_stride_h,
    T,
    H,
    chunks,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    DOT: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    VALUE: tl.constexpr,
):
    """dv [C BV] = A^T dy plus the sum over blocks of channels of (key to the border) dS.

    dscores [b n h s C C]: dA = dy v^T as each direction's mask leaves it, rows and columns in the
    order of tokens.
    """
    program = tl.program_id(0)
    v_tile = program % (V // BV)
    # int64: a stride of heads may be that of a whole sequence.
    head = (program // (V // BV) % H).to(tl.int64)
    chunk = program // (V // BV) // H % chunks
    batch = (program // (V // BV) // H // chunks).to(tl.int64)

    token = rows_to_tokens(C, GROUP)
    start = chunk.to(tl.int64) * C
    end = tl.minimum(tl.load(lengths + batch), T).to(tl.int32) if HAS_LENGTHS else T
    valid = token < end - chunk * C
    value = v_tile * BV + tl.arange(0, BV)
    to_chunk = batch * z_stride_b + start * z_stride_t + head * z_stride_h
    z += to_chunk
    v += batch * v_stride_b + start * v_stride_t + head * v_stride_h
    dy += batch * dy_stride_b + start * dy_stride_t + head * dy_stride_h
    if free_key is None:
        bound += head * K
    else:
        free_key = at_chunk(free_key, batch, start, head)
    place = (batch * chunks + chunk) * H + head
    border = place * K * V

    if v_tile == 0:
        # In the order of tokens: `backward_gate` has its rows so.
        plain = tl.arange(0, C)
        inside = plain < end - chunk * C
        dA = tl.zeros([C, C], tl.float32)
        for v_block in range(0, V, BV):
            channel = v_block + tl.arange(0, BV)
            left = load_tile(dy, plain, channel, dy_stride_t, inside).to(DOT)
            right = load_tile(v, plain, channel, v_stride_t, inside).to(DOT)
            dA = tl.dot(left, tl.trans(right), dA, input_precision=PRECISION)
        # Masked here, so that it enters the products there as it is read.
        first = place * DIRECTIONS * C * C + plain[:, None] * C + plain[None, :]
        for direction in tl.static_range(DIRECTIONS):
            masked = tl.where(up_to(plain[:, None], plain[None, :], direction == 1), dA, 0.0)
            tl.store(dscores + first + direction * C * C, operand(masked, DOT, PRECISION))
    square = tl.arange(0, C)[:, None] * C + tl.arange(0, C)[None, :]
    A = tl.load(scores + place * C * C + square).to(DOT)
    dy_tile = load_tile(dy, token, value, dy_stride_t, valid)
    acc = tl.dot(tl.trans(A), dy_tile.to(DOT), input_precision=PRECISION)
    for direction in tl.static_range(DIRECTIONS):
        for k_block in range(0, K, BK):
            k = k_block + tl.arange(0, BK)
            key, g = gated_tile(z, free_key, bound, token, k, z_stride_t, valid, FAST)
            _, to_end, _ = running_sums(g, C, BK, direction == 1, GROUP)
            key_end = operand(key * power(to_end, FAST), DOT, PRECISION)
            dS = tl.load(
                (dstates_reverse if direction == 1 else dstates)
                + (border + k[:, None] * V + value[None, :])
            )
            acc = tl.dot(key_end, dS.to(DOT), acc, input_precision=PRECISION)
    acc = before_activation(acc, raw_v + to_chunk, token, value, z_stride_t, valid, VALUE, FAST)
    HEADS = PARTS * H
    dv += ((batch * T + start) * HEADS + head) * V
    # A's columns end with the valid tokens; keys of padding do not vanish altogether.
    tl.store(
        dv + token[:, None] * (HEADS * V) + value[None, :],
        tl.where(valid[:, None], acc, 0.0).to(dv.dtype.element_ty),
        mask=(token < T - chunk * C)[:, None],
    )


def value_gradient(
    z: Tensor,
    v: Tensor,
    dy: Tensor,
    bound: Tensor | None,
    free_key: FreeKey | None,
    scores: Tensor,
    dstates: Tensor,
    dstates_reverse: Tensor | None,
    lengths: Tensor | None,
    settings: Settings,
    into: Into,
) -> Tensor:
    """The scores' gradients [b n h s c c] in each direction; dv `into` its place.

    `scores` [b n h c c] as `chunk_output` leaves them, the states' gradients [b n h k v] at the
    chunks' borders.
    """
    b, t, h, k = z.shape
    width = v.shape[-1]
    chunks = cdiv(t, CHUNK)
    launch = settings.bwd_value
    directions = 1 if dstates_reverse is None else 2
    dscores = scores.new_empty((b, chunks, h, directions, CHUNK, CHUNK))
    dot, precision = dot_type(z.dtype, k, width)
    enqueue(
        hgrn2_bwd_value_kernel,
        b * h * chunks * (width // launch.bv),
        z,
        v,
        dy,
        bound,
        free_key,
        z if lengths is None else lengths,
        scores,
        dstates,
        dstates if dstates_reverse is None else dstates_reverse,
        into.raw_v,
        into.dv,
        dscores,
        *z.stride()[:3],
        *v.stride()[:3],
        *dy.stride()[:3],
        t,
        h,
        chunks,
        K=k,
        V=width,
        BK=launch.bk,
        BV=launch.bv,
        C=CHUNK,
        GROUP=settings.group,
        DIRECTIONS=directions,
        HAS_LENGTHS=lengths is not None,
        DOT=dot,
        FAST=dot == tl.bfloat16,
        PRECISION=precision,
        PARTS=into.parts,
        VALUE=into.value,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    return dscores
