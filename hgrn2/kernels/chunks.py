"""HGRN2's and GLA's forward and backward as sequences of launches.

Inputs may be strided views (of one fused projection, say) as long as their last axis is contiguous;
others are copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hgrn2.kernels.backward_gate import constants_of, gate_gradients
from hgrn2.kernels.backward_value import value_gradient
from hgrn2.kernels.deep import deep_output
from hgrn2.kernels.deep_backward import deep_gradients
from hgrn2.kernels.first_call import compile_before_first, total
from hgrn2.kernels.into import Into
from hgrn2.kernels.keys import with_strides
from hgrn2.kernels.operators import Run
from hgrn2.kernels.output import chunk_output
from hgrn2.kernels.settings import CHUNK, Settings, cdiv, settings
from hgrn2.kernels.states import chunk_states


def table_of(q: Tensor, v: Tensor) -> Settings:
    """The table's entry: the current device's for tensors on meta, Hopper's without a GPU."""
    capability = (9, 0)
    if q.is_cuda or (q.is_meta and torch.cuda.is_available()):
        capability = torch.cuda.get_device_capability(q.device if q.is_cuda else None)
    return settings(q.shape[-1], v.shape[-1], q.dtype, capability)


def rows(x: Tensor) -> Tensor:
    """x itself where its last axis is contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def plain(x: Tensor) -> Tensor:
    return x.to(torch.float32).contiguous()


def in_a_row(lengths: Tensor | None) -> Tensor | None:
    return None if lengths is None else lengths.contiguous()


def room(
    q: Tensor, v: Tensor, bidirectional: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for what the forward leaves: the states at the chunks' borders [b n h k v], those of the
    reverse direction (empty without one), the scores [b n h c c] (empty without `keep`), all bf16
    for bf16, else fp32, and how many spans a deep chunk has, int8 [b n h],
    0 for the others."""
    b, t, h, k = q.shape
    dtype = torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32
    shape = (b, cdiv(t, CHUNK), h)
    states = q.new_empty((*shape, k, v.shape[-1]), dtype=dtype)
    reverse = q.new_empty(states.shape if bidirectional else (0,), dtype=dtype)
    scores = q.new_empty((*shape, CHUNK, CHUNK) if keep else (0,), dtype=dtype)
    return states, reverse, scores, q.new_empty(shape, dtype=torch.int8)


def forward(
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
    inputs = (q, z, v, bound, state, lengths, bidirectional, keep)
    compile_before_first(passes, forward, backward, *inputs)
    return launch_forward(*inputs)


def launch_forward(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    bidirectional: bool,
    keep: bool,
    free_key: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`forward`, but compiles nothing ahead. The key is tied to the gate, or free (GLA), with no
    bound."""
    q, z, v, bound = rows(q), rows(z), rows(v), None if bound is None else plain(bound)
    strided = None if free_key is None else with_strides(rows(free_key))
    lengths = in_a_row(lengths)
    table = table_of(q, v)
    with torch.cuda.device_of(q):
        states, reverse, scores, deep = room(q, v, bidirectional, keep)
        walk = {"q": None, "lengths": lengths, "settings": table}
        gated = (z, v, bound, strided)
        last = chunk_states(*gated, states, first=state, reverse=False, keep_last=True, **walk)
        if bidirectional:
            chunk_states(*gated, reverse, first=None, reverse=True, keep_last=False, **walk)
        both = (states, reverse if bidirectional else None)
        filled = scores if keep else None
        y = chunk_output(q, *gated, *both, lengths, table, deep=deep, scores=filled)
        deep_output(q, *gated, *both, lengths, y, deep, filled, table)
    if keep:
        return y, last, states, reverse, scores, deep
    return y, last, *(q.new_empty(0) for _ in range(4))


def backward(
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
    has_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dz, dv, dbound and, where it `has_state`, the first state's gradient (else empty)."""
    kept = (states, states_reverse, scores, deep)
    into = Into.tensors(q, z, v)
    shared = (q, z, v, bound, lengths, kept, dy, dlast, bidirectional, has_state)
    dbound, dstate = launch_backward(*shared, into)
    return into.dq, into.dz, into.dv, dbound, dstate


def launch_backward(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor | None,
    lengths: Tensor | None,
    kept: Sequence[Tensor],
    dy: Tensor,
    dlast: Tensor | None,
    bidirectional: bool,
    has_state: bool,
    into: Into,
    free_key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`backward` of what `room` has kept: dbound (empty where the key is free) and the first
    state's gradient; the others `into` their places."""
    states, states_reverse, scores, deep = kept
    q, z, v, dy = rows(q), rows(z), rows(v), rows(dy)
    wide = None if bound is None else plain(bound)
    strided = None if free_key is None else with_strides(rows(free_key))
    lengths = in_a_row(lengths)
    table = table_of(q, v)

    def walk(*, reverse: bool) -> tuple[Tensor, Tensor]:
        dstates = states.new_empty(states.shape)
        dstate = chunk_states(
            z,
            dy,
            wide,
            strided,
            dstates,
            q=q,
            first=None if reverse else dlast,
            lengths=lengths,
            reverse=reverse,
            keep_last=has_state,
            settings=table,
        )
        return dstates, dstate if has_state else dstate.new_empty(0)

    with torch.cuda.device_of(q):
        dstates, dstate = walk(reverse=False)
        dreverse = walk(reverse=True)[0] if bidirectional else None
        gated = (z, v, dy, wide, strided)
        dscores = value_gradient(*gated, scores, dstates, dreverse, lengths, table, into)
        reverse = None if dreverse is None else (states_reverse, dreverse)
        constants = constants_of(q, v)
        shared = (q, *gated, (states, dstates), reverse, dscores, lengths, deep, constants)
        dbound = gate_gradients(*shared, table, into)
        deep_gradients(*shared, dbound, table, into)
    if bound is None or dbound is None:
        return dstate.new_empty(0), dstate
    return total(dbound, 0, 1).to(bound.dtype), dstate


def passes(forward: Run, backward: Run, *inputs: Any) -> None:
    """The forward pass of HGRN2 or GLA, and the backward pass if one may come."""
    q, z, v, bound_or_key, state, lengths, bidirectional, keep = inputs
    y, _, *kept = forward(*inputs)
    if keep:
        has_state = state is not None
        backward(q, z, v, bound_or_key, lengths, *kept, y, None, bidirectional, has_state)
