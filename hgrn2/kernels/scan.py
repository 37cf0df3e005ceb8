"""The diagonal scan's launches: which kernels run, over how many segments, on which buffers.

Shapes: z [b t d]; v, h and their gradients [b t d], or [b t d 2] with a turn; bound fp32 [d]; a
turn is cos and sin of theta, fp32 [2 d]; borders fp32 [b n d (2)], what enters every `border`
tokens; states and what else is carried fp32 [b d (2)]. With HGRN2's heads the channels are those of
`scan_heads`, q and z are [b t (h k)], v [b t (h v)], and y = q h [b t (h v)] stands for h.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hgrn2.kernels.first_call import enqueue, total
from hgrn2.kernels.scan_backward import hgrn1_bwd_kernel
from hgrn2.kernels.scan_heads import NONE, Heads
from hgrn2.kernels.scan_settings import (
    REGISTERS,
    REGISTERS_OF_HEADS,
    ScanLaunch,
    ScanSettings,
    border,
)
from hgrn2.kernels.scan_walk import hgrn1_fwd_segments_kernel, hgrn1_fwd_walk_kernel
from hgrn2.kernels.settings import cdiv


@dataclass(frozen=True)
class Direction:
    """One direction of time: its turn, and the borders of its states."""

    turn: Tensor | None
    borders: Tensor


@dataclass(frozen=True)
class Gated:
    """What every walk reads: the logits z, the bound and where the rows end."""

    z: Tensor
    bound: Tensor
    lengths: Tensor | None
    q: Tensor | None = None
    heads: Heads = NONE
    """HGRN2's, with its q."""

    @property
    def size(self) -> tuple[int, int, int]:
        """b, t, d"""
        return *self.z.shape[:2], len(self.bound)

    def channels(self, x: Tensor) -> tuple[int, ...]:
        """Of the states that x [b t ..] drives: d, or d and 2."""
        return (len(self.bound),) if self.heads.count else (*x.shape[2:],)

    def gradient_room(self, x: Tensor) -> Tensor:
        """Room for the gradient of x, z or q, in as many parts as a head's values have."""
        n = self.heads.parts
        dtype = x.dtype if n == 1 else torch.float32
        return x.new_empty((*x.shape[:2], n, x.shape[2]), dtype=dtype)


@dataclass(frozen=True)
class Gradients:
    """dz, dv and dq in their inputs' dtypes, the others fp32. dq is empty without heads, dtheta and
    dtheta_back in a real scan."""

    dz: Tensor
    dv: Tensor
    dq: Tensor
    dbound: Tensor
    dtheta: Tensor
    dtheta_back: Tensor
    dstate: Tensor


def scan_output(
    v: Tensor,
    gated: Gated,
    turn: Tensor | None,
    *,
    first: Tensor | None,
    back: Direction | None,
    settings: ScanSettings,
    keep_borders: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """h (of heads y), the last state and the borders (empty unless kept); back's states are added
    to h."""
    b, t, d = gated.size
    launch = settings.output
    segments, segment_tokens = launch.split(b * cdiv(d, launch.channels), t)
    h = v.new_empty(v.shape)
    borders = _borders(v, gated) if keep_borders else v.new_empty((0,), dtype=torch.float32)
    last = v.new_empty((b, *gated.channels(v)), dtype=torch.float32)
    options = {"turn": turn, "descend": False, "adjoint": False}
    if segments > 1:
        first = _starts(v, gated, first, last, settings.walk, segments, segment_tokens, **options)
    _walk(
        v,
        gated,
        first,
        launch,
        segments,
        segment_tokens,
        **options,
        back=back,
        h=h,
        borders=borders if keep_borders else None,
        last=last if segments == 1 else None,
    )
    return h, last, borders


def scan_borders(
    x: Tensor, gated: Gated, turn: Tensor | None, settings: ScanSettings, *, adjoint: bool
) -> Tensor:
    """The backward direction's borders: of its states (x is v), or of their gradients (x is dh)."""
    b, t, d = gated.size
    launch = settings.walk
    segments, segment_tokens = launch.split(b * cdiv(d, launch.channels), t)
    borders, first = _borders(x, gated), None
    options = {"turn": turn, "descend": not adjoint, "adjoint": adjoint}
    if segments > 1:
        last = x.new_empty((b, *gated.channels(x)), dtype=torch.float32)
        first = _starts(x, gated, None, last, launch, segments, segment_tokens, **options)
    _walk(x, gated, first, launch, segments, segment_tokens, **options, borders=borders)
    return borders


def scan_gradients(
    v: Tensor,
    dh: Tensor,
    gated: Gated,
    forward: Direction,
    *,
    back: Direction | None,
    dlast: Tensor | None,
    settings: ScanSettings,
) -> Gradients:
    """Every gradient, from the borders that the forward pass kept; dlast is the last state's."""
    z = gated.z
    b, t, d = gated.size
    launch = settings.backward
    tiles = cdiv(d, launch.channels)
    segments, segment_tokens = launch.split(b * tiles, t)
    q, heads = _or(gated.q, z), gated.heads
    dz, dv = gated.gradient_room(z), v.new_empty(v.shape)
    dq = gated.gradient_room(q) if heads.count else dz
    dstate = v.new_empty((b, *gated.channels(v)), dtype=torch.float32)
    sums = z.new_empty((3, b * segments, d), dtype=torch.float32)
    others = forward.borders
    if back is not None:
        others = scan_borders(dh, gated, back.turn, settings, adjoint=True)
    first = dlast
    if segments > 1:
        first = _starts(
            dh,
            gated,
            dlast,
            dstate,
            settings.walk,
            segments,
            segment_tokens,
            turn=forward.turn,
            descend=True,
            adjoint=True,
        )
    enqueue(
        hgrn1_bwd_kernel,
        b * segments * tiles,
        z,
        v,
        dh,
        q,
        gated.bound,
        _or(forward.turn, gated.bound),
        _or(None if back is None else back.turn, gated.bound),
        _or(gated.lengths, gated.bound),
        forward.borders,
        _or(None if back is None else back.borders, forward.borders),
        others,
        _or(first, dstate),
        dz,
        dv,
        dq,
        dstate,
        *sums.unbind(),
        z.stride(0),
        v.stride(0),
        dh.stride(0),
        q.stride(0),
        t,
        forward.borders.shape[1],
        segments,
        segment_tokens,
        D=d,
        BC=launch.channels,
        W=launch.warps,
        ROWS=launch.rows,
        Z_STRIDE=z.stride(1),
        V_STRIDE=v.stride(1),
        V_CHANNEL=v.stride(2),
        V_PAIR=v.stride(-1),
        DH_STRIDE=dh.stride(1),
        DH_CHANNEL=dh.stride(2),
        DH_PAIR=dh.stride(-1),
        Q_STRIDE=q.stride(1),
        **heads.constants,
        TURN=forward.turn is not None,
        BOTH=back is not None,
        FAST=z.dtype != torch.float32,
        HAS_FIRST=first is not None,
        HAS_LENGTHS=gated.lengths is not None,
        STORE_LAST=segments == 1,
        num_warps=launch.warps,
        maxnreg=REGISTERS_OF_HEADS if heads.count else REGISTERS,
    )
    # Each program's own sums, added once in a fixed order: the same bits every time.
    real = forward.turn is None
    return Gradients(
        _summed(dz, z),
        dv,
        _summed(dq, q) if heads.count else z.new_empty((0,)),
        total(sums[0], 0),
        sums.new_empty((0,)) if real else total(sums[1], 0),
        sums.new_empty((0,)) if real or back is None else total(sums[2], 0),
        dstate,
    )


def _summed(parts: Tensor, x: Tensor) -> Tensor:
    """The gradient of x from its parts."""
    return parts[:, :, 0] if parts.shape[2] == 1 else total(parts, 2).to(x.dtype)


def _borders(x: Tensor, gated: Gated) -> Tensor:
    b, t = x.shape[:2]
    n = cdiv(t, border(x.ndim == 4))
    return x.new_empty((b, n, *gated.channels(x)), dtype=torch.float32)


def _or(x: Tensor | None, other: Tensor) -> Tensor:
    """A kernel takes no None: what it never reads is filled by a tensor at hand."""
    return other if x is None else x


def _starts(
    x: Tensor,
    gated: Gated,
    first: Tensor | None,
    last: Tensor,
    launch: ScanLaunch,
    segments: int,
    segment_tokens: int,
    *,
    turn: Tensor | None,
    descend: bool,
    adjoint: bool,
) -> Tensor:
    """What enters every segment, fp32 [b s d (2)]; `last` is written: what leaves the last one."""
    b, _, d = gated.size
    sums = x.new_empty((b, segments, *gated.channels(x)), dtype=torch.float32)
    decay, starts = sums.new_empty(sums.shape), sums.new_empty(sums.shape)
    _walk(
        x,
        gated,
        None,
        launch,
        segments,
        segment_tokens,
        turn=turn,
        descend=descend,
        adjoint=adjoint,
        last=sums,
        decay=decay,
    )
    block = 128
    enqueue(
        hgrn1_fwd_segments_kernel,
        b * cdiv(d, block),
        _or(first, last),
        sums,
        decay,
        starts,
        last,
        segments,
        D=d,
        BC=block,
        TURN=turn is not None,
        DESCEND=descend,
        HAS_FIRST=first is not None,
        num_warps=4,
    )
    return starts


def _walk(
    x: Tensor,
    gated: Gated,
    first: Tensor | None,
    launch: ScanLaunch,
    segments: int,
    segment_tokens: int,
    *,
    turn: Tensor | None,
    descend: bool,
    adjoint: bool,
    back: Direction | None = None,
    h: Tensor | None = None,
    borders: Tensor | None = None,
    last: Tensor | None = None,
    decay: Tensor | None = None,
) -> None:
    """One launch over all segments; it writes h, borders, last and decay where they are given."""
    z, bound = gated.z, gated.bound
    q = _or(gated.q, z)
    b, t, d = gated.size
    enqueue(
        hgrn1_fwd_walk_kernel,
        b * segments * cdiv(d, launch.channels),
        z,
        x,
        q,
        bound,
        _or(turn, bound),
        _or(None if back is None else back.turn, bound),
        _or(gated.lengths, bound),
        _or(first, bound),
        bound if back is None else back.borders,
        _or(h, x),
        _or(borders, bound),
        _or(last, bound),
        _or(decay, bound),
        z.stride(0),
        x.stride(0),
        q.stride(0),
        t,
        cdiv(t, border(turn is not None)),
        segments,
        segment_tokens,
        D=d,
        BC=launch.channels,
        W=launch.warps,
        ROWS=launch.rows,
        BORDER=border(turn is not None),
        Z_STRIDE=z.stride(1),
        X_STRIDE=x.stride(1),
        X_CHANNEL=x.stride(2),
        X_PAIR=x.stride(-1),
        Q_STRIDE=q.stride(1),
        **gated.heads.constants,
        TURN=turn is not None,
        DESCEND=descend,
        ADJOINT=adjoint,
        BOTH=back is not None,
        FAST=z.dtype != torch.float32,
        HAS_FIRST=first is not None,
        HAS_LENGTHS=gated.lengths is not None,
        STORE_H=h is not None,
        STORE_BORDERS=borders is not None,
        STORE_LAST=last is not None,
        STORE_DECAY=decay is not None,
        num_warps=launch.warps,
    )
