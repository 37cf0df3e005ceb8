"""Gated linear attention's recurrence from the raw logit of its gate and a key of its own.

Axes: b batch, t time, h heads, k key width, v value width.

    f_t = sigmoid(z_t)^(1/16)

`lengths`, dtypes and states as in `hgrn2.api`.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from hgrn2 import reference
from hgrn2.api import Impl, check_impl
from hgrn2.checks import check_gla, check_gla_step
from hgrn2.gate import gla_gate


def gla(
    q: Tensor,
    key: Tensor,
    z: Tensor,
    v: Tensor,
    *,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
    impl: Impl = "reference",
) -> tuple[Tensor, Tensor]:
    """Gated linear attention (arXiv 2312.06635, Eq. 3 and Sec. 4.4), causal.

        S_t = Diag(f_t) S_{t-1} + key_t (x) v_t        y_t = q_t S_t

    Shapes: q, key, z [b t h k], v [b t h v], state [b h k v] (zeros if None).
    Returns y [b t h v] in v's dtype and the final state [b h k v]. 'triton' takes widths k and v of
    16, 32, 64, 128 and 256, and keys below 2^16.
    Raises ValueError for shapes that do not fit and for an unknown or unsupported impl or width.
    """
    check_gla(q, key, z, v, state, lengths)
    check_impl(impl, q)
    if impl == "triton":
        return _triton().gla(q, key, z, v, state=state, lengths=lengths)
    return reference.gated_chunked(q, key, v, gla_gate(z), state=state, lengths=lengths)


def gla_bidirectional(
    q: Tensor,
    key: Tensor,
    z: Tensor,
    v: Tensor,
    *,
    lengths: Tensor | None = None,
    impl: Impl = "reference",
) -> Tensor:
    """Both directions with shared projections: y_t = q_t (S_t^forward + S_t^backward).

    A token's own term enters twice. Shapes and errors as `gla`; returns y.
    """
    check_gla(q, key, z, v, None, lengths)
    check_impl(impl, q)
    if impl == "triton":
        return _triton().gla_bidirectional(q, key, z, v, lengths=lengths)
    return reference.gated_bidirectional(q, key, v, gla_gate(z), lengths=lengths)


def gla_step(
    q: Tensor,
    key: Tensor,
    z: Tensor,
    v: Tensor,
    state: Tensor,
    *,
    impl: Impl = "reference",
) -> tuple[Tensor, Tensor]:
    """One token: q, key, z [b h k], v [b h v], state [b h k v] -> y [b h v], the next state.

    `state` is updated in place and returned; gradients do not flow.
    Raises ValueError for shapes that do not fit and for an unknown or unsupported impl or width.
    """
    check_gla_step(q, key, z, v, state)
    check_impl(impl, q)
    if impl == "triton":
        return _triton().gla_step(q, key, z, v, state)
    return reference.gated_step(q, key, v, gla_gate(z), state)


def _triton() -> ModuleType:
    """HGRN2's kernels with a free key, imported when first asked for: triton is not everywhere."""
    from hgrn2.kernels import gla_ops

    return gla_ops
