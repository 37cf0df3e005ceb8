"""Attention's kernels told which tokens the queries are of, under Triton's interpreter.

Run by test_attention_triton.py, as interpreted_attention.py.
"""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from mixers import attention_products
from mixers.attention_products import Products
from mixers.attention_triton import Fused, attend
from mixers.layers import seed_dropout
from tests.mixers.attention_inputs import check, draw, generator, of, results, some
from tests.mixers.interpreted_attention import fused, layer


def products(p: float) -> Products:
    form = Products(p)
    seed_dropout(form, generator(1))
    return form


def alone(form: Fused, at: Tensor, qkv: Tensor) -> Tensor:
    return form.packed(of(at, qkv[:, :, 0]), qkv[:, :, 1:], at=at)


@pytest.mark.parametrize("k", [16, 64])
@pytest.mark.parametrize(
    ("t", "n", "dtype"),
    [
        *((t, n, "fp32") for t, n in ((1, 1), (5, 3), (65, 65), (200, 7), (130, 70))),
        *((t, n, "bf16") for t, n in ((5, 3), (130, 70))),
    ],
)
def test_queries_of_some_tokens(t, n, k, dtype):
    """In any order, against the eager form whose masks are those of the same tokens among all."""
    for h, p in ((1, 0.0), (2, 0.3)):
        at = some(2, t, n)
        qkv, do = draw(2, t, h, k, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
        check(partial(alone, fused(p), at), qkv, do, p, dtype, at)


def test_queries_of_some_tokens_are_those_of_all():
    """Whatever the strides of `at`; bit for bit where it is all of them, in order."""
    qkv, do = draw(2, 130, 2, 16)
    at = some(2, 130, 40)
    separately = fused(0.2)(
        *(of(at, qkv[:, :, 0]), qkv[:, :, 1], qkv[:, :, 2]), causal=True, mask=None, at=at
    )
    for same in (at, at.mT.contiguous().mT):
        assert torch.equal(alone(fused(0.2), same, qkv), separately)
    torch.testing.assert_close(separately, of(at, fused(0.2).packed(qkv)))
    sparse = torch.zeros_like(do).scatter(1, at[..., None, None].expand(-1, -1, 2, 16), of(at, do))
    expected = results(fused(0.2).packed, qkv, sparse)
    for same in (at, at.mT.contiguous().mT):
        found = results(partial(alone, fused(0.2), same), qkv, of(at, do))
        for name in ("dq", "dk", "dv"):
            torch.testing.assert_close(found[name], expected[name])
    everyone = torch.arange(130).expand(2, -1)
    found = results(partial(alone, fused(0.2), everyone), qkv, do)
    for name, x in results(fused(0.2).packed, qkv, do).items():
        assert torch.equal(found[name], x)


@pytest.mark.parametrize(("n_heads", "positions"), [(1, "none"), (2, "none"), (2, "rope")])
def test_a_layer_of_some_tokens(n_heads, positions):
    """Eager and compiled, as `reference`, and as `products` where that takes them."""
    at, x = some(2, 70, 9), torch.randn(2, 70, 32, generator=generator(2))
    found = []
    other = "reference" if positions == "rope" else "products"
    for impl, compiled in (("reference", False), *product((other, "triton"), (False, True))):
        own = layer(impl, dropout=0.2, n_heads=n_heads, positions=positions)
        run = torch.compile(own, backend="aot_eager", fullgraph=True) if compiled else own
        y = run(x, at=at)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad for p in own.parameters())])
    for exact, theirs, compiled_theirs, ours, compiled in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact)
        torch.testing.assert_close(theirs, exact)
        assert torch.equal(theirs, compiled_theirs)
        assert torch.equal(ours, compiled)


def test_a_compiler_meets_one_operator_for_the_gradients_of_products(monkeypatch):
    run_eagerly, calls = attention_products.products_of, []
    monkeypatch.setattr(
        attention_products, "products_of", lambda *x: calls.append(x) or run_eagerly(*x)
    )
    qkv, do = draw(2, 20, 2, 8)
    whole = torch.compile(products(0.3).packed, backend="aot_eager", fullgraph=True)
    found = []
    for run in (whole, products(0.3).packed):
        assert not calls
        leaf = qkv.clone().requires_grad_()
        run(leaf).backward(do)
        found.append(leaf.grad)
    assert len(calls) == 1
    assert torch.equal(*found)


def test_bad_input_is_named():
    qkv, _ = draw(1, 4, 1, 16)
    q, k, v = qkv.unbind(2)
    at = torch.tensor([[0, 2]])
    with pytest.raises(ValueError, match="2 tensors without `at`: q, k, v or"):
        attend(q, qkv[:, :, 1:], state=None, p=0.0)
    with pytest.raises(ValueError, match="1 tensors with `at`: q, k, v or"):
        attend(qkv, state=None, p=0.0, at=at)
    with pytest.raises(ValueError, match=r"at is torch\.int32 \[1, 2\]; for q \[1, 2, 1, 16\] it"):
        attend(q[:, :2], k, v, state=None, p=0.0, at=at.int())
    with pytest.raises(ValueError, match=r"at is torch\.int64 \[1, 2\]; for q .*int64, \[1, 4\]"):
        attend(q, k, v, state=None, p=0.0, at=at)
