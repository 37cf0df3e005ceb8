"""The gated recurrence in chunks: matmuls inside a chunk, a loop over chunks only.

Axes: b batch, t time, h heads, k key width, v value width; inside a tile: r rows (b and h), n
chunks, c tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hgrn2.dyadic import Level, scores, scores_backward
from hgrn2.gate import arithmetic_dtype, close_padding, mask_padding, zero_padding
from hgrn2.tiling import Gates, Tiling

CHUNK = 64


def gated_chunked(
    q: Tensor,
    key: Tensor,
    v: Tensor,
    f: Tensor,
    *,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """`gated_recurrent` in chunks of `chunk` tokens (a power of two): the form for use.

    Shapes: q, key, f [b t h k], v [b t h v], state [b h k v] (zeros if None), lengths [b].
    Returns y [b t h v] in v's dtype, zero at padding, and the state after the last valid token,
    in fp32 (fp64 for fp64 inputs). Raises ValueError for a chunk that is not a power of two.
    """
    if lengths is not None:
        f, key = mask_padding(f, key, lengths)
        q, v = zero_padding(q, lengths), zero_padding(v, lengths)
    return _run(q, key, v, f, state, chunk, tied=False)


def tied_chunked(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    *,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """`gated_chunked` with HGRN's gate formed tile by tile: f and key are never stored.

    z [b t h k] and bound [h k] as in `gate`; the rest as in `gated_chunked`.
    """
    if lengths is not None:
        z = close_padding(z, lengths)
        q, v = zero_padding(q, lengths), zero_padding(v, lengths)
    return _run(q, z, v, bound, state, chunk, tied=True)


def _run(
    q: Tensor,
    key_or_z: Tensor,
    v: Tensor,
    f_or_bound: Tensor,
    state: Tensor | None,
    chunk: int,
    *,
    tied: bool,
) -> tuple[Tensor, Tensor]:
    if chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"chunk={chunk} should be a power of two, such as {CHUNK}")
    inputs = (q, key_or_z, v, f_or_bound, state)
    tiling = Tiling.of(q, v, chunk, arithmetic_dtype(*inputs), tied)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    with torch.autocast(q.device.type, enabled=False):
        return _Chunked.apply(*inputs, tiling, keep)


class _Chunked(torch.autograd.Function):
    """y [b t h v] and the last state [b h k v], tile by tile; the state is carried along t.

    For the backward pass it keeps its inputs and the state before every chunk; everything inside
    a chunk is formed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        key_or_z: Tensor,
        v: Tensor,
        f_or_bound: Tensor,
        state: Tensor | None,
        tiling: Tiling,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        b, _, h, k = q.shape
        y = torch.empty_like(v, memory_format=torch.contiguous_format)
        S = v.new_zeros(b * h, k, v.shape[-1], dtype=tiling.dtype)
        if state is not None:
            S.copy_(state.flatten(0, 1))
        # one chunk from a state of zeros never reads a state
        reads_state = state is not None or tiling.n > 1
        saved = None
        if keep and reads_state:
            saved = S.new_empty(b * h, tiling.n, k, v.shape[-1])
        for places in tiling.places():
            for place in places:
                f, key, _ = tiling.load_gates(key_or_z, f_or_bound, place)
                tile = f.shape[:2]
                v_tile = tiling.load(v, place).flatten(0, 1)
                A, q_start, key_end, decay = scores(
                    tiling.load(q, place).flatten(0, 1), key.flatten(0, 1), f.flatten(0, 1)
                )
                y_tile = A @ v_tile
                added = key_end.mT @ v_tile
                if reads_state:
                    starts = _walk(
                        decay.unflatten(0, tile), added.unflatten(0, tile), S[place.rows]
                    )
                    y_tile.baddbmm_(q_start, starts.flatten(0, 1))
                    if saved is not None:
                        saved[place.rows, place.chunks] = starts
                else:
                    S[place.rows] = added
                tiling.store(y_tile.unflatten(0, tile), y, place)
        ctx.tiling = tiling
        ctx.save_for_backward(q, key_or_z, v, f_or_bound, saved)
        ctx.set_materialize_grads(False)
        return y, S.unflatten(0, (b, h))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor | None, dlast: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, key_or_z, v, f_or_bound, saved = ctx.saved_tensors
        tiling: Tiling = ctx.tiling
        b, _, h, k = q.shape
        dy = torch.zeros_like(v) if dy is None else dy
        dS = v.new_zeros(b * h, k, v.shape[-1], dtype=tiling.dtype)
        if dlast is not None:
            dS.copy_(dlast.flatten(0, 1))
        has_state_gradient = saved is not None or dlast is not None
        dq, dkey_or_dz, dv, df_or_dbound = (
            torch.empty_like(x, memory_format=torch.contiguous_format)
            for x in (q, key_or_z, v, f_or_bound)
        )
        if tiling.tied:
            df_or_dbound.zero_()
        for places in tiling.places():
            for place in reversed(places):
                gates = tiling.load_gates(key_or_z, f_or_bound, place)
                dq_tile, dkey, dv_tile, df = _tile_backward(
                    tiling.load(q, place),
                    gates,
                    tiling.load(v, place),
                    None if saved is None else saved[place.rows, place.chunks],
                    tiling.load(dy, place),
                    dS[place.rows] if has_state_gradient else None,
                )
                tiling.store(dq_tile, dq, place)
                tiling.store(dv_tile, dv, place)
                tiling.store_gates(gates, dkey, df, f_or_bound, dkey_or_dz, df_or_dbound, place)
        dstate = dS.unflatten(0, (b, h)) if ctx.needs_input_grad[4] else None
        return dq, dkey_or_dz, dv, df_or_dbound, dstate, None, None


def _walk(decay: Tensor, added: Tensor, S: Tensor) -> Tensor:
    """The state before every chunk of a tile [r n k v]; S [r k v] becomes the one after the last.

    decay [r n k] is the product of a chunk's gates, added [r n k v] the sum of its key (x) v, each
    carried on to the chunk's end.
    """
    starts = torch.empty_like(added, memory_format=torch.contiguous_format)
    for i in range(added.shape[1]):
        starts[:, i] = S
        torch.addcmul(added[:, i], decay[:, i, :, None], S, out=S)
    return starts


def _tile_backward(
    q: Tensor,
    gates: Gates,
    v: Tensor,
    starts: Tensor | None,
    dy: Tensor,
    dS: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A tile's gradients of q, key, v and f [r n c ..] from dy [r n c v] and dS [r k v].

    dS is the gradient of the state after the tile, and becomes that of the state before it.
    `starts` None: the tile reads no state. dS None: nothing after the tile reads its state.
    """
    tile = q.shape[:2]
    q, key, f, v, dy = (x.flatten(0, 1) for x in (q, gates.key, gates.f, v, dy))
    levels: list[Level] = []
    A, q_start, key_end, decay = scores(q, key, f, keep=levels)
    # The copies of transposes pay: batched matmul is slow where its second operand is transposed.
    dA = dy @ v.mT.contiguous()
    dv = A.mT @ dy
    dq, dkey, ddecay = (torch.zeros_like(x) for x in (q_start, key_end, decay))
    if dS is not None:
        dstarts = torch.zeros_like(dS) if starts is None else q_start.mT @ dy
        # the same walk as forward, from the end
        decay, dstarts = decay.unflatten(0, tile), dstarts.unflatten(0, tile)
        dends = _walk(decay.flip(1), dstarts.flip(1), dS).flip(1).flatten(0, 1)
        dv.baddbmm_(key_end, dends)
        dkey = v @ dends.mT.contiguous()
        if starts is not None:
            starts = starts.flatten(0, 1)
            dq = dy @ starts.mT.contiguous()
            ddecay = (dends * starts).sum(-1)
    dq, dkey, df = scores_backward(q, key, f, levels, dA, dq, dkey, ddecay)
    dq, dkey, dv, df = (x.unflatten(0, tile) for x in (dq, dkey, dv, df))
    return dq, dkey, dv, df
