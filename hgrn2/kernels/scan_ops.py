"""HGRN1's operator for autograd.

Axes: b batch, t time, d channels. Inputs may be strided views (of one fused projection, say) as
long as their channels are contiguous, in a complex tensor either as pairs (re, im) or as two
planes; others are copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hgrn2.kernels.chunks import in_a_row, plain
from hgrn2.kernels.first_call import compile_before_first
from hgrn2.kernels.operators import Pass, Run, operator
from hgrn2.kernels.scan import Direction, Gated, scan_borders, scan_gradients, scan_output
from hgrn2.kernels.scan_heads import NONE, Heads
from hgrn2.kernels.scan_settings import ScanSettings, border, scan_settings
from hgrn2.kernels.settings import cdiv

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def hgrn1(
    v: Tensor,
    z: Tensor,
    bound: Tensor,
    *,
    theta: Tensor | None = None,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """HGRN1, causal: shapes and results as `hgrn2.hgrn1`; v and z of bf16, fp16 or fp32.

    Raises ValueError for another dtype.
    """
    check_dtypes(v, z)
    return run_scan(v, z, bound, theta, None, None, state, lengths, 0, False)


def hgrn1_bidirectional(
    v: Tensor,
    z: Tensor,
    bound: Tensor,
    *,
    theta: Tensor | None = None,
    theta_backward: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Both directions' states summed: shapes and results as `hgrn2.hgrn1_bidirectional`.

    Raises ValueError for another dtype than bf16, fp16 and fp32.
    """
    check_dtypes(v, z)
    other = theta if theta_backward is None else theta_backward
    return run_scan(v, z, bound, theta, other, None, None, lengths, 0, True)[0]


def check_dtypes(v: Tensor, z: Tensor) -> None:
    for x in (v, z):
        if x.dtype not in DTYPES:
            raise ValueError(
                f"the inputs are {v.dtype} and {z.dtype}; impl='triton' takes torch.bfloat16, "
                "torch.float16 or torch.float32"
            )


def _rows(x: Tensor) -> Tensor:
    """x [b t d] or [b t d 2] itself where the kernels can read its channels."""
    if x.ndim == 3:
        return x if x.stride(2) == 1 else x.contiguous()
    pairs = x.stride(2) == 2 and x.stride(3) == 1
    return x if pairs or x.stride(2) == 1 else x.contiguous()


def _turn(theta: Tensor | None) -> Tensor | None:
    """cos and sin of theta, fp32 [2 d]."""
    if theta is None:
        return None
    wide = theta.to(torch.float32)
    return torch.stack([wide.cos(), wide.sin()])


def _gated(
    v: Tensor, z: Tensor, bound: Tensor, q: Tensor | None, lengths: Tensor | None, keys: int
) -> Gated:
    heads = NONE
    if q is not None:
        q, count = _rows(q), z.shape[2] // keys
        heads = Heads(count, keys, v.shape[2] // count)
    return Gated(z, plain(bound), in_a_row(lengths), q, heads)


def _settings(z: Tensor, bound: Tensor, theta: Tensor | None) -> ScanSettings:
    return scan_settings(len(z), len(bound), z.dtype, turn=theta is not None)


def _forward(
    v: Tensor,
    z: Tensor,
    bound: Tensor,
    theta: Tensor | None,
    theta_back: Tensor | None,
    q: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    keys: int,
    both: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h, the last state, and both directions' borders, each empty where it is not kept. With q, of
    HGRN2's heads with this many keys: y."""
    compile_before_first(
        _passes, v, z, bound, theta, theta_back, q, state, lengths, keys, both, keep
    )
    v, z = _rows(v), _rows(z)
    gated = _gated(v, z, bound, q, lengths, keys)
    table = _settings(z, bound, theta)
    with torch.cuda.device_of(z):
        back = None
        if both:
            turn = _turn(theta_back)
            back = Direction(turn, scan_borders(v, gated, turn, table, adjoint=False))
        h, last, borders = scan_output(
            v,
            gated,
            _turn(theta),
            first=None if state is None else plain(state),
            back=back,
            settings=table,
            keep_borders=keep,
        )
        nothing = last.new_empty((0,))
        return h, last, borders, back.borders if keep and back is not None else nothing


def _forward_fake(
    v: Tensor, z: Tensor, bound: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    del z
    *_, q, _, _, _, both, keep = inputs
    b, t, *channels = v.shape
    if q is not None:
        channels = [len(bound)]
    n = cdiv(t, border(v.ndim == 4))

    def wide(*shape: int) -> Tensor:
        return v.new_empty(shape, dtype=torch.float32)

    borders = wide(b, n, *channels) if keep else wide(0)
    back = wide(b, n, *channels) if keep and both else wide(0)
    return v.new_empty(v.shape), wide(b, *channels), borders, back


def _backward(
    v: Tensor,
    z: Tensor,
    bound: Tensor,
    theta: Tensor | None,
    theta_back: Tensor | None,
    q: Tensor | None,
    lengths: Tensor | None,
    borders: Tensor,
    borders_back: Tensor,
    dh: Tensor,
    dlast: Tensor | None,
    keys: int,
    both: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dv, dz, dbound, dtheta and the other direction's dtheta (or empty), dq (or empty), dstate."""
    v, z, dh = _rows(v), _rows(z), _rows(dh)
    with torch.cuda.device_of(z):
        found = scan_gradients(
            v,
            dh,
            _gated(v, z, bound, q, lengths, keys),
            Direction(_turn(theta), borders),
            back=Direction(_turn(theta_back), borders_back) if both else None,
            dlast=None if dlast is None else plain(dlast),
            settings=_settings(z, bound, theta),
        )
    dtheta, dtheta_back = (
        found_x if x is None else found_x.to(x.dtype)
        for x, found_x in ((theta, found.dtheta), (theta_back, found.dtheta_back))
    )
    dbound = found.dbound.to(bound.dtype)
    return found.dv, found.dz, dbound, dtheta, dtheta_back, found.dq, found.dstate


def _passes(*inputs: Any) -> None:
    """`_forward`'s inputs: it and the backward pass, if one may come."""
    v, z, bound, theta, theta_back, q, _, lengths, keys, both, keep = inputs
    h, _, *borders = _forward(*inputs)
    if keep:
        _backward(v, z, bound, theta, theta_back, q, lengths, *borders, h, None, keys, both)


def _backward_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    v, z, bound, theta, theta_back, q, _, borders, *_ = inputs
    b, channels = len(v), borders.shape[2:]
    angles = (borders.new_empty(0 if x is None else x.shape) for x in (theta, theta_back))
    dtheta, dtheta_back = (
        y if x is None else y.to(x.dtype) for x, y in zip((theta, theta_back), angles, strict=True)
    )
    plain = (x.new_empty(x.shape) for x in (v, z, bound))
    dq = z.new_empty(0) if q is None else q.new_empty(q.shape)
    return *plain, dtheta, dtheta_back, dq, borders.new_empty((b, *channels))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    v, z, bound, theta, theta_back, q, state, lengths, keys, both, _ = inputs
    ctx.save_for_backward(v, z, bound, theta, theta_back, q, lengths, *output[2:])
    ctx.keys, ctx.both, ctx.has_state = keys, both, state is not None
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, run: Run, dh: Tensor | None, dlast: Tensor | None
) -> tuple[Tensor | None, ...]:
    v, z, bound, theta, theta_back, q, lengths, *borders = ctx.saved_tensors
    if dh is None:
        dh = torch.zeros_like(v)
    dv, dz, dbound, *angles, dq, dstate = run(
        v, z, bound, theta, theta_back, q, lengths, *borders, dh, dlast, ctx.keys, ctx.both
    )
    dtheta, dtheta_back = (
        None if x is None else y for x, y in zip((theta, theta_back), angles, strict=True)
    )
    dq, dstate = None if q is None else dq, dstate if ctx.has_state else None
    return dv, dz, dbound, dtheta, dtheta_back, dq, dstate, *4 * [None]


run_scan = operator(
    Pass("hgrn2::scan_forward", _forward, _forward_fake),
    Pass("hgrn2::scan_backward", _backward, _backward_fake),
    _save,
    _differentiate,
)
