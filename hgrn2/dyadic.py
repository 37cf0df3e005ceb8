"""The scores inside a chunk by dyadic splitting in product space, and their gradients.

A pair of tokens j < i of one chunk meets at exactly one level s = 1, 2, 4 .. c/2: there i lies in
the right half and j in the left half of one block of 2s tokens. Anchored at the left half's last
row,

    A_ij = (q_i  product of f over (anchor, i]) . (key_j  product of f over (j, anchor]),

and A_ii = q_i . key_i. Every factor is a product of gates in [0, 1]: nothing overflows, nothing is
divided, no log is taken, and every gate, zero included, is exact. The anchor is never later than
the query, so no bit of a row depends on a later token.

Axes: n chunks, c tokens of a chunk, m blocks of a chunk, s tokens of half a block, k key width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Below this many tokens, torch's batched matmul is slower than its sum written out.
MATMUL_FROM = 4


class Level(NamedTuple):
    """One level's operands, seen in [n m ..] blocks."""

    s: int
    q_right: Tensor
    """[n m s k]: q_i carried back to the anchor"""
    key_left: Tensor
    """[n m s k]: key_j carried on to the anchor"""
    decay_left: Tensor
    """[n m 1 k]: the product of the left half's gates"""
    decay_right: Tensor
    """[n m 1 k]: the product of the right half's gates"""


def _halves(x: Tensor, s: int) -> tuple[Tensor, Tensor]:
    """The left and the right halves [n m s k] of x [n c k]'s blocks of 2s tokens."""
    blocks = x.unflatten(1, (-1, 2, s))
    return blocks[:, :, 0], blocks[:, :, 1]


def _levels(q_start: Tensor, key_end: Tensor, f: Tensor) -> Iterator[Level]:
    """Every level, smallest first; q_start and key_end [n c k] hold q f and key when it starts.

    After a level, q_start is carried back to the start of its block of 2s tokens, and key_end on to
    its end: one product each, in place. After the last, that block is the chunk.
    """
    decay = f
    s = 1
    while s < f.shape[1]:
        _, q_right = _halves(q_start, s)
        key_left, _ = _halves(key_end, s)
        decay_left, decay_right = _halves(decay, 1)
        yield Level(s, q_right, key_left, decay_left, decay_right)
        q_right *= decay_left
        key_left *= decay_right
        decay = (decay_left * decay_right).squeeze(2)
        s *= 2


def _block(A: Tensor, s: int) -> Tensor:
    """The entries of A [n c c] that level s owns, [n m s s]: right rows, left columns."""
    n, c, _ = A.shape
    return A.as_strided((n, c // (2 * s), s, s), (c * c, 2 * s * (c + 1), c, 1), s * c)


def scores(
    q: Tensor, key: Tensor, f: Tensor, *, keep: list[Level] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From q, key, f [n c k]: A [n c c], lower triangular; q carried back to the chunk's start and
    key carried on to its end [n c k]; and the product of the chunk's gates [n k].

    `keep` gathers the levels for `scores_backward`.
    """
    q_start, key_end = q * f, key.clone()
    A = q.new_zeros(*q.shape[:2], q.shape[1])
    A.diagonal(dim1=1, dim2=2).copy_((q * key).sum(-1))
    decay = f
    for level in _levels(q_start, key_end, f):
        if keep is not None:
            # what is carried further is changed in place
            q_right, key_left = level.q_right.clone(), level.key_left.clone()
            level = level._replace(q_right=q_right, key_left=key_left)
            keep.append(level)
        _block(A, level.s).copy_(_products(level.q_right, level.key_left))
        decay = level.decay_left * level.decay_right
    return A, q_start, key_end, decay.reshape(q.shape[0], -1)


def _products(q: Tensor, key: Tensor) -> Tensor:
    """q key^T for blocks [n m s k] -> [n m s s]."""
    if q.shape[2] < MATMUL_FROM:
        return (q[:, :, :, None] * key[:, :, None]).sum(-1)
    # The copy pays: batched matmul is slow where its second operand is transposed.
    return q @ key.mT.contiguous()


def scores_backward(
    q: Tensor,
    key: Tensor,
    f: Tensor,
    levels: list[Level],
    dA: Tensor,
    dq: Tensor,
    dkey: Tensor,
    ddecay: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, key and f from those of what `scores` returns.

    dq and dkey hold the gradients of q_start and key_end [n c k], and are overwritten.
    """
    ddecay = ddecay[:, None]
    for s, q_right, key_left, decay_left, decay_right in reversed(levels):
        _, dq_right = _halves(dq, s)
        dkey_left, _ = _halves(dkey, s)
        dwhole = ddecay[:, :, None]
        dleft = (dq_right * q_right).sum(2, keepdim=True).addcmul_(dwhole, decay_right)
        dright = (dkey_left * key_left).sum(2, keepdim=True).addcmul_(dwhole, decay_left)
        ddecay = torch.cat([dleft, dright], dim=2).flatten(1, 2)
        dblock = _block(dA, s).contiguous()
        dq_right *= decay_left
        _add_product(dq_right, dblock, key_left)
        dkey_left *= decay_right
        _add_product(dkey_left, dblock.mT, q_right)
    diagonal = dA.diagonal(dim1=1, dim2=2)[..., None]
    df = ddecay.addcmul_(dq, q)
    return (dq * f).addcmul_(diagonal, key), dkey.addcmul_(diagonal, q), df


def _add_product(total: Tensor, weights: Tensor, x: Tensor) -> None:
    """total += weights x, for blocks [n m s s] and [n m s k]."""
    if x.shape[2] < MATMUL_FROM:
        for j in range(x.shape[2]):
            total.addcmul_(weights[..., j, None], x[:, :, j, None])
    else:
        total += weights @ x
