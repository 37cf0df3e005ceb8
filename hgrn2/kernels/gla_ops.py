"""GLA's operator for autograd: `ops` on HGRN2's kernels with a free key.

Axes: b batch, t time, h heads, k key width, v value width. Inside, the key is where HGRN2 has its
bound, so that what is saved and returned for autograd has one order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hgrn2.kernels import decode
from hgrn2.kernels.chunks import launch_backward, launch_forward, passes, plain, rows
from hgrn2.kernels.first_call import compile_before_first
from hgrn2.kernels.into import Into
from hgrn2.kernels.keys import with_strides
from hgrn2.kernels.operators import Pass, operator
from hgrn2.kernels.ops import (
    backward_fake,
    check_inputs,
    check_state,
    differentiate,
    forward_fake,
    save,
    step_fake,
)


def gla(
    q: Tensor,
    key: Tensor,
    z: Tensor,
    v: Tensor,
    *,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """GLA, causal: shapes and results as `hgrn2.gla`; q, key, z and v of one dtype.

    Raises ValueError for a dtype or a width that the kernels do not take.
    """
    check_inputs("q, key, z, v", q, key, z, v)
    start = None if state is None else plain(state)
    return _operator(q, z, v, key, start, lengths, False)


def gla_bidirectional(
    q: Tensor, key: Tensor, z: Tensor, v: Tensor, *, lengths: Tensor | None = None
) -> Tensor:
    """Both directions summed, gates and loads shared: as `hgrn2.gla_bidirectional`."""
    check_inputs("q, key, z, v", q, key, z, v)
    return _operator(q, z, v, key, None, lengths, True)[0]


def gla_step(q: Tensor, key: Tensor, z: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: q, key, z [b h k], v [b h v]; fp32 state [b h k v] is updated in place and
    returned.

    Raises ValueError for a dtype or a width that the kernels do not take.
    """
    check_inputs("q, key, z, v", q, key, z, v)
    check_state(state)
    step = _compiled_step if torch.compiler.is_compiling() else _step
    return step(q, z, v, key, state), state


def _forward(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    key: Tensor,
    state: Tensor | None,
    lengths: Tensor | None,
    bidirectional: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, the forward direction's last state, and what the backward needs (empty without `keep`)."""
    inputs = (q, z, v, key, state, lengths, bidirectional, keep)
    compile_before_first(passes, _forward, _backward, *inputs)
    return launch_forward(q, z, v, None, state, lengths, bidirectional, keep, key)


def _backward(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    key: Tensor,
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
    """dq, dz, dv, dkey and, where it `has_state`, the first state's gradient (else empty)."""
    kept = (states, states_reverse, scores, deep)
    dkey = key.new_empty(key.shape)
    into = Into.tensors(q, z, v, dkey)
    inputs = (q, z, v, None, lengths, kept, dy, dlast, bidirectional, has_state)
    _, dstate = launch_backward(*inputs, into, key)
    return into.dq, into.dz, into.dv, dkey, dstate


_operator = operator(
    Pass("hgrn2::gla", _forward, forward_fake),
    Pass("hgrn2::gla_backward", _backward, backward_fake),
    save,
    differentiate,
)


def _step(q: Tensor, z: Tensor, v: Tensor, key: Tensor, state: Tensor) -> Tensor:
    return decode.step(rows(q), rows(z), rows(v), None, with_strides(rows(key)), state)


_compiled_step = torch.library.custom_op("hgrn2::gla_step", _step, mutates_args=("state",))
_compiled_step.register_fake(step_fake)
