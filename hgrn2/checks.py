"""Whether an operator's inputs fit together.

Each raises a ValueError that names the input, its shape or dtype, and what it should be.
"""

from __future__ import annotations

from torch import Tensor


def expect(name: str, x: Tensor | None, shape: tuple[int, ...], axes: str) -> None:
    if x is None:
        return
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} has shape {list(x.shape)}; it should be [{axes}] = {list(shape)}")
    if name == "lengths" and (x.is_floating_point() or x.is_complex()):
        raise ValueError(f"lengths has dtype {x.dtype}; it should be an integer type")
    if name != "lengths" and not x.is_floating_point():
        raise ValueError(f"{name} has dtype {x.dtype}; it should be a real floating-point type")


def check_hgrn2(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    state: Tensor | None,
    lengths: Tensor | None,
) -> None:
    _check_gated(q, z, v, state, lengths)
    expect("bound", bound, (q.shape[2], q.shape[3]), "h k")


def check_gla(
    q: Tensor,
    key: Tensor,
    z: Tensor,
    v: Tensor,
    state: Tensor | None,
    lengths: Tensor | None,
) -> None:
    _check_gated(q, z, v, state, lengths)
    expect("key", key, tuple(q.shape), "b t h k")


def _check_gated(
    q: Tensor, z: Tensor, v: Tensor, state: Tensor | None, lengths: Tensor | None
) -> None:
    if q.ndim != 4 or v.ndim != 4:
        raise ValueError(
            f"q has shape {list(q.shape)} and v {list(v.shape)}; "
            "they should be [b t h k] and [b t h v]"
        )
    b, t, h, k = q.shape
    _check_length("q", q)
    expect("q", q, (b, t, h, k), "b t h k")
    expect("z", z, (b, t, h, k), "b t h k")
    expect("v", v, (b, t, h, v.shape[-1]), "b t h v")
    expect("state", state, (b, h, k, v.shape[-1]), "b h k v")
    expect("lengths", lengths, (b,), "b")


def check_projection(x: Tensor, bound: Tensor, lengths: Tensor | None) -> None:
    if x.ndim != 5 or x.shape[2] != 3:
        raise ValueError(f"x has shape {list(x.shape)}; it should be [b t 3 h k]")
    b, _, _, h, k = x.shape
    _check_length("x", x)
    expect("x", x, tuple(x.shape), "b t 3 h k")
    expect("bound", bound, (h, k), "h k")
    expect("lengths", lengths, (b,), "b")


def check_step(q: Tensor, z: Tensor, v: Tensor, bound: Tensor, state: Tensor) -> None:
    _check_gated_step(q, z, v, state)
    expect("bound", bound, (q.shape[1], q.shape[2]), "h k")


def check_gla_step(q: Tensor, key: Tensor, z: Tensor, v: Tensor, state: Tensor) -> None:
    _check_gated_step(q, z, v, state)
    expect("key", key, tuple(q.shape), "b h k")


def _check_gated_step(q: Tensor, z: Tensor, v: Tensor, state: Tensor) -> None:
    if q.ndim != 3 or v.ndim != 3:
        raise ValueError(
            f"q has shape {list(q.shape)} and v {list(v.shape)}; they should be [b h k] and [b h v]"
        )
    b, h, k = q.shape
    expect("q", q, (b, h, k), "b h k")
    expect("z", z, (b, h, k), "b h k")
    expect("v", v, (b, h, v.shape[-1]), "b h v")
    expect("state", state, (b, h, k, v.shape[-1]), "b h k v")


def check_hgrn1(
    v: Tensor,
    z: Tensor,
    bound: Tensor,
    theta: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
) -> None:
    if z.ndim != 3:
        raise ValueError(f"z has shape {list(z.shape)}; it should be [b t d]")
    b, t, d = z.shape
    _check_length("z", z)
    pair = () if theta is None else (2,)
    axes = "" if theta is None else " 2"
    expect("z", z, (b, t, d), "b t d")
    expect("v", v, (b, t, d, *pair), f"b t d{axes}")
    expect("bound", bound, (d,), "d")
    expect("theta", theta, (d,), "d")
    expect("state", state, (b, d, *pair), f"b d{axes}")
    expect("lengths", lengths, (b,), "b")


def _check_length(name: str, x: Tensor) -> None:
    if x.shape[1] == 0:
        raise ValueError(f"{name} has shape {list(x.shape)}; t should be at least 1")
