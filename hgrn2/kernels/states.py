"""The walk over chunks that leaves a state (or a state's gradient) at every chunk's border.

    state:      S <- Diag(prod f) S + sum_j (key_j  prod of f after j)^T v_j
    gradient:  dS <- Diag(prod f) dS + sum_i (q_i  prod of f up to i)^T dy_i

Both are one recurrence over chunks, run along the recurrence's direction or against it. Where
batch * heads is too small to fill the device, the sequence is split into segments: a first walk
sums each segment from zero, `hgrn2_fwd_segments_kernel` carries the state over the segments, and
the walk proper starts every segment from its true state.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.first_call import enqueue
from hgrn2.kernels.gate import (
    OPEN,
    at_chunk,
    key_and_log2_gate,
    load_tile,
    log2_free_gate,
    operand,
    power,
    rows_to_tokens,
    running_sums,
)
from hgrn2.kernels.keys import FreeKey
from hgrn2.kernels.settings import CHUNK, Settings, cdiv, dot_type


@triton.jit(do_not_specialize=["T", "chunks", "segments", "segment_chunks"])
def hgrn2_fwd_states_kernel(
    x,
    z,
    y,
    bound,
    free_key,
    lengths,
    first,
    borders,
    last,
    decay,
    x_stride_b,
    x_stride_t,
    x_stride_h,
    z_stride_b,
    z_stride_t,
    z_stride_h,
    y_stride_b,
    y_stride_t,
    y_stride_h,
    T,
    H,
    chunks,
    segments,
    segment_chunks,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    REVERSE: tl.constexpr,
    GRADIENT: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    STORE_BORDERS: tl.constexpr,
    STORE_LAST: tl.constexpr,
    STORE_DECAY: tl.constexpr,
    DOT: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile [BK BV] of one segment's walk.

    x: q (GRADIENT) or unused; y: v, or dy. first, last [b h s k v] fp32, borders [b n h k v],
    decay [b h s k]: log2 of the segment's whole decay.
    """
    program = tl.program_id(0)
    v_tile = program % (V // BV)
    k_tile = program // (V // BV) % (K // BK)
    rest = program // (V // BV) // (K // BK)
    # int64: a stride of heads may be that of a whole sequence.
    head = (rest % H).to(tl.int64)
    segment = rest // H % segments
    batch = (rest // H // segments).to(tl.int64)

    k = k_tile * BK + tl.arange(0, BK)
    v = v_tile * BV + tl.arange(0, BV)
    token = rows_to_tokens(C, GROUP)
    x += batch * x_stride_b + head * x_stride_h
    z += batch * z_stride_b + head * z_stride_h
    y += batch * y_stride_b + head * y_stride_h
    if free_key is None:
        b = tl.load(bound + head * K + k)[None, :]
    else:
        free_key, key_stride_t = at_chunk(free_key, batch, 0, head)
    end = tl.minimum(tl.load(lengths + batch), T).to(tl.int32) if HAS_LENGTHS else T

    state_tile = ((batch * H + head) * segments + segment) * K * V
    state_offsets = state_tile + k[:, None] * V + v[None, :]
    S = tl.zeros([BK, BV], tl.float32)
    if HAS_FIRST:
        S += tl.load(first + state_offsets)
    total = tl.zeros([BK], tl.float32)

    begin = segment * segment_chunks
    count = tl.minimum(segment_chunks, chunks - begin)
    for step in range(count):
        chunk = begin + (step if REVERSE == GRADIENT else count - 1 - step)
        start = chunk.to(tl.int64) * C
        valid = token < end - chunk * C
        if STORE_BORDERS:
            border = ((batch * chunks + chunk) * H + head) * K * V
            tl.store(borders + border + k[:, None] * V + v[None, :], S.to(borders.dtype.element_ty))
        z_tile = load_tile(z + start * z_stride_t, token, k, z_stride_t, valid, OPEN)
        if free_key is None:
            key, g = key_and_log2_gate(z_tile.to(tl.float32), b, FAST)
        else:
            g = log2_free_gate(z_tile.to(tl.float32), FAST)
        # In a chunk: keys are carried to the far border, queries back to the near one.
        up_to, beyond, whole = running_sums(g, C, BK, REVERSE, GROUP)
        if GRADIENT:
            x_tile = load_tile(x + start * x_stride_t, token, k, x_stride_t, valid)
            carried = x_tile.to(tl.float32) * power(up_to, FAST)
        else:
            if free_key is not None:
                from_start = free_key + start * key_stride_t
                key = load_tile(from_start, token, k, key_stride_t, valid).to(tl.float32)
            carried = key * power(beyond, FAST)
        y_tile = load_tile(y + start * y_stride_t, token, v, y_stride_t, valid)
        S = tl.dot(
            tl.trans(operand(carried, DOT, PRECISION)),
            y_tile.to(DOT),
            S * power(whole, FAST)[:, None],
            input_precision=PRECISION,
        )
        total += whole
    if STORE_LAST:
        tl.store(last + state_offsets, S)
    if STORE_DECAY and v_tile == 0:
        tl.store(decay + ((batch * H + head) * segments + segment) * K + k, total)


@triton.jit(do_not_specialize=["segments"])
def hgrn2_fwd_segments_kernel(
    first,
    sums,
    decay,
    last,
    segments,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    ASCENDING: tl.constexpr,
    HAS_FIRST: tl.constexpr,
):
    """Replaces every segment's own sum [b h s k v] by the state that it starts from."""
    tile = tl.program_id(0) % (K * V // BLOCK)
    row = (tl.program_id(0) // (K * V // BLOCK)).to(tl.int64)
    element = tile * BLOCK + tl.arange(0, BLOCK)
    S = tl.zeros([BLOCK], tl.float32)
    if HAS_FIRST:
        S += tl.load(first + row * K * V + element)
    for step in range(segments):
        segment = row * segments + (step if ASCENDING else segments - 1 - step)
        own = tl.load(sums + segment * K * V + element)
        log2_decay = tl.load(decay + segment * K + element // V)
        tl.store(sums + segment * K * V + element, S)
        S = S * tl.exp2(log2_decay) + own
    tl.store(last + row * K * V + element, S)


def chunk_states(
    z: Tensor,
    y: Tensor,
    bound: Tensor | None,
    free_key: FreeKey | None,
    borders: Tensor,
    *,
    q: Tensor | None,
    first: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    keep_last: bool,
    settings: Settings,
) -> Tensor:
    """Fills `borders` [b n h k v] with the state at every chunk's border; returns the last one,
    fp32 [b h k v] (empty without `keep_last`).

    z [b t h k], y [b t h v], bound [h k] fp32 or free_key [b t h k], as `keys` has them, first fp32
    [b h k v] or None. Without q, y is v and the states are the recurrence's own, each before its
    chunk. With q [b t h k], y is dy and they are the states' gradients, each after its chunk;
    `first` is then the last state's gradient. `reverse`: the recurrence runs from the last token to
    the first.
    """
    b, t, h, k = z.shape
    v = y.shape[-1]
    chunks = cdiv(t, CHUNK)
    launch = settings.states
    tiles = (k // launch.bk) * (v // launch.bv)
    segments, segment_chunks = settings.split(b * h * tiles, chunks)
    shape = (b, h, k, v) if keep_last or segments > 1 else (0,)
    last = z.new_empty(shape, dtype=torch.float32)
    x = z if q is None else q
    dot, precision = dot_type(z.dtype, k, v)

    def walk(start: Tensor | None, end: Tensor, decay: Tensor, *, summary: bool) -> None:
        enqueue(
            hgrn2_fwd_states_kernel,
            b * h * segments * tiles,
            x,
            z,
            y,
            bound,
            free_key,
            z if lengths is None else lengths,
            end if start is None else start,
            borders,
            end,
            decay,
            *x.stride()[:3],
            *z.stride()[:3],
            *y.stride()[:3],
            t,
            h,
            chunks,
            segments,
            segment_chunks,
            K=k,
            V=v,
            BK=launch.bk,
            BV=launch.bv,
            C=CHUNK,
            GROUP=settings.group,
            REVERSE=reverse,
            GRADIENT=q is not None,
            HAS_FIRST=start is not None,
            HAS_LENGTHS=lengths is not None,
            STORE_BORDERS=not summary,
            STORE_LAST=summary or (segments == 1 and keep_last),
            STORE_DECAY=summary,
            DOT=dot,
            FAST=dot == tl.bfloat16,
            PRECISION=precision,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )

    if segments == 1:
        walk(first, last, last, summary=False)
        return last
    starts = z.new_empty((b, h, segments, k, v), dtype=torch.float32)
    decay = z.new_empty((b, h, segments, k), dtype=torch.float32)
    walk(None, starts, decay, summary=True)
    block = min(1024, k * v)
    enqueue(
        hgrn2_fwd_segments_kernel,
        b * h * (k * v // block),
        last if first is None else first,
        starts,
        decay,
        last,
        segments,
        K=k,
        V=v,
        BLOCK=block,
        ASCENDING=reverse == (q is not None),
        HAS_FIRST=first is not None,
        num_warps=4,
    )
    walk(starts, last, decay, summary=False)
    return last
