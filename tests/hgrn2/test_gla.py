"""GLA's operator by the reference: the recurrence with sigmoid(z)^(1/16), in all its forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hgrn2 import gla, gla_bidirectional, gla_step
from hgrn2.reference import gated_recurrent
from tests.hgrn2.operator_inputs import F64, outputs_and_gradients, randn, relative_error

# Products and sums of some hundred factors and terms in fp64.
FP64_TOLERANCE = 1e-12
PADDED = torch.tensor([90, 65, 1])


def inputs(b: int, t: int, h: int, k: int, v: int) -> list[Tensor]:
    """q, key, z, v, state in fp64."""
    q, key, z = (randn(b, t, h, k, seed=seed) for seed in range(3))
    return [q, key, 8 * z, randn(b, t, h, v, seed=3), randn(b, h, k, v, seed=4)]


@pytest.mark.parametrize("lengths", [None, PADDED])
def test_gla_is_its_recurrence(lengths):
    def ours(q, key, z, v, state):
        return gla(q, key, z, v, state=state, lengths=lengths)

    def loop(q, key, z, v, state):
        f = torch.sigmoid(z) ** (1 / 16)
        return gated_recurrent(q, key, v, f, state=state, lengths=lengths)

    leaves = inputs(3, 90, 2, 4, 3)
    pairs = zip(
        outputs_and_gradients(ours, leaves), outputs_and_gradients(loop, leaves), strict=True
    )
    assert max(relative_error(x, y) for x, y in pairs) < FP64_TOLERANCE


@pytest.mark.parametrize("lengths", [None, PADDED])
def test_both_directions_are_two_causal_runs(lengths):
    *leaves, _ = inputs(3, 90, 2, 4, 3)
    y = gla_bidirectional(*leaves, lengths=lengths)
    for n, length in enumerate([90] * 3 if lengths is None else lengths.tolist()):
        row = [x[n : n + 1, :length] for x in leaves]
        forward, _ = gla(*row)
        backward, _ = gla(*(x.flip(1) for x in row))
        assert relative_error(y[n : n + 1, :length], forward + backward.flip(1)) < FP64_TOLERANCE
        assert not y[n, length:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64], ids=str)
def test_steps_are_the_forward(dtype):
    *leaves, _ = (x.to(dtype) for x in inputs(2, 20, 2, 4, 3))
    wide = F64 if dtype == F64 else torch.float32
    y, last = gla(*leaves)
    state, steps = torch.zeros(2, 2, 4, 3, dtype=wide), []
    for t in range(20):
        out, after = gla_step(*(x[:, t] for x in leaves), state)
        assert after is state
        assert out.dtype == dtype
        steps.append(out)
    # Each form rounds its own way in the arithmetic's dtype, then once to the output's.
    tolerance = 20 * torch.finfo(wide).eps + torch.finfo(dtype).eps
    assert relative_error(torch.stack(steps, dim=1), y) < tolerance
    assert relative_error(state, last) < 20 * torch.finfo(wide).eps


def test_triton_asks_for_a_gpu():
    *leaves, state = (x.float() for x in inputs(1, 5, 1, 16, 16))
    for run in (gla, gla_bidirectional):
        with pytest.raises(ValueError, match="impl='triton' needs a CUDA device"):
            run(*leaves, impl="triton")
    with pytest.raises(ValueError, match="impl='triton' needs a CUDA device"):
        gla_step(*(x[:, 0] for x in leaves), state, impl="triton")
