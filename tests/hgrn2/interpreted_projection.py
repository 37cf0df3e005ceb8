"""A projection's gradient, written in place, under the interpreter; see interpreted_kernels.py.

Its tolerances hold as they are: an activation's slope adds a rounding or two of fp32.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hgrn2 import Activations, hgrn2_projected
from hgrn2.kernels import projected
from hgrn2.projection import split
from tests.hgrn2.kernel_inputs import REGIMES, check

assert os.environ.get("TRITON_INTERPRET") == "1"

ACTIVATIONS = [Activations("silu", silu_value=False), Activations("sigmoid", silu_value=True)]


def run(operator, x: Tensor, bound: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x, bound = x.clone().requires_grad_(), bound.clone().requires_grad_()
    y = operator(x, bound)
    y.backward(dy)
    assert x.grad is not None
    assert bound.grad is not None
    dv, dq, dz = x.grad.unbind(2)
    results = {"y": y, "dv": dv, "dq": dq, "dz": dz, "dbound": bound.grad}
    return {name: result.detach() for name, result in results.items()}


@pytest.mark.parametrize("activations", ACTIVATIONS, ids=["lm", "biased"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("regime", "bound"), [("ordinary", 0.3), ("leaning", 1e-3)])
def test_the_gradient_in_place_follows_the_oracle(activations, bidirectional, regime, bound):
    """`leaning` chunks are deep."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 100, 3, 2, 16, generator=generator)
    x[:, :, 2] = REGIMES[regime](x[:, :, 2])
    dy = torch.randn(2, 100, 2, 16, generator=generator)
    options = {"bidirectional": bidirectional, "lengths": torch.tensor([100, 37])}
    bounds = torch.full((2, 16), bound)

    found = run(lambda x, b: projected.hgrn2_projected(x, b, activations, **options), x, bounds, dy)
    expected = run(
        lambda x, b: hgrn2_projected(x, b, activations, **options),
        x.double(),
        bounds.double(),
        dy.double(),
    )
    check(found, expected)
    assert not any(found[name][1, 37:].any() for name in ("y", "dq", "dz", "dv"))


@pytest.mark.parametrize("activations", ACTIVATIONS, ids=["lm", "biased"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_compiled_without_a_break(activations, bidirectional):
    """Custom operators there, a plain autograd function in eager mode: the same bits."""
    x, bound = torch.randn(2, 70, 3, 2, 16), torch.full((2, 16), 0.2)
    options = {"bidirectional": bidirectional, "lengths": torch.tensor([70, 37])}

    def call(x: Tensor, bound: Tensor) -> Tensor:
        return projected.hgrn2_projected(x, bound, activations, **options)

    dy = torch.randn(2, 70, 2, 16)
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    found, expected = (run(operator, x, bound, dy) for operator in (compiled, call))
    for name, result in found.items():
        assert torch.equal(result, expected[name]), name
    with torch.no_grad():
        assert torch.equal(compiled(x, bound), expected["y"])


def test_the_custom_operators_are_what_they_say():
    """Shapes, strides and mutations, as torch checks them; without gradients too."""
    x, bound = torch.randn(1, 70, 3, 2, 16), torch.full((2, 16), 0.2)
    q, _, v = split(x, ACTIVATIONS[1])
    inputs = (x, q, v, bound, None, *ACTIVATIONS[1], False)
    torch.library.opcheck(
        torch.ops.hgrn2.projected, (*inputs, False), test_utils=("test_schema", "test_faketensor")
    )
    leaves = (x.clone().requires_grad_(), q, v, bound.clone().requires_grad_(), *inputs[4:], True)
    torch.library.opcheck(torch.ops.hgrn2.projected, leaves)
    y, *kept = torch.ops.hgrn2.projected(x, q, v, bound, None, *ACTIVATIONS[1], False, True)
    inputs = (x, q, v, bound, None, *kept, torch.randn_like(y), *ACTIVATIONS[1], False)
    torch.library.opcheck(
        torch.ops.hgrn2.projected_backward, inputs, test_utils=("test_schema", "test_faketensor")
    )


def test_a_view_of_a_wider_projection_and_no_gradient(monkeypatch):
    # Some CPUs round torch's own silu of a view otherwise than of what is contiguous.
    monkeypatch.setattr(functional, "silu", lambda x, silu=functional.silu: silu(x.contiguous()))
    wide = torch.randn(1, 70, 3, 2, 24)
    bound = torch.full((2, 16), 0.2)
    options = {"bidirectional": False, "lengths": None}
    x = wide[..., :16]
    y = projected.hgrn2_projected(x, bound, ACTIVATIONS[0], **options)
    leaf = x.contiguous().requires_grad_()
    same = projected.hgrn2_projected(leaf, bound, ACTIVATIONS[0], **options)
    assert torch.equal(y, same)
    view = x.detach().requires_grad_()
    dy = torch.randn_like(y)
    projected.hgrn2_projected(view, bound, ACTIVATIONS[0], **options).backward(dy)
    same.backward(dy)
    assert view.grad is not None
    assert leaf.grad is not None
    assert torch.equal(view.grad, leaf.grad)


def test_a_width_that_the_kernels_do_not_take_is_named():
    x, bound = torch.zeros(1, 4, 3, 1, 96), torch.zeros(1, 96)
    with pytest.raises(ValueError, match="k=96: impl='triton' takes widths 16, 32"):
        projected.hgrn2_projected(x, bound, ACTIVATIONS[0], bidirectional=False, lengths=None)
