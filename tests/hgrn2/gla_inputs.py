"""Inputs of GLA's kernels' tests and their fp64 oracle; kernel_inputs.py derives the bar."""

from __future__ import annotations

import torch
from torch import Tensor

from hgrn2.gate import GLA_TEMPERATURE, gla_gate
from hgrn2.kernels import gla_ops
from hgrn2.reference import gated_bidirectional, gated_recurrent

# regime -> logits [b t h k] from a generator. A gate is a half at -11, and a chunk is deep where 64
# tokens decay by 112 bits: from logits of -19 on.
REGIMES = {
    "ordinary": lambda r: r,
    "spread": lambda r: 4 * r,
    "open": lambda r: r + 20,
    "nearly": lambda r: 0.1 * r - 18,
    "resets": lambda r: torch.where(r < -1.5, -500.0, 8.0),
    # Deep: two spans or three; jumps of 43 bits; and gates that let nothing through.
    "leaning": lambda r: GLA_TEMPERATURE * (0.3 * r - 3),
    "ravine": lambda r: GLA_TEMPERATURE * torch.where(r < -1.5, -30.0, 0.3 * r - 3),
    "closed": lambda r: GLA_TEMPERATURE * (r - 50),
    "low": lambda r: torch.where(r < -1.5, 30 * r - 140, 8.0),
    "held": lambda r: torch.where(r < -1.5, -1e4, r),
}
NAMES = ("q", "key", "z", "v", "state")


def draw(
    b: int,
    t: int,
    h: int,
    k: int,
    v: int,
    regime: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Inputs and the outputs' gradients dy, dlast: states in fp32."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    return {
        "q": normal(b, t, h, k).to(dtype),
        "key": normal(b, t, h, k).to(dtype),
        "z": REGIMES[regime](normal(b, t, h, k)).to(dtype),
        "v": normal(b, t, h, v).to(dtype),
        "state": normal(b, h, k, v),
        "dy": normal(b, t, h, v).to(dtype),
        "dlast": normal(b, h, k, v),
    }


def oracle(
    case: dict[str, Tensor], *, lengths: Tensor | None = None, bidirectional: bool = False
) -> dict[str, Tensor]:
    """Results and gradients in fp64, token by token where there is one direction."""
    leaves = {name: case[name].double().requires_grad_() for name in NAMES}
    q, key, z, v, state = leaves.values()
    if bidirectional:
        y, last = gated_bidirectional(q, key, v, gla_gate(z), lengths=lengths), None
    else:
        y, last = gated_recurrent(q, key, v, gla_gate(z), state=state, lengths=lengths)
    return _with_gradients(case, leaves, y, last)


def kernels(
    case: dict[str, Tensor], *, lengths: Tensor | None = None, bidirectional: bool = False
) -> dict[str, Tensor]:
    leaves = {name: case[name].clone().requires_grad_() for name in NAMES}
    q, key, z, v, state = leaves.values()
    if bidirectional:
        y, last = gla_ops.gla_bidirectional(q, key, z, v, lengths=lengths), None
    else:
        y, last = gla_ops.gla(q, key, z, v, state=state, lengths=lengths)
    return _with_gradients(case, leaves, y, last)


def _with_gradients(
    case: dict[str, Tensor], leaves: dict[str, Tensor], y: Tensor, last: Tensor | None
) -> dict[str, Tensor]:
    loss, results = (y * case["dy"]).sum(), {"y": y.detach()}
    if last is not None:
        loss, results["last"] = loss + (last * case["dlast"]).sum(), last.detach()
    wanted = {name: x for name, x in leaves.items() if name != "state" or last is not None}
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    return results | {f"d{name}": x for name, x in zip(wanted, gradients, strict=True)}
