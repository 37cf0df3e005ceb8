"""dq, dz and dbound or dkey of one chunk, from the states and the states' gradients at its borders.

The key, log f and their gradients live in registers only (README, "Gradients in closed form").
The log gate of token t moves the decay of every pair that it lies between, so

    dlnf_t = carry + sum over s >= t of (q_s dq_s - key_s dkey_s)

where pairs inside the sum cancel. They cancel exactly, since q dq and key dkey are formed of the
same rounded operands: independent roundings would add up to several times bf16's own error.

Operands are carried to the middle of what each channel decays by, 2 a bits: q 2^(G + a) and
key 2^-(G + a). From the chunk's start, where a channel may decay by 112 bits, what is finite in the
end would overflow on the way, or lose digits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.first_call import enqueue
from hgrn2.kernels.gate import (
    OPEN,
    as_products,
    at_chunk,
    free_gate_gradient,
    gate_gradient,
    key_and_log2_gate,
    limited,
    load_tile,
    log2_free_gate,
    ones_up_to,
    operand,
    power,
    reciprocal,
    sums,
)
from hgrn2.kernels.into import Into, before_activation
from hgrn2.kernels.keys import FreeKey
from hgrn2.kernels.settings import CHUNK, Settings, cdiv, dot_type


@triton.jit
def state_products(
    v,
    dy,
    S,
    dS,
    v_stride_t,
    dy_stride_t,
    token,
    valid,
    V: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dy S^T and v dS^T [c k], and S dS^T [k k] with its diagonal alone.

    Pointers are at the chunk's first token and at the tile of channels.
    """
    channel = tl.arange(0, BK)
    to_q = tl.zeros([C, BK], tl.float32)
    to_key = tl.zeros([C, BK], tl.float32)
    both = tl.zeros([BK, BK], tl.float32)
    for v_block in range(0, V, BV):
        value = v_block + tl.arange(0, BV)
        dy_tile = load_tile(dy, token, value, dy_stride_t, valid).to(DOT)
        v_tile = load_tile(v, token, value, v_stride_t, valid).to(DOT)
        S_tile = tl.load(S + channel[:, None] * V + value[None, :]).to(DOT)
        dS_tile = tl.load(dS + channel[:, None] * V + value[None, :]).to(DOT)
        both = tl.dot(S_tile, tl.trans(dS_tile), both, input_precision=PRECISION)
        to_q = tl.dot(dy_tile, tl.trans(S_tile), to_q, input_precision=PRECISION)
        to_key = tl.dot(v_tile, tl.trans(dS_tile), to_key, input_precision=PRECISION)
    return to_q, to_key, tl.where(channel[:, None] == channel[None, :], both, 0.0)


@triton.jit(do_not_specialize=["T", "chunks"])
def hgrn2_bwd_gate_kernel(
    q,
    z,
    v,
    dy,
    bound,
    free_key,
    lengths,
    states,
    dstates,
    states_reverse,
    dstates_reverse,
    dscores,
    deep,
    constants,
    raw_q,
    dq,
    dz,
    dbound,
    dfree_key,
    q_stride_b,
    q_stride_t,
    q_stride_h,
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
    BIDIRECTIONAL: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    DOT: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    QUERY: tl.constexpr,
):
    """dq, dz [C BK], and the chunk's part of dbound [BK], or dkey [C BK] where the key is free;
    nothing of chunks that `deep` flags."""
    TIED: tl.constexpr = free_key is None
    program = tl.program_id(0)
    k_tile = program % (K // BK)
    # int64: a stride of heads may be that of a whole sequence.
    head = (program // (K // BK) % H).to(tl.int64)
    chunk = program // (K // BK) // H % chunks
    batch = (program // (K // BK) // H // chunks).to(tl.int64)
    place = (batch * chunks + chunk) * H + head
    is_deep = tl.load(deep + place)

    token = tl.arange(0, C)
    start = chunk.to(tl.int64) * C
    end = tl.minimum(tl.load(lengths + batch), T).to(tl.int32) if HAS_LENGTHS else T
    valid = token < end - chunk * C
    k = k_tile * BK + tl.arange(0, BK)
    q += batch * q_stride_b + start * q_stride_t + head * q_stride_h
    to_chunk = batch * z_stride_b + start * z_stride_t + head * z_stride_h
    z += to_chunk
    raw_q += to_chunk
    v += batch * v_stride_b + start * v_stride_t + head * v_stride_h
    dy += batch * dy_stride_b + start * dy_stride_t + head * dy_stride_h
    border = place * K * V + k_tile * BK * V

    # Loaded before the flag is looked at: one wait serves all of them.
    z_loaded = load_tile(z, token, k, z_stride_t, valid, OPEN)
    q_loaded = load_tile(q, token, k, q_stride_t, valid)
    if not TIED:
        key_chunk, key_stride_t = at_chunk(free_key, batch, start, head)
        key_loaded = load_tile(key_chunk, token, k, key_stride_t, valid)
    if is_deep != 0:
        return

    if TIED:
        bound += head * K
    row, column = token[:, None], token[None, :]
    HEADS = PARTS * H
    offsets = ((batch * T + start) * HEADS + head) * K + row * (HEADS * K) + k[None, :]
    stored = (token < T - chunk * C)[:, None]

    LAST: tl.constexpr = 1 if BIDIRECTIONAL else 0
    dq_tile = tl.zeros([C, BK], tl.float32)
    dkey = tl.zeros([C, BK], tl.float32)
    dlnf = tl.zeros([C, BK], tl.float32)
    for direction in tl.static_range(2 if BIDIRECTIONAL else 1):
        to_q, to_key, both = state_products(
            v,
            dy,
            (states_reverse if direction == 1 else states) + border,
            (dstates_reverse if direction == 1 else dstates) + border,
            v_stride_t,
            dy_stride_t,
            token,
            valid,
            V,
            C,
            BK,
            BV,
            DOT,
            PRECISION,
        )
        # A product with an infinity would be a NaN for the token's other channels too.
        z_tile = as_products(limited(z_loaded, TIED, FAST), constants, FAST)
        if TIED:
            key, g = key_and_log2_gate(z_tile, tl.load(bound + k)[None, :], FAST)
        else:
            key, g = key_loaded.to(tl.float32), log2_free_gate(z_tile, FAST)
        up = ones_up_to(constants, C, direction == 1, FAST)
        half = 0.5 * tl.sum(g, 0)[None, :]
        from_middle = sums(up, g, FAST) - half
        key_middle = operand(key * power(-from_middle, FAST), DOT, PRECISION)
        of_query = power(from_middle, FAST)
        # The states' part, from the chunk's borders to its middle.
        halfway = power(half, FAST)
        to_q *= halfway
        to_key *= halfway
        # The decay of the whole chunk reaches the outputs behind it through the state alone.
        both *= halfway * halfway
        through = key_middle.to(tl.float32) * to_key
        # One sum over rows instead of two, where there are as many.
        carry = tl.sum(through + both, 0) if C == BK else tl.sum(through, 0) + tl.sum(both, 0)
        q_tile = as_products(q_loaded, constants, FAST)
        q_middle = operand(q_tile * of_query, DOT, PRECISION)

        dA_place = place * (LAST + 1) + direction
        dA = tl.load(dscores + dA_place * C * C + row * C + column).to(DOT)
        to_q = tl.dot(dA, key_middle, to_q, input_precision=PRECISION)
        moved = q_middle.to(tl.float32) * to_q
        dq_tile += to_q * of_query
        if direction == LAST:
            dq_tile = before_activation(dq_tile, raw_q, token, k, z_stride_t, valid, QUERY, FAST)
            tl.store(dq + offsets, dq_tile.to(dq.dtype.element_ty), mask=stored)
        to_key = tl.dot(tl.trans(dA), q_middle, to_key, input_precision=PRECISION)
        moved -= key_middle.to(tl.float32) * to_key
        # The reciprocal, not the key's factor: what is used twice stays in registers until then.
        dkey += to_key * reciprocal(of_query, FAST)
        dlnf += carry[None, :] + sums(tl.trans(up), moved, FAST)

    # Loaded anew: held until here, it would spill.
    z_tile = load_tile(z, token, k, z_stride_t, valid, OPEN)
    z_tile = as_products(limited(z_tile, TIED, FAST), constants, FAST)
    if TIED:
        b = tl.load(bound + k)[None, :]
        dz_tile, to_bound = gate_gradient(z_tile, b, dlnf, dkey, FAST)
    else:
        dz_tile = free_gate_gradient(z_tile, dlnf, FAST)
    dz_tile = tl.where(valid[:, None], dz_tile, 0.0)
    tl.store(dz + offsets, dz_tile.to(dz.dtype.element_ty), mask=stored)
    if TIED:
        tl.store(dbound + place * K + k, tl.sum(to_bound, 0))
    else:
        dkey = tl.where(valid[:, None], dkey, 0.0)
        tl.store(dfree_key + offsets, dkey.to(dfree_key.dtype.element_ty), mask=stored)


@triton.jit
def hgrn2_bwd_constants_kernel(constants, C: tl.constexpr):
    """What `gate.constant` reads, bf16 [3 c c]."""
    row, column = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    place = constants + row * C + column
    tl.store(place, (row >= column).to(tl.float32))
    tl.store(place + C * C, (row == column).to(tl.float32))
    tl.store(place + 2 * C * C, (row <= column).to(tl.float32))


def constants_of(q: Tensor, v: Tensor) -> Tensor:
    """What `gate.constant` reads, bf16 [3 c c]; not filled where nothing reads it.

    Made anew each time: a kept one would belong to the stream, graph or pool that made it.
    """
    made = q.new_empty((3, CHUNK, CHUNK), dtype=torch.bfloat16)
    if dot_type(q.dtype, q.shape[-1], v.shape[-1])[0] == tl.bfloat16:
        enqueue(hgrn2_bwd_constants_kernel, 1, made, C=CHUNK, num_warps=4)
    return made


def gate_gradients(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    dy: Tensor,
    bound: Tensor | None,
    free_key: FreeKey | None,
    forward: tuple[Tensor, Tensor],
    backward: tuple[Tensor, Tensor] | None,
    dscores: Tensor,
    lengths: Tensor | None,
    deep: Tensor,
    constants: Tensor,
    settings: Settings,
    into: Into,
) -> Tensor | None:
    """Every chunk's part of dbound, fp32 [b n h k], None where the key is free; dq, dz and a free
    key's gradient `into` their places.

    `forward` holds the states and the states' gradients at the chunks' borders, [b n h k v];
    `backward` the same of the reverse direction, if there is one; `dscores` [b n h s c c] the
    scores' gradients in each of the s directions.
    """
    b, t, h, k = q.shape
    width = v.shape[-1]
    chunks = cdiv(t, CHUNK)
    launch = settings.bwd_gate
    dbound = None if bound is None else bound.new_empty((b, chunks, h, k), dtype=torch.float32)
    dot, precision = dot_type(z.dtype, k, width)
    enqueue(
        hgrn2_bwd_gate_kernel,
        b * h * chunks * (k // launch.bk),
        q,
        z,
        v,
        dy,
        bound,
        free_key,
        z if lengths is None else lengths,
        *forward,
        *(forward if backward is None else backward),
        dscores,
        deep,
        constants,
        into.raw_q,
        into.dq,
        into.dz,
        dbound,
        into.dkey,
        *q.stride()[:3],
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
        BIDIRECTIONAL=backward is not None,
        HAS_LENGTHS=lengths is not None,
        DOT=dot,
        FAST=dot == tl.bfloat16,
        PRECISION=precision,
        PARTS=into.parts,
        QUERY=into.query,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    return dbound
