"""HGRN2's operator as torch custom operators: no graph break, no host synchronisation.

Axes: b batch, t time, h heads, k key width, v value width. Inputs may be strided views (of one
fused projection, say) as long as their last axis is contiguous; others are copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hgrn2.kernels import decode
from hgrn2.kernels.backward_gate import gate_gradients
from hgrn2.kernels.backward_value import value_gradient
from hgrn2.kernels.deep import deep_gradients, deep_output
from hgrn2.kernels.output import chunk_output
from hgrn2.kernels.settings import CHUNK, Settings, cdiv, settings
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
    start = None if state is None else _plain(state)
    keep = _differentiated(q, z, v, bound, state)
    y, last, *_ = _forward(q, z, v, bound, start, lengths, False, keep)
    return y, last


def hgrn2_bidirectional(
    q: Tensor, z: Tensor, v: Tensor, bound: Tensor, *, lengths: Tensor | None = None
) -> Tensor:
    """Both directions summed, gates and loads shared: as `hgrn2.hgrn2_bidirectional`."""
    _check(q, z, v)
    return _forward(q, z, v, bound, None, lengths, True, _differentiated(q, z, v, bound))[0]


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


def _differentiated(*inputs: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def _kept(q: Tensor, v: Tensor, bidirectional: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for the states at the chunks' borders [b n h k v], those of the reverse direction
    (empty without one), the scores [b n h c c], all bf16 for bf16, else fp32, and the flags of
    deep chunks, int8 [b n h]."""
    b, t, h, k = q.shape
    dtype = torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32
    shape = (b, cdiv(t, CHUNK), h)
    states = q.new_empty((*shape, k, v.shape[-1]), dtype=dtype)
    reverse = q.new_empty(states.shape if bidirectional else (0,), dtype=dtype)
    scores = q.new_empty((*shape, CHUNK, CHUNK), dtype=dtype)
    return states, reverse, scores, q.new_empty(shape, dtype=torch.int8)


@torch.library.custom_op("hgrn2::forward", mutates_args=())
def _forward(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    state: Tensor | None,
    lengths: Tensor | None,
    bidirectional: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, the forward direction's last state, and what the backward needs (empty without `keep`)."""
    q, z, v, bound = _rows(q), _rows(z), _rows(v), _plain(bound)
    table = _settings(q, v)
    with torch.cuda.device_of(q):
        states, reverse, scores, deep = _kept(q, v, bidirectional)
        walk = {"q": None, "lengths": lengths, "settings": table}
        last = chunk_states(z, v, bound, states, first=state, reverse=False, **walk)
        if bidirectional:
            chunk_states(z, v, bound, reverse, first=None, reverse=True, **walk)
        both = (states, reverse if bidirectional else None)
        filled = scores if keep else None
        y = chunk_output(q, z, v, bound, *both, lengths, table, deep=deep, scores=filled)
        deep_output(q, z, v, bound, *both, lengths, y, deep, filled, table)
    if keep:
        return y, last, states, reverse, scores, deep
    return y, last, *(q.new_empty(0) for _ in range(4))


@_forward.register_fake
def _forward_fake(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    state: Tensor | None,
    lengths: Tensor | None,
    bidirectional: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    del z, bound, state, lengths
    b, _, h, k = q.shape
    y = q.new_empty(v.shape, dtype=v.dtype)
    last = q.new_empty((b, h, k, v.shape[-1]), dtype=torch.float32)
    if keep:
        return y, last, *_kept(q, v, bidirectional)
    return y, last, *(q.new_empty(0) for _ in range(4))


@torch.library.custom_op("hgrn2::backward", mutates_args=())
def _backward(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    lengths: Tensor | None,
    states: Tensor,
    states_reverse: Tensor,
    scores: Tensor,
    deep: Tensor,
    dy: Tensor,
    dlast: Tensor | None,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dz, dv, dbound and the first state's gradient."""
    q, z, v, dy, wide = _rows(q), _rows(z), _rows(v), _rows(dy), _plain(bound)
    table = _settings(q, v)

    def walk(reverse: bool) -> tuple[Tensor, Tensor]:
        dstates = torch.empty_like(states)
        last = None if reverse else dlast
        return dstates, chunk_states(
            z, dy, wide, dstates, q=q, first=last, lengths=lengths, reverse=reverse, settings=table
        )

    with torch.cuda.device_of(q):
        dstates, dstate = walk(reverse=False)
        dreverse = walk(reverse=True)[0] if bidirectional else None
        dv, dscores = value_gradient(z, v, dy, wide, scores, dstates, dreverse, lengths, table)
        backward = None if dreverse is None else (states_reverse, dreverse)
        shared = (q, z, v, dy, wide, (states, dstates), backward, dscores, lengths)
        dq, dz, dbound = gate_gradients(*shared, table)
        deep_gradients(*shared, deep, (dq, dz, dbound), table)
    return dq, dz, dv, dbound.sum((0, 1)).to(bound.dtype), dstate


@_backward.register_fake
def _backward_fake(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    lengths: Tensor | None,
    states: Tensor,
    states_reverse: Tensor,
    scores: Tensor,
    deep: Tensor,
    dy: Tensor,
    dlast: Tensor | None,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    del lengths, states, states_reverse, scores, deep, dy, dlast, bidirectional
    b, _, h, k = q.shape
    dstate = q.new_empty((b, h, k, v.shape[-1]), dtype=torch.float32)
    dq, dz, dv, dbound = (x.new_empty(x.shape) for x in (q, z, v, bound))
    return dq, dz, dv, dbound, dstate


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, z, v, bound, state, lengths, ctx.bidirectional, _ = inputs
    ctx.save_for_backward(q, z, v, bound, lengths, *output[2:])
    ctx.has_state = state is not None
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor | None, dlast: Tensor | None, *_: None) -> tuple[Any, ...]:
    q, z, v, bound, lengths, *kept = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(v)
    if dlast is not None:
        dlast = dlast.contiguous()
    *gradients, dstate = _backward(q, z, v, bound, lengths, *kept, dy, dlast, ctx.bidirectional)
    return *gradients, dstate if ctx.has_state else None, None, None, None


torch.library.register_autograd("hgrn2::forward", _differentiate, setup_context=_save)


@torch.library.custom_op("hgrn2::step", mutates_args=("state",))
def _step(q: Tensor, z: Tensor, v: Tensor, bound: Tensor, state: Tensor) -> Tensor:
    q, z, v = _rows(q), _rows(z), _rows(v)
    return decode.step(q, z, v, _plain(bound), state)


@_step.register_fake
def _step_fake(q: Tensor, z: Tensor, v: Tensor, bound: Tensor, state: Tensor) -> Tensor:
    del q, z, bound, state
    return v.new_empty(v.shape)
