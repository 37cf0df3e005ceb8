"""HGRN2's operator for autograd.

Axes: b batch, t time, h heads, k key width, v value width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hgrn2.kernels import decode
from hgrn2.kernels.chunks import backward, forward, plain, room, rows
from hgrn2.kernels.operators import Pass, Run, operator
from hgrn2.kernels.settings import check_widths

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
    check_inputs("q, z, v", q, z, v)
    start = None if state is None else plain(state)
    return _operator(q, z, v, bound, start, lengths, False)


def hgrn2_bidirectional(
    q: Tensor, z: Tensor, v: Tensor, bound: Tensor, *, lengths: Tensor | None = None
) -> Tensor:
    """Both directions summed, gates and loads shared: as `hgrn2.hgrn2_bidirectional`."""
    check_inputs("q, z, v", q, z, v)
    return _operator(q, z, v, bound, None, lengths, True)[0]


def hgrn2_step(
    q: Tensor, z: Tensor, v: Tensor, bound: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: q, z [b h k], v [b h v]; fp32 state [b h k v] is updated in place and returned.

    Raises ValueError for a dtype or a width that the kernels do not take.
    """
    check_inputs("q, z, v", q, z, v)
    check_state(state)
    step = _compiled_step if torch.compiler.is_compiling() else _step
    return step(q, z, v, bound, state), state


def check_inputs(names: str, q: Tensor, *others: Tensor) -> None:
    """Raise ValueError where the tensors, v the last of them, differ in dtype, or have one or a
    width that the kernels do not take."""
    if q.dtype not in DTYPES or any(x.dtype != q.dtype for x in others):
        raise ValueError(
            f"{names} are {', '.join(str(x.dtype) for x in (q, *others))}; impl='triton' takes one "
            "of torch.bfloat16, torch.float16, torch.float32 for all of them"
        )
    check_widths(q.shape[-1], others[-1].shape[-1])


def check_state(state: Tensor) -> None:
    """Raise ValueError for a state that a step cannot update in place."""
    if state.dtype != torch.float32 or not state.is_contiguous():
        raise ValueError(
            f"state is {state.dtype} with strides {state.stride()}; it should be contiguous "
            "torch.float32, which is updated in place"
        )


def forward_fake(
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
        return y, last, *room(q, v, bidirectional, True)
    return y, last, *(q.new_empty(0) for _ in range(4))


def backward_fake(
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
    del lengths, states, states_reverse, scores, deep, dy, dlast, bidirectional
    b, _, h, k = q.shape
    dstate = q.new_empty((b, h, k, v.shape[-1]) if has_state else (0,), dtype=torch.float32)
    dq, dz, dv, dbound = (x.new_empty(x.shape) for x in (q, z, v, bound))
    return dq, dz, dv, dbound, dstate


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, z, v, bound, state, lengths, ctx.bidirectional, _ = inputs
    ctx.save_for_backward(q, z, v, bound, lengths, *output[2:])
    ctx.has_state = state is not None
    ctx.set_materialize_grads(False)


def differentiate(
    ctx: Any, run: Run, dy: Tensor | None, dlast: Tensor | None
) -> tuple[Tensor | None, ...]:
    q, z, v, bound, lengths, *kept = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(v)
    if dlast is not None:
        dlast = dlast.contiguous()
    *gradients, dstate = run(
        q, z, v, bound, lengths, *kept, dy, dlast, ctx.bidirectional, ctx.has_state
    )
    return *gradients, dstate if ctx.has_state else None, None, None, None


_operator = operator(
    Pass("hgrn2::forward", forward, forward_fake),
    Pass("hgrn2::backward", backward, backward_fake),
    save,
    differentiate,
)


def _step(q: Tensor, z: Tensor, v: Tensor, bound: Tensor, state: Tensor) -> Tensor:
    return decode.step(rows(q), rows(z), rows(v), plain(bound), None, state)


_compiled_step = torch.library.custom_op("hgrn2::step", _step, mutates_args=("state",))


@_compiled_step.register_fake
def step_fake(q: Tensor, z: Tensor, v: Tensor, bound: Tensor, state: Tensor) -> Tensor:
    del q, z, bound, state
    return v.new_empty(v.shape)
