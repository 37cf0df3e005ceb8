"""HGRN2's and HGRN1's recurrences from raw forget logits.

Axes: b batch, t time, h heads, k key width, v value width, d channels.

Both take the RAW forget logit z and the lower bound, so that the gate fuses into a kernel and a
wrong key cannot be passed in:

    f_t = bound + (1 - bound) sigmoid(z_t)        key_t = 1 - f_t

`lengths` [b] (int64) marks right padding: at t >= lengths[b] the gates are the identity, so the
final state is the one after the last valid token, and the outputs there are zero.

Inputs are fp64, fp32, fp16 or bf16; arithmetic and states are fp32 (fp64 for fp64 inputs).
"""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from hgrn2 import reference
from hgrn2.checks import check_hgrn1, check_hgrn2, check_projection, check_step, expect
from hgrn2.projection import Activations, split

Impl = Literal["reference", "triton"]
IMPLS: tuple[Impl, ...] = get_args(Impl)
HAS_TRITON = find_spec("triton") is not None


def unsupported(impl: Impl, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the operators' `impl` cannot run there, in words; None when it can."""
    if impl == "reference":
        return None
    if device.type != "cuda":
        return f"impl='triton' needs a CUDA device, not {device}: use impl='reference'"
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return (
            f"impl='triton' takes bfloat16, float16 or float32, not {dtype}: use one of them, or "
            "impl='reference'"
        )
    if not HAS_TRITON:
        return (
            "impl='triton' needs triton, which is not installed: pip install triton, or use "
            "impl='reference'"
        )
    return None


def hgrn2(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    *,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
    impl: Impl = "reference",
) -> tuple[Tensor, Tensor]:
    """HGRN2's state-expanded recurrence (arXiv 2404.07904, Eq. 3), causal.

        S_t = Diag(f_t) S_{t-1} + key_t (x) v_t        y_t = q_t S_t

    Shapes: q, z [b t h k], v [b t h v], bound [h k] in [0, 1), state [b h k v] (zeros if None).
    Returns y [b t h v] in v's dtype and the final state [b h k v].
    Raises ValueError for shapes that do not fit and for an unknown or unsupported impl.
    """
    check_hgrn2(q, z, v, bound, state, lengths)
    check_impl(impl, q)
    if impl == "triton":
        if _is_narrow(q):
            return _triton_narrow().hgrn2_narrow(q, z, v, bound, state=state, lengths=lengths)
        return _triton().hgrn2(q, z, v, bound, state=state, lengths=lengths)
    return reference.hgrn2_chunked(q, z, v, bound, state=state, lengths=lengths)


def hgrn2_bidirectional(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    *,
    lengths: Tensor | None = None,
    impl: Impl = "reference",
) -> Tensor:
    """Both directions with shared projections: y_t = q_t (S_t^forward + S_t^backward).

    A token's own term enters twice, as in the published code. Shapes and errors as `hgrn2`;
    returns y.
    """
    check_hgrn2(q, z, v, bound, None, lengths)
    check_impl(impl, q)
    if impl == "triton":
        if _is_narrow(q):
            return _triton_narrow().hgrn2_narrow_bidirectional(q, z, v, bound, lengths=lengths)
        return _triton().hgrn2_bidirectional(q, z, v, bound, lengths=lengths)
    return reference.hgrn2_bidirectional(q, z, v, bound, lengths=lengths)


def hgrn2_projected(
    x: Tensor,
    bound: Tensor,
    activations: Activations,
    *,
    bidirectional: bool = False,
    lengths: Tensor | None = None,
    impl: Impl = "reference",
) -> Tensor:
    """What a layer runs: `hgrn2`, or `hgrn2_bidirectional`, of the q, z and v in its projection x.

    x [b t 3 h k] holds value, query and forget logit, as `hgrn2.projection.split` takes it apart.
    Returns y [b t h k]. With 'triton' and k >= 16 the backward pass writes x's gradient in place,
    activations included.
    Raises ValueError as `hgrn2` does.
    """
    check_projection(x, bound, lengths)
    check_impl(impl, x)
    if impl == "triton" and not _is_narrow(x):
        run = _triton_projected().hgrn2_projected
        return run(x, bound, activations, bidirectional=bidirectional, lengths=lengths)
    q, z, v = split(x, activations)
    if bidirectional:
        return hgrn2_bidirectional(q, z, v, bound, lengths=lengths, impl=impl)
    return hgrn2(q, z, v, bound, lengths=lengths, impl=impl)[0]


def hgrn2_step(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    state: Tensor,
    *,
    impl: Impl = "reference",
) -> tuple[Tensor, Tensor]:
    """One token: q, z [b h k], v [b h v], state [b h k v] -> y [b h v], the next state.

    `state` is updated in place and returned; gradients do not flow.
    Raises ValueError for shapes that do not fit and for an unknown or unsupported impl.
    """
    check_step(q, z, v, bound, state)
    check_impl(impl, q)
    if impl == "triton":
        if _is_narrow(q):
            return _triton_narrow().hgrn2_narrow_step(q, z, v, bound, state)
        return _triton().hgrn2_step(q, z, v, bound, state)
    return reference.hgrn2_step(q, z, v, bound, state)


def hgrn1(
    v: Tensor,
    z: Tensor,
    bound: Tensor,
    *,
    theta: Tensor | None = None,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
    impl: Impl = "reference",
) -> tuple[Tensor, Tensor]:
    """HGRN1's element-wise recurrence, causal.

        real (theta None):   h_t = f_t h_{t-1} + key_t v_t                    v, h [b t d]
        complex:             h_t = f_t exp(i theta) h_{t-1} + key_t v_t       v, h [b t d 2]

    The last axis of a complex tensor is (real, imaginary). Shapes: z [b t d], bound and theta [d],
    state [b d] or [b d 2] (zeros if None). Returns h in v's dtype and the final state.
    Raises ValueError for shapes that do not fit and for an unknown or unsupported impl.
    """
    check_hgrn1(v, z, bound, theta, state, lengths)
    check_impl(impl, v)
    if impl == "triton":
        return _triton_scan().hgrn1(v, z, bound, theta=theta, state=state, lengths=lengths)
    return reference.hgrn1_scan(v, z, bound, theta=theta, state=state, lengths=lengths)


def hgrn1_bidirectional(
    v: Tensor,
    z: Tensor,
    bound: Tensor,
    *,
    theta: Tensor | None = None,
    theta_backward: Tensor | None = None,
    lengths: Tensor | None = None,
    impl: Impl = "reference",
) -> Tensor:
    """Both directions' states summed, h^forward + h^backward, with shared projections and gates.

    `theta_backward` None: the backward direction turns by `theta` too (the published `Hgru1d` with
    causal=False; the bidirectional module learns a second angle). Returns h, shaped as v.
    Raises ValueError as `hgrn1` does, and for a `theta_backward` without a `theta`.
    """
    check_hgrn1(v, z, bound, theta, None, lengths)
    if theta_backward is not None and theta is None:
        raise ValueError("theta_backward is given, but theta is None; give both, or neither")
    expect("theta_backward", theta_backward, z.shape[-1:], "d")
    check_impl(impl, v)
    if impl == "triton":
        return _triton_scan().hgrn1_bidirectional(
            v, z, bound, theta=theta, theta_backward=theta_backward, lengths=lengths
        )
    return reference.hgrn1_bidirectional(
        v, z, bound, theta=theta, theta_backward=theta_backward, lengths=lengths
    )


def check_impl(impl: Impl, x: Tensor) -> None:
    """Raise ValueError for an impl that is unknown, or cannot run on x's device and dtype."""
    if impl not in IMPLS:
        raise ValueError(f"impl={impl!r} is unknown; it is one of {', '.join(IMPLS)}")
    if (reason := unsupported(impl, x.device, x.dtype)) is not None:
        raise ValueError(reason)


def _triton() -> ModuleType:
    """The kernels, imported when first asked for: triton is not everywhere."""
    from hgrn2.kernels import ops

    return ops


def _triton_projected() -> ModuleType:
    """The same kernels, with a projection's gradient written in place."""
    from hgrn2.kernels import projected

    return projected


def _triton_narrow() -> ModuleType:
    """HGRN2 with few keys a head, on HGRN1's kernels."""
    from hgrn2.kernels import narrow

    return narrow


def _triton_scan() -> ModuleType:
    """The kernels without matrix products, HGRN1's."""
    from hgrn2.kernels import scan_ops

    return scan_ops


def _is_narrow(q: Tensor) -> bool:
    """Whether the key is narrower than a matrix instruction takes; its state is then scanned."""
    return q.shape[-1] < 16
