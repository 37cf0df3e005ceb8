"""One token: the state is read, decayed, written and read out in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.first_call import enqueue
from hgrn2.kernels.gate import gate, log2_free_gate
from hgrn2.kernels.keys import FreeKey


@triton.jit
def hgrn2_fwd_step_kernel(
    q,
    z,
    v,
    bound,
    free_key,
    state,
    y,
    q_stride_b,
    q_stride_h,
    z_stride_b,
    z_stride_h,
    v_stride_b,
    v_stride_h,
    H,
    K: tl.constexpr,
    V: tl.constexpr,
    BV: tl.constexpr,
):
    """One tile [K BV] of one head's state."""
    program = tl.program_id(0)
    v_tile = program % (V // BV)
    head = program // (V // BV) % H
    batch = (program // (V // BV) // H).to(tl.int64)
    k = tl.arange(0, K)
    value = v_tile * BV + tl.arange(0, BV)
    state += (batch * H + head) * K * V + k[:, None] * V + value[None, :]
    S = tl.load(state)
    z_k = tl.load(z + batch * z_stride_b + head * z_stride_h + k).to(tl.float32)
    q_k = tl.load(q + batch * q_stride_b + head * q_stride_h + k).to(tl.float32)
    v_v = tl.load(v + batch * v_stride_b + head * v_stride_h + value).to(tl.float32)
    if free_key is None:
        _, _, key, f = gate(z_k, tl.load(bound + head * K + k))
    else:
        pointer, stride_b, stride_h = free_key
        key = tl.load(pointer + batch * stride_b + head * stride_h + k).to(tl.float32)
        f = tl.exp2(log2_free_gate(z_k, False))
    S = f[:, None] * S + key[:, None] * v_v[None, :]
    tl.store(state, S)
    read_out = tl.sum(q_k[:, None] * S, 0)
    tl.store(y + (batch * H + head) * V + value, read_out.to(y.dtype.element_ty))


def step(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor | None,
    free_key: FreeKey | None,
    state: Tensor,
) -> Tensor:
    """y [b h v] of one token, q, z [b h k], v [b h v]; fp32 state [b h k v] changes in place.

    bound [h k] or free_key [b h k], as `keys` has them.
    """
    b, h, k = q.shape
    width = v.shape[-1]
    y = v.new_empty((b, h, width))
    # Batch 1 needs many small programs to fill the device.
    tile = min(width, 16 if b * h * (width // 64 or 1) < 256 else 32)
    with torch.cuda.device_of(q):
        enqueue(
            hgrn2_fwd_step_kernel,
            b * h * (width // tile),
            q,
            z,
            v,
            bound,
            free_key,
            state,
            y,
            *q.stride()[:2],
            *z.stride()[:2],
            *v.stride()[:2],
            h,
            K=k,
            V=width,
            BV=tile,
            num_warps=4,
        )
    return y
