"""The gated recurrence in chunks: matmuls inside a chunk, a loop over chunks only.

The scores of a chunk are split dyadically in PRODUCT SPACE: a pair (i, j) is handled at the level
where i and j lie in sibling halves of one block, anchored at the last row of the left half,

    A_ij = (q_i  prod of f over (anchor, i]) . (key_j  prod of f over (j, anchor]),

so every factor is a product of gates in [0, 1]: nothing overflows, nothing is divided, no log is
taken, and a gate of any size, zero included, is exact. The README derives it.

Axes: n chunks (of all rows and heads), c tokens of a chunk, k key width, v value width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from hgrn2.gate import arithmetic_dtype, mask_padding, zero_padding


def gated_chunked(
    q: Tensor,
    key: Tensor,
    v: Tensor,
    f: Tensor,
    *,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """`gated_recurrent` in chunks of `chunk` tokens (a power of two): the form for use.

    Shapes: q, key, f [b t h k], v [b t h v], state [b h k v] (zeros if None), lengths [b].
    Returns y [b t h v] in v's dtype, zero at padding, and the state after the last valid token,
    in fp32 (fp64 for fp64 inputs). Raises ValueError for a chunk that is not a power of two.
    """
    if chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"chunk={chunk} should be a power of two, such as 64")
    out_dtype = v.dtype
    dtype = arithmetic_dtype(q, key, v, f, state)
    q, key, v, f = (x.to(dtype) for x in (q, key, v, f))
    if lengths is not None:
        f, key = mask_padding(f, key, lengths)
        q, v = zero_padding(q, lengths), zero_padding(v, lengths)
    b, t, h, _ = q.shape
    c = min(chunk, 1 << (t - 1).bit_length())
    # identity gates after the end leave the final state as it is
    fills = (0.0, 0.0, 0.0, 1.0)
    blocks = [_to_chunks(x, c, fill) for x, fill in zip((q, key, v, f), fills, strict=True)]
    y, last = _GatedChunks.apply(*blocks, None if state is None else state.to(dtype))
    return y.reshape(b, h, -1, v.shape[-1])[:, :, :t].transpose(1, 2).to(out_dtype), last


def _to_chunks(x: Tensor, c: int, fill: float) -> Tensor:
    """[b t h k] -> [b h n c k], t padded to a multiple of c."""
    b, t, h, k = x.shape
    if t % c:
        x = pad(x, (0, 0, 0, 0, 0, c - t % c), value=fill)
    return x.transpose(1, 2).reshape(b, h, -1, c, k)


class _GatedChunks(torch.autograd.Function):
    """q, key, f [b h n c k], v [b h n c v], state [b h k v] or None -> y, the last state."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, key: Tensor, v: Tensor, f: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        A, q_start, key_end, decay = _scores(q, key, f)
        y = A @ v
        starts, last = _chunk_states(decay, key_end.mT @ v, state)
        y += q_start @ starts
        ctx.save_for_backward(q, key, v, f, A, starts)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor, dlast: Tensor
    ) -> tuple[Tensor | None, ...]:
        q, key, v, f, A, starts = ctx.saved_tensors
        levels, q_start, key_end, decay = _levels(q, key, f)
        dends, ddecay, dstate = _chunk_states_backward(decay, starts, q_start.mT @ dy, dlast)
        dv = A.mT @ dy + key_end @ dends
        dq, dkey, df = _scores_backward(
            q, key, f, levels, dy @ v.mT, dy @ starts.mT, v @ dends.mT, ddecay
        )
        return dq, dkey, dv, df, dstate if ctx.needs_input_grad[4] else None


def _chunk_states(decay: Tensor, added: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state before every chunk [b h n k v], and the one after the last.

    decay [b h n k] is the product of a chunk's gates, added [b h n k v] its sum of key (x) v, each
    carried to the chunk's end.
    """
    S = torch.zeros_like(added[:, :, 0]) if state is None else state
    starts = torch.empty_like(added)
    for n in range(added.shape[2]):
        starts[:, :, n] = S
        S = torch.addcmul(added[:, :, n], decay[:, :, n, :, None], S)
    return starts, S


def _chunk_states_backward(
    decay: Tensor, starts: Tensor, dstarts: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients at every chunk's end [b h n k v], of decay [b h n k], and of the first state."""
    dS = dlast
    dends = torch.empty_like(starts)
    for n in reversed(range(starts.shape[2])):
        dends[:, :, n] = dS
        dS = torch.addcmul(dstarts[:, :, n], decay[:, :, n, :, None], dS)
    return dends, (dends * starts).sum(-1), dS


class _Level(NamedTuple):
    """What one level of the splitting multiplies: m blocks of two halves of s tokens each."""

    q_right: Tensor
    """[.. m s k]: q_i carried back to the anchor"""
    key_left: Tensor
    """[.. m s k]: key_j carried up to the anchor"""
    decay: Tensor
    """[.. m 2 k]: the product of each half's gates"""


def _halves(x: Tensor, s: int) -> Tensor:
    """[.. c k] seen as [.. m 2 s k]."""
    return x.unflatten(-2, (-1, 2, s))


def _levels(q: Tensor, key: Tensor, f: Tensor) -> tuple[list[_Level], Tensor, Tensor, Tensor]:
    """Every level, s = 1, 2, .. c/2; then q carried back to the chunk's start, key carried up to
    its end, and the whole chunk's decay [.. k]."""
    # In blocks of one token, q carries the block's own gate and key none.
    q_start, key_end, decay = q * f, key.clone(), f
    levels = []
    c = q.shape[-2]
    s = 1
    while s < c:
        q_right, key_left = _halves(q_start, s)[..., 1, :, :], _halves(key_end, s)[..., 0, :, :]
        decay = decay.unflatten(-2, (-1, 2))
        levels.append(_Level(q_right.clone(), key_left.clone(), decay))
        q_right *= decay[..., 0, None, :]
        key_left *= decay[..., 1, None, :]
        decay = decay.prod(-2)
        s *= 2
    return levels, q_start, key_end, decay.squeeze(-2)


def _block(A: Tensor, s: int) -> Tensor:
    """A's blocks that belong to level s: [.. c c] seen as [.. m s s], right rows, left columns."""
    A = A.unflatten(-1, (-1, 2, s)).unflatten(-4, (-1, 2, s))
    return A[..., 1, :, :, 0, :].diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def _scores(q: Tensor, key: Tensor, f: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    levels, q_start, key_end, decay = _levels(q, key, f)
    A = torch.diag_embed((q * key).sum(-1))
    s = 1
    for level in levels:
        _block(A, s).copy_(level.q_right @ level.key_left.mT)
        s *= 2
    return A, q_start, key_end, decay


def _scores_backward(
    q: Tensor,
    key: Tensor,
    f: Tensor,
    levels: list[_Level],
    dA: Tensor,
    dq: Tensor,
    dkey: Tensor,
    ddecay: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    ddecay = ddecay[..., None, :]
    s = 1 << len(levels)
    for level in reversed(levels):
        s //= 2
        dq_right, dkey_left = _halves(dq, s)[..., 1, :, :], _halves(dkey, s)[..., 0, :, :]
        dleft = (dq_right * level.q_right).sum(-2)
        dright = (dkey_left * level.key_left).sum(-2)
        ddecay = torch.stack(
            [ddecay * level.decay[..., 1, :] + dleft, ddecay * level.decay[..., 0, :] + dright], -2
        ).flatten(-3, -2)
        dblock = _block(dA, s)
        dq_right *= level.decay[..., 0, None, :]
        dkey_left *= level.decay[..., 1, None, :]
        dq_right += dblock @ level.key_left
        dkey_left += dblock.mT @ level.q_right
    diagonal = dA.diagonal(dim1=-2, dim2=-1)[..., None]
    return dq * f + diagonal * key, dkey + diagonal * q, ddecay + dq * q
