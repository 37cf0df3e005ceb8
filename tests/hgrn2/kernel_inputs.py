"""Inputs of the interpreted kernels' tests, their fp64 oracle, and the bar that they have to pass.

Tolerance: an exponent is a sum of log2 gates of up to 126 bits, rounded to fp32 at 2^-24 of its
size, so a factor 2^x is off by at most 126 ln 2 2^-24 = 5.2e-6, and a score holds two factors. A
log gate's gradient is the difference of two such sums over a chunk of 64 tokens, in which the
errors add up to at most 64 of that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hgrn2.gate import gate
from hgrn2.kernels import ops
from hgrn2.reference import gated_bidirectional, gated_recurrent

FACTOR_ERROR = 126 * 0.6931 * 2**-24
TOLERANCE = {"dz": 64 * FACTOR_ERROR, "dbound": 64 * FACTOR_ERROR}

# regime -> logits [b t h k] from a generator
REGIMES = {
    "ordinary": lambda r: r,
    "spread": lambda r: 4 * r,
    "open": lambda r: r + 20,
    "closed": lambda r: r - 50,
    "mixture": lambda r: torch.where(r < 0, -20.0, 6.0),
    "resets": lambda r: torch.where(r < -1.5, -30.0, 8.0),
    "shut": lambda r: r - 20,
    # Jumps of 95 bits out of wide-open gates.
    "taps": lambda r: torch.where(r < -2, -66.0, 14.0 + r),
    # Too far for a chunk's anchor: two spans or three, and in `ravine` jumps of 43 bits.
    "leaning": lambda r: 0.3 * r - 3,
    "ravine": lambda r: torch.where(r < -1.5, -30.0, 0.3 * r - 3),
}


def draw(b: int, t: int, h: int, k: int, v: int, regime: str, bound: float, seed: int = 0):
    """Inputs q, z, v, bound, state and the outputs' gradients dy, dlast, in fp32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    z = REGIMES[regime](normal(b, t, h, k))
    tensors = normal(b, t, h, k), z, normal(b, t, h, v), torch.full((h, k), bound)
    return *tensors, normal(b, h, k, v), normal(b, t, h, v), normal(b, h, k, v)


def oracle(q, z, v, bound, state, dy, dlast, lengths=None) -> dict[str, Tensor]:
    """Results and gradients in fp64; dz and dbound by the closed forms of the gate's derivative,
    since autograd's sigmoid' = s (1 - s) is 0 where s rounds to 1."""
    f, key = gate(z.double(), bound.double())
    leaves = [x.detach().double().requires_grad_() for x in (q, key, v, f)]
    if state is None:
        y = gated_bidirectional(*leaves, lengths=lengths)
        loss, results = (y * dy).sum(), {"y": y}
    else:
        leaves.append(state.double().requires_grad_())
        y, last = gated_recurrent(*leaves[:4], state=leaves[4], lengths=lengths)
        loss, results = (y * dy).sum() + (last * dlast).sum(), {"y": y, "last": last}
    loss.backward()
    to_f = leaves[3].grad - leaves[1].grad
    results |= {"dq": leaves[0].grad, "dv": leaves[2].grad}
    results["dz"] = key * torch.sigmoid(z.double()) * to_f
    results["dbound"] = (torch.sigmoid(-z.double()) * to_f).sum((0, 1))
    if state is not None:
        results["dstate"] = leaves[4].grad
    return {name: x.detach() for name, x in results.items()}


def kernels(q, z, v, bound, state, dy, dlast, lengths=None) -> dict[str, Tensor]:
    leaves = [x.clone().requires_grad_() for x in (q, z, v, bound)]
    if state is None:
        y = ops.hgrn2_bidirectional(*leaves, lengths=lengths)
        loss, results = (y * dy).sum(), {"y": y}
    else:
        leaves.append(state.clone().requires_grad_())
        y, last = ops.hgrn2(*leaves[:4], state=leaves[4], lengths=lengths)
        loss, results = (y * dy).sum() + (last * dlast).sum(), {"y": y, "last": last}
    loss.backward()
    names = ("dq", "dz", "dv", "dbound", "dstate")
    results |= {name: x.grad for name, x in zip(names, leaves, strict=False)}
    return {name: x.detach() for name, x in results.items()}


def check(
    found: dict[str, Tensor],
    expected: dict[str, Tensor],
    skip: tuple[str, ...] = (),
    scale: float = 1.0,
):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        if name in skip:
            continue
        error = (found[name].double() - x).norm() / x.norm().clamp_min(1e-30)
        assert error <= scale * TOLERANCE.get(name, 2 * FACTOR_ERROR), f"{name}: error {error:.1e}"
