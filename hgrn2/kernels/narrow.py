"""HGRN2 with few keys a head, as a scan over every key with every value.

Axes: b batch, t time, h heads, k key width, v value width.
"""

from __future__ import annotations

from torch import Tensor

from hgrn2.kernels.scan_ops import check_dtypes, run_scan


def hgrn2_narrow(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    *,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """HGRN2 with few keys a head as a scan over h * k * v channels; as `hgrn2.hgrn2`.

    q, z [b t h k], v [b t h v]: any widths. The states are read out in fp32. Raises ValueError for
    a dtype that the kernels do not take.
    """
    flat = None if state is None else state.flatten(1)
    h, last = _heads(q, z, v, bound, flat, lengths, both=False)
    return _read_out(q, h, v), last.view(z.shape[0], *z.shape[2:], v.shape[-1])


def hgrn2_narrow_bidirectional(
    q: Tensor, z: Tensor, v: Tensor, bound: Tensor, *, lengths: Tensor | None = None
) -> Tensor:
    """Both directions of `hgrn2_narrow`; as `hgrn2.hgrn2_bidirectional`."""
    return _read_out(q, _heads(q, z, v, bound, None, lengths, both=True)[0], v)


def hgrn2_narrow_step(
    q: Tensor, z: Tensor, v: Tensor, bound: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of `hgrn2_narrow`: q, z [b h k], v [b h v]; state [b h k v] is updated in place."""
    token = (x.detach()[:, None] for x in (q, z, v))
    y, last = hgrn2_narrow(*token, bound.detach(), state=state.detach())
    return y[:, 0], state.copy_(last)


def _heads(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    state: Tensor | None,
    lengths: Tensor | None,
    *,
    both: bool,
) -> tuple[Tensor, Tensor]:
    """h [b t (h k v)] and the last state [b (h k v)], fp32, so that h is not rounded before it is
    read out: every key with every value."""
    check_dtypes(q, z)
    check_dtypes(v, z)
    k, width = z.shape[-1], v.shape[-1]
    each = bound[..., None].expand(*bound.shape, width).flatten()
    none = (None, None)
    return run_scan(v.flatten(2), z.flatten(2), each, *none, state, lengths, k, width, both)


def _read_out(q: Tensor, h: Tensor, v: Tensor) -> Tensor:
    """y_t = q_t S_t in v's dtype; h [b t (h k v)] holds the states."""
    S = h.unflatten(2, (*q.shape[2:], v.shape[-1]))
    return (q[..., None] * S).sum(-2).to(v.dtype)
