"""HGRN2's operator as torch custom operators: no graph break, no host synchronisation.

Axes: b batch, t time, h heads, k key width, v value width. Inputs may be strided views (of one
fused projection, say) as long as their last axis is contiguous; others are copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hgrn2.kernels import decode
from hgrn2.kernels.backward import chunk_gradients
from hgrn2.kernels.output import chunk_output
from hgrn2.kernels.settings import Settings, settings
from hgrn2.kernels.states import chunk_states

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def hgrn2(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    *,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """HGRN2, causal: shapes and results as `hgrn2.hgrn2`; q, z and v of one dtype.

    Raises ValueError for a dtype or a width that the kernels do not take.
    """
    _check(q, z, v)
    return _forward(q, z, v, bound, None if state is None else _plain(state), lengths, False)


def hgrn2_bidirectional(
    q: Tensor, z: Tensor, v: Tensor, bound: Tensor, *, lengths: Tensor | None = None
) -> Tensor:
    """Both directions summed, gates and loads shared: as `hgrn2.hgrn2_bidirectional`."""
    _check(q, z, v)
    return _forward(q, z, v, bound, None, lengths, True)[0]


def hgrn2_step(
    q: Tensor, z: Tensor, v: Tensor, bound: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: q, z [b h k], v [b h v]; fp32 state [b h k v] is updated in place and returned.

    Raises ValueError for a dtype or a width that the kernels do not take.
    """
    _check(q, z, v)
    if state.dtype != torch.float32 or not state.is_contiguous():
        raise ValueError(
            f"state is {state.dtype} with strides {state.stride()}; it should be contiguous "
            "torch.float32, which is updated in place"
        )
    return _step(q, z, v, bound, state), state


def _check(q: Tensor, z: Tensor, v: Tensor) -> None:
    if q.dtype not in DTYPES or z.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            f"q, z, v are {q.dtype}, {z.dtype}, {v.dtype}; impl='triton' takes one of "
            "torch.bfloat16, torch.float16, torch.float32 for all three"
        )
    # the widths
    settings(q.shape[-1], v.shape[-1], q.dtype, (9, 0))


def _settings(q: Tensor, v: Tensor) -> Settings:
    capability = torch.cuda.get_device_capability(q.device) if q.is_cuda else (9, 0)
    return settings(q.shape[-1], v.shape[-1], q.dtype, capability)


def _rows(x: Tensor) -> Tensor:
    """x itself where its last axis is contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _plain(x: Tensor) -> Tensor:
    return x.to(torch.float32).contiguous()


@torch.library.custom_op("hgrn2::forward", mutates_args=())
def _forward(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    state: Tensor | None,
    lengths: Tensor | None,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    """y, and the forward direction's last state."""
    q, z, v, bound = _rows(q), _rows(z), _rows(v), _plain(bound)
    table = _settings(q, v)
    with torch.cuda.device_of(q):
        states, last = chunk_states(
            z, v, bound, q=None, first=state, lengths=lengths, reverse=False, settings=table
        )
        reverse = None
        if bidirectional:
            reverse, _ = chunk_states(
                z, v, bound, q=None, first=None, lengths=lengths, reverse=True, settings=table
            )
        return chunk_output(q, z, v, bound, states, reverse, lengths, table), last


@_forward.register_fake
def _forward_fake(
    q: Tensor,
    _z: Tensor,
    v: Tensor,
    _bound: Tensor,
    _state: Tensor | None,
    _lengths: Tensor | None,
    _bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    b, _, h, k = q.shape
    return v.new_empty(v.shape), q.new_empty((b, h, k, v.shape[-1]), dtype=torch.float32)


@torch.library.custom_op("hgrn2::backward", mutates_args=())
def _backward(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    state: Tensor | None,
    lengths: Tensor | None,
    dy: Tensor,
    dlast: Tensor | None,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dz, dv, dbound and the first state's gradient.

    The states are walked anew: 512 bytes a token and head (k = v = 128) are not kept for it.
    """
    q, z, v, dy, wide = _rows(q), _rows(z), _rows(v), _rows(dy), _plain(bound)
    table = _settings(q, v)

    def walks(reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        first, last = (None, None) if reverse else (state, dlast)
        states, _ = chunk_states(
            z, v, wide, q=None, first=first, lengths=lengths, reverse=reverse, settings=table
        )
        dstates, dfirst = chunk_states(
            z, dy, wide, q=q, first=last, lengths=lengths, reverse=reverse, settings=table
        )
        return states, dstates, dfirst

    with torch.cuda.device_of(q):
        states, dstates, dstate = walks(reverse=False)
        backward = walks(reverse=True)[:2] if bidirectional else None
        gradients = chunk_gradients(q, z, v, dy, wide, (states, dstates), backward, lengths, table)
    dq, dz, dv, dbound = gradients
    return dq, dz, dv, dbound.to(bound.dtype), dstate


@_backward.register_fake
def _backward_fake(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    _state: Tensor | None,
    _lengths: Tensor | None,
    _dy: Tensor,
    _dlast: Tensor | None,
    _bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    b, _, h, k = q.shape
    dstate = q.new_empty((b, h, k, v.shape[-1]), dtype=torch.float32)
    return *(x.new_empty(x.shape) for x in (q, z, v, bound)), dstate


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    del output
    ctx.save_for_backward(*inputs[:6])
    ctx.bidirectional = inputs[6]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
    q, z, v, bound, state, lengths = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(v)
    if dlast is not None:
        dlast = dlast.contiguous()
    *gradients, dstate = _backward(q, z, v, bound, state, lengths, dy, dlast, ctx.bidirectional)
    return *gradients, None if state is None else dstate, None, None


torch.library.register_autograd("hgrn2::forward", _differentiate, setup_context=_save)


@torch.library.custom_op("hgrn2::step", mutates_args=("state",))
def _step(q: Tensor, z: Tensor, v: Tensor, bound: Tensor, state: Tensor) -> Tensor:
    q, z, v = _rows(q), _rows(z), _rows(v)
    return decode.step(q, z, v, _plain(bound), state)


@_step.register_fake
def _step_fake(_q: Tensor, _z: Tensor, v: Tensor, _bound: Tensor, _state: Tensor) -> Tensor:
    return v.new_empty(v.shape)
