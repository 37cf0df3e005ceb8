"""The gradients of the chunks that the forward flagged, as `deep` forms their y."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.backward_gate import state_products
from hgrn2.kernels.deep import PER_PROGRAM, chunks_each, flagged
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
    power,
    sums,
)
from hgrn2.kernels.into import Into, before_activation
from hgrn2.kernels.keys import FreeKey
from hgrn2.kernels.settings import CHUNK, Settings, cdiv, dot_type
from hgrn2.kernels.spans import decays, span_gradients, together


@triton.jit(do_not_specialize=["T", "chunks", "places", "per_program"])
def hgrn2_bwd_deep_kernel(
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
    places,
    per_program,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
    BIDIRECTIONAL: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    DOT: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    QUERY: tl.constexpr,
):
    """dq, dz and the part of dbound, or dkey, of one tile of channels of the program's deep
    chunks."""
    TIED: tl.constexpr = free_key is None
    k_tile = tl.program_id(0) % (K // BK)
    first = (tl.program_id(0) // (K // BK)).to(tl.int64) * per_program
    last = tl.minimum(first + per_program, places)
    if not flagged(deep, first, last, PER_PROGRAM):
        return
    LAST: tl.constexpr = 1 if BIDIRECTIONAL else 0
    token = tl.arange(0, C)
    row, column = token[:, None], token[None, :]
    k = k_tile * BK + tl.arange(0, BK)
    for place in range(first, last):
        # Counted in the forward: a least number of this tile's sums is costly, here, to form.
        count = tl.load(deep + place).to(tl.int32)
        if count > 0:
            head = place % H
            chunk = place // H % chunks
            batch = place // H // chunks
            start = chunk * C
            end = tl.minimum(tl.load(lengths + batch), T) if HAS_LENGTHS else T
            valid = start + token < end
            q_chunk = q + batch * q_stride_b + start * q_stride_t + head * q_stride_h
            to_chunk = batch * z_stride_b + start * z_stride_t + head * z_stride_h
            z_chunk = z + to_chunk
            v_chunk = v + batch * v_stride_b + start * v_stride_t + head * v_stride_h
            dy_chunk = dy + batch * dy_stride_b + start * dy_stride_t + head * dy_stride_h
            border = place * K * V + k_tile * BK * V
            # One wait for both, and none behind the products. z is `limited` before it meets the
            # identity: a product with an infinity would be a NaN for the token's other channels.
            z_loaded = load_tile(z_chunk, token, k, z_stride_t, valid, OPEN)
            q_loaded = load_tile(q_chunk, token, k, q_stride_t, valid)
            if TIED:
                b = tl.load(bound + head * K + k)[None, :]
            else:
                key_chunk, key_stride_t = at_chunk(free_key, batch, start, head)
                key_loaded = load_tile(key_chunk, token, k, key_stride_t, valid)
            offsets = ((batch * T + start + row) * (PARTS * H) + head) * K + k[None, :]
            stored = (start + token < T)[:, None]
            for direction in tl.static_range(2 if BIDIRECTIONAL else 1):
                to_q, to_key, both = state_products(
                    v_chunk,
                    dy_chunk,
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
                q_tile = as_products(q_loaded, constants, FAST)
                z_tile = as_products(limited(z_loaded, TIED, FAST), constants, FAST)
                if TIED:
                    key, g = key_and_log2_gate(z_tile, b, FAST)
                else:
                    key, g = key_loaded.to(tl.float32), log2_free_gate(z_tile, FAST)
                up = ones_up_to(constants, C, direction == 1, FAST)
                part, whole = decays(up, g, FAST)
                # Of the last token in this direction: differences are of what was summed alike.
                ends = row == (0 if direction == 1 else C - 1)
                final = tl.sum(tl.where(ends, part, 0.0), 0)[None, :]
                after = final - part
                if not FAST:
                    final_whole = tl.sum(tl.where(ends, whole, 0.0), 0)[None, :]
                    after += final_whole - whole
                    final += final_whole
                to_q *= power(together(part, whole, FAST), FAST)
                to_key *= power(after, FAST)
                from_key = key * to_key
                if C == BK:
                    # One sum over rows instead of two.
                    carry = tl.sum(power(final, FAST) * both + from_key, 0)
                else:
                    carry = tl.sum(power(final, FAST) * both, 0) + tl.sum(from_key, 0)
                moved = q_tile * to_q - from_key
                dA_place = dscores + (place * (2 if BIDIRECTIONAL else 1) + direction) * C * C
                diagonal = tl.load(dA_place + token * (C + 1)).to(tl.float32)[:, None]
                dA = tl.load(dA_place + row * C + column, mask=row != column, other=0.0).to(DOT)
                to_q += diagonal * key
                to_key += diagonal * q_tile
                to_q, to_key, moved = span_gradients(
                    dA,
                    q_tile,
                    key,
                    part,
                    whole,
                    count,
                    to_q,
                    to_key,
                    moved,
                    DOT,
                    FAST,
                    PRECISION,
                )
                if direction == 0:
                    dq_tile = to_q
                    dkey = to_key
                else:
                    dq_tile += to_q
                    dkey += to_key
                if direction == LAST:
                    dq_tile = before_activation(
                        dq_tile, raw_q + to_chunk, token, k, z_stride_t, valid, QUERY, FAST
                    )
                    tl.store(dq + offsets, dq_tile.to(dq.dtype.element_ty), mask=stored)
                from_here = carry[None, :] + sums(tl.trans(up), moved, FAST)
                if direction == 0:
                    dlnf = from_here
                else:
                    dlnf += from_here
            # Loaded anew: held until here, it would spill.
            z_tile = load_tile(z_chunk, token, k, z_stride_t, valid, OPEN)
            z_tile = as_products(limited(z_tile, TIED, FAST), constants, FAST)
            if TIED:
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


def deep_gradients(
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
    dbound: Tensor | None,
    settings: Settings,
    into: Into,
) -> None:
    """What `gate_gradients` leaves out: dq, dz and dkey `into` their places and dbound [b n h k] of
    deep chunks."""
    b, t, h, k = q.shape
    width = v.shape[-1]
    chunks = cdiv(t, CHUNK)
    places = b * h * chunks
    per = chunks_each(places)
    launch = settings.bwd_deep
    dot, precision = dot_type(z.dtype, k, width)
    enqueue(
        hgrn2_bwd_deep_kernel,
        cdiv(places, per) * (k // launch.bk),
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
        *(stride for x in (q, z, v, dy) for stride in x.stride()[:3]),
        t,
        h,
        chunks,
        places,
        per,
        K=k,
        V=width,
        BK=launch.bk,
        BV=launch.bv,
        C=CHUNK,
        PER_PROGRAM=PER_PROGRAM,
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
