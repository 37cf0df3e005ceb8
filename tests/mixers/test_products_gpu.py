"""Attention by torch's products on a GPU, whose products and autocast are others than a CPU's."""

from __future__ import annotations

import pytest
import torch

from mixers import Attention
from mixers.attention_products import Products
from mixers.layers import seed_dropout
from tests.mixers.attention_inputs import DTYPES, ROUNDING, check, draw, generator, some

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # fp32 without TF32 is what some of these compile on purpose.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]


@pytest.mark.parametrize("compiled", [False, True])
def test_wide_heads_by_torchs_products(compiled, precision):
    """Whose gradients torch writes into one stack, strided."""
    for h, k in ((1, 512), (2, 192)):
        qkv, do = draw(4, 128, h, k, dtype=DTYPES[precision], device="cuda")
        form = Products(0.1)
        seed_dropout(form, generator(1, "cuda"))
        run = torch.compile(form.packed, fullgraph=True, dynamic=False) if compiled else form.packed
        check(run, qkv, do, 0.1, precision)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("n_heads", [1, 2])
@pytest.mark.parametrize("asked", [None, 7])
def test_a_layer_agrees_with_the_reference(asked, n_heads, autocast, compiled):
    """Of all tokens and of some, outputs, gradients and dropout's state; by it Figure 3's shapes
    are timed."""
    at = None if asked is None else some(16, 200, asked, "cuda")
    x = torch.randn(16, 200, 384, generator=generator(2, "cuda"), device="cuda")
    found = []
    for impl in ("products", "reference"):
        mixer = Attention(impl=impl, n_heads=n_heads, dropout=0.1)
        layer = mixer.stack(384, 1, causal=True, generator=generator(0, "cuda"))[0]
        seed_dropout(layer, generator(1, "cuda"))
        whole = compiled and impl == "products"
        run = torch.compile(layer, fullgraph=True, dynamic=False) if whole else layer
        leaf = x.clone().requires_grad_()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            y = run(leaf, at=at)
        assert y.dtype == (torch.bfloat16 if autocast else torch.float32)
        gradients = torch.autograd.grad(y.float().square().sum(), [leaf, *layer.parameters()])
        found.append([layer.get_buffer("attend.dropout.state"), y.detach(), *gradients])
    (state, *ours), (expected, *theirs) = found
    assert torch.equal(state, expected)
    # A rounding for each of a sum's channels and tokens; in bf16 of a few maps in a row.
    allowed = 8 * 2**-8 if autocast else (384 + 200) * ROUNDING["tf32x3"]
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= allowed * other.norm()
