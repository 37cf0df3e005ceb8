"""HGRN2 with few keys a head, as a scan over every key with every value.

Axes: b batch, t time, h heads, k key width, v value width.
"""

from __future__ import annotations

from torch import Tensor

from hgrn2.kernels.scan_heads import GROUP, Heads
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

    q, z [b t h k], v [b t h v]: k up to 32, any v. The states are read out in fp32. Raises
    ValueError for a dtype that the kernels do not take, and for more keys.
    """
    return _run(q, z, v, bound, state, lengths, both=False)


def hgrn2_narrow_bidirectional(
    q: Tensor, z: Tensor, v: Tensor, bound: Tensor, *, lengths: Tensor | None = None
) -> Tensor:
    """Both directions of `hgrn2_narrow`; as `hgrn2.hgrn2_bidirectional`."""
    return _run(q, z, v, bound, None, lengths, both=True)[0]


def hgrn2_narrow_step(
    q: Tensor, z: Tensor, v: Tensor, bound: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of `hgrn2_narrow`: q, z [b h k], v [b h v]; state [b h k v] is updated in place."""
    token = (x.detach()[:, None] for x in (q, z, v))
    y, last = hgrn2_narrow(*token, bound.detach(), state=state.detach())
    return y[:, 0], state.copy_(last)


def _run(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    state: Tensor | None,
    lengths: Tensor | None,
    *,
    both: bool,
) -> tuple[Tensor, Tensor]:
    """y [b t h v] and the last state [b h k v], fp32."""
    check_dtypes(q, z)
    check_dtypes(v, z)
    heads = Heads(*z.shape[2:], v.shape[-1])
    if heads.keys > GROUP:
        raise ValueError(f"q has {heads.keys} keys a head; the narrow scan takes up to {GROUP}")
    first = None if state is None else heads.to_channels(state)
    each = heads.to_channels(bound[..., None].expand(*bound.shape, heads.values))
    inputs = (v.flatten(2), z.flatten(2), each, None, None, q.flatten(2))
    y, last = run_scan(*inputs, first, lengths, heads.keys, both)
    return y.view(v.shape), heads.from_channels(last)
