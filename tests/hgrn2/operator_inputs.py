"""Inputs and error measures that the operators' tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

F64 = torch.float64
Z_VALUES = torch.tensor([-50.0, -20.0, 0.0, 20.0, 60.0], dtype=F64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def _near(value: float) -> Callable[[Tensor], Tensor]:
    return lambda noise: value + noise


def _mixed(noise: Tensor) -> Tensor:
    """Any of the values for every token and channel: all of them within a few tokens."""
    pick = torch.randint(len(Z_VALUES), noise.shape, generator=generator(7))
    return Z_VALUES[pick] + noise


def _alternating(noise: Tensor) -> Tensor:
    odd = torch.arange(noise.shape[1]) % 2 == 1
    return torch.where(odd.view(-1, *(1,) * (noise.ndim - 2)), 6.0, -20.0) + noise


# From a standard normal draw [b t ...] to the forget logits z.
REGIMES: dict[str, Callable[[Tensor], Tensor]] = {
    "z=-50": _near(-50.0),
    "z=-20": _near(-20.0),
    "z=0": _near(0.0),
    "z=+20": _near(20.0),
    "z=+60": _near(60.0),
    "mixed": _mixed,
    "alternating": _alternating,
}
BOUNDS = (0.0, 1e-6, 0.1, 0.5, 0.99)


def hgrn2_inputs(
    b: int, t: int, h: int, k: int, v: int, *, regime: str = "z=0", bound: float = 0.1
) -> list[Tensor]:
    """q, z, v, bound, state in fp64."""
    z = REGIMES[regime](randn(b, t, h, k, seed=1))
    q, values, state = (
        randn(b, t, h, k, seed=0),
        randn(b, t, h, v, seed=2),
        randn(b, h, k, v, seed=3),
    )
    return [q, z, values, torch.full((h, k), bound, dtype=F64), state]


def outputs_and_gradients(
    form: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> list[Tensor]:
    """What `form` returns, and the gradients of the inputs of one fixed linear function of it."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    outputs = form(*inputs)
    weights = [randn(*y.shape, seed=11 + i).to(y.dtype) for i, y in enumerate(outputs)]
    gradients = torch.autograd.grad(
        outputs, inputs, weights, materialize_grads=True, allow_unused=True
    )
    return [y.detach() for y in outputs] + list(gradients)


def relative_error(x: Tensor, true: Tensor) -> float:
    """The norm of the error over the norm of the truth; an error where the truth is zero is inf."""
    assert torch.isfinite(x).all()
    error = (x.to(F64) - true.to(F64)).norm().item()
    return error / true.to(F64).norm().item() if true.any() else (torch.inf if error else 0.0)


def worst_error(found: Iterable[Tensor], true: Iterable[Tensor]) -> float:
    return max(relative_error(x, y) for x, y in zip(found, true, strict=True))
