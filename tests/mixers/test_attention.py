"""Attention: both implementations, rotary positions, seeded dropout."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mixers import Attention
from mixers.attention_eager import rope
from mixers.attention_products import Products, compiled_products
from mixers.layers import seed_dropout
from tests.mixers.attention_inputs import DTYPES, check, draw, of
from tests.mixers.test_contract import D, assert_close, decoded, generator, moved, tokens


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("positions", ["none", "rope"])
def test_attention_by_sdpa_is_attention_by_hand(causal, positions):
    ours, exact = (
        moved(Attention(impl=impl, n_heads=2, positions=positions), causal=causal)
        for impl in ("sdpa", "reference")
    )
    x, lengths = tokens(3, 40), torch.tensor([40, 7, 1])
    assert_close(ours(x), exact(x))
    for row, n in enumerate(lengths):
        ours_row = ours(x, lengths=lengths)[row : row + 1, :n]
        assert_close(ours_row, exact(x, lengths=lengths)[row : row + 1, :n])


def test_a_forced_kernel_runs_or_nothing_does():
    """torch has a flash kernel for CPUs too, and none of cuDNN's."""
    x, exact = tokens(2, 40), moved(Attention(n_heads=2))
    flash = moved(Attention(impl="sdpa_flash", n_heads=2))
    assert_close(flash(x), exact(x))
    with pytest.raises(ValueError, match=r"'sdpa_flash' takes no mask.*use impl = 'sdpa'"):
        flash.step(x[:, 0], flash.start(2, 40))
    with pytest.raises(RuntimeError, match=r"No available kernel|No viable backend"):
        moved(Attention(impl="sdpa_cudnn", n_heads=2))(x)


@pytest.mark.parametrize("impl", ["sdpa_flash", "sdpa_cudnn"])
def test_what_a_forced_kernel_needs_is_named(impl, monkeypatch):
    mixer = Attention(impl=impl)
    reason = mixer.unsupported(torch.device("cpu"), torch.bfloat16)
    assert reason == f"impl='{impl}' needs a CUDA device, not cpu: use impl='sdpa'"
    gpu = torch.device("cuda")
    assert "not torch.float32" in str(mixer.unsupported(gpu, torch.float32))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    assert "needs a torch" in str(mixer.unsupported(gpu, torch.bfloat16))
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    assert mixer.unsupported(gpu, torch.bfloat16) is None


def test_the_kernel_that_torch_picks_is_known():
    size = {"device": torch.device("cpu"), "dtype": torch.float32, "backward": True}
    named = {
        impl: Attention(impl=impl).backend(32, 2, 40, **size)
        for impl in ("sdpa", "sdpa_flash", "sdpa_cudnn", "reference")
    }
    assert named == {"sdpa": "flash", "sdpa_flash": "flash", "sdpa_cudnn": "cudnn"} | {
        "reference": None
    }
    with sdpa_kernel(SDPBackend.MATH):
        assert Attention().backend(32, 2, 40, **size) == "math"


def test_rope_sees_distances_alone():
    q, k = tokens(2, 9).unflatten(-1, (2, -1)), tokens(2, 10)[:, 1:].unflatten(-1, (2, -1))
    position = torch.arange(9)

    def scores(shift: int) -> Tensor:
        turned = (rope(x, position + shift) for x in (q, k))
        return torch.einsum("bihk,bjhk->bhij", *turned)

    # An angle near 1000 radians is itself off by half a unit in its last place.
    torch.testing.assert_close(scores(1000), scores(0), rtol=0, atol=1000 * 2**-52 * 64)
    unturned = torch.einsum("bihk,bjhk->bhij", q, k)
    torch.testing.assert_close(scores(0).diagonal(0, -2, -1), unturned.diagonal(0, -2, -1))
    assert (scores(0) - unturned).abs().max() > 0.1


def test_attention_dropout_draws_from_its_own_generator():
    layer, x = moved(Attention(impl="reference", dropout=0.5)), tokens(2, 20)
    with pytest.raises(RuntimeError, match="seed_dropout"):
        layer(x)
    before, drawn = torch.get_rng_state(), []
    for seed in (1, 1, 2):
        seed_dropout(layer, generator(seed))
        drawn.append(layer(x))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), before)
    plain = moved(Attention(impl="reference"))
    assert torch.equal(layer.eval()(x), plain(x))


def sparse(x: Tensor, at: Tensor) -> Tensor:
    """x [b n d] at its tokens among zeros."""
    return torch.zeros(2, 20, D, dtype=x.dtype).scatter(1, at[..., None].expand(x.shape), x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_heads", [1, 2])
@pytest.mark.parametrize(
    ("impl", "causal"), [("reference", True), ("reference", False), ("products", True)]
)
def test_tokens_asked_for_alone_are_those_of_all(impl, causal, n_heads, bias, monkeypatch):
    """Under dropout too, and so are the gradients, by whichever form of torch's products."""
    called = spied(monkeypatch)
    fields = {"n_heads": n_heads, "dropout": 0.5, "bias": bias}
    layer, exact = (
        moved(Attention.model_validate({"impl": x} | fields), causal=causal)
        for x in (impl, "reference")
    )
    at, dy = torch.tensor([[19, 0, 7], [3, 4, 12]]), tokens(2, 3, seed=4)
    found: list[list[Tensor]] = []
    for own, asked in ((layer, at), (layer, None), (exact, None)):
        x = tokens(2, 20).requires_grad_()
        seed_dropout(own, generator(1))
        y = own(x, at=asked)
        y.backward(dy if asked is not None else sparse(dy, at))
        gradients = [x.grad, *(p.grad for p in own.parameters())]
        found.append([y.detach() if asked is not None else of(at, y.detach()), *gradients])
        own.zero_grad()
    for some, every, true in zip(*found, strict=True):
        torch.testing.assert_close(some, every, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(every, true, rtol=1e-11, atol=1e-12)
    # One head forms no keys and no values.
    one = ["shared"] if n_heads == 1 else []
    assert called == ([*one, "packed"] if impl == "products" else [])


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The forms of `Products` that are called from now on."""
    called: list[str] = []
    for name in ("packed", "shared"):
        form = getattr(Products, name)
        monkeypatch.setattr(
            Products, name, lambda *x, name=name, form=form: called.append(name) or form(*x)
        )
    return called


@pytest.mark.parametrize("impl", ["reference", "products"])
def test_no_stream_is_kept_unrounded(impl):
    """Where its queries are of some tokens, and all of it goes into another product."""
    layer, x = moved(Attention(impl=impl)).float(), tokens(2, 20).float()
    kept: list[Tensor] = []
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda y: kept.append(y) or y, lambda y: y),
    ):
        layer(x.requires_grad_() * 1, at=torch.tensor([[1], [2]]))
    assert not [y for y in kept if y.shape == x.shape and y.dtype == torch.float32]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.double()(x.double(), at=torch.tensor([[1], [2]])).dtype == torch.float64


@pytest.fixture
def sums_as_on_a_gpu() -> Iterator[None]:
    """Where autocast has sums in fp32 unless they say otherwise; a CPU's leaves them alone."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def in_fp32(x, dim, keepdim=False, *, dtype=None):
        with torch._C._ExcludeDispatchKeyGuard(keys):
            narrow = x.dtype in (torch.bfloat16, torch.float16)
            dtype = torch.float32 if narrow and dtype is None else dtype
            return torch.ops.aten.sum.dim_IntList(x, dim, keepdim, dtype=dtype)

    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    library.impl("sum.dim_IntList", in_fp32)
    yield
    library._destroy()


@pytest.mark.usefixtures("sums_as_on_a_gpu")
def test_one_head_of_tokens_asked_for_alone_rounds_no_worse(monkeypatch):
    """Under autocast, by the bar of the kernels against the layer of all tokens."""
    called, exact = spied(monkeypatch), moved(Attention(impl="products"))
    at, dy = torch.tensor([[19, 0, 7], [3, 4, 12]]), tokens(2, 3, seed=4)

    def run(layer: torch.nn.Module, x: Tensor, asked: Tensor | None) -> list[Tensor]:
        x = x.clone().requires_grad_()
        # Around the forward pass alone, as in a training.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=x.dtype == torch.float32):
            y = layer(x, at=asked)
        layer.zero_grad()
        y.backward((dy if asked is not None else sparse(dy, at)).to(y.dtype))
        y = y if asked is not None else of(at, y)
        weight = layer.proj_in.weight.grad
        return [t.detach().double().clone() for t in (y, x.grad, *weight.chunk(3))]

    truth = run(exact, tokens(2, 20), at)
    layer = copy.deepcopy(exact).float()
    alone, all_ = (run(layer, tokens(2, 20).float(), asked) for asked in (at, None))
    assert called == ["shared", "shared", "packed"]
    for ours, theirs, true in zip(alone, all_, truth, strict=True):
        assert (ours - true).norm() <= 2 * (theirs - true).norm()


@pytest.mark.parametrize(
    ("positions", "impl"),
    [*product(["none", "rope"], ["sdpa", "reference"]), ("none", "products")],
)
def test_attention_is_its_formula(positions, impl):
    k, x = D // 2, tokens(2, 20)
    layer = moved(Attention(n_heads=2, positions=positions, impl=impl))
    q, key, v = (y.unflatten(-1, (2, k)) for y in layer.proj_in(x).chunk(3, -1))
    # Channels i and i + k/2 as one complex number, turned by its position.
    angle = torch.arange(20).double()[:, None, None] * 10000 ** (
        -torch.arange(0, k, 2).double() / k
    )
    angle = angle if positions == "rope" else 0 * angle
    q, key = (torch.complex(*y.chunk(2, -1)) * torch.exp(1j * angle) for y in (q, key))
    y = torch.zeros_like(v)
    for t in range(20):
        scores = torch.einsum("bhc,bshc->bhs", q[:, t], key[:, : t + 1].conj()).real
        p = (scores / k**0.5).exp()
        p = p / p.sum(-1, keepdim=True)
        y[:, t] = torch.einsum("bhs,bshv->bhv", p, v[:, : t + 1])
    assert_close(layer(x), layer.proj_out(y.flatten(2)))


def packed(p: float) -> Products:
    form = Products(p)
    seed_dropout(form, generator(1))
    return form


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("h", "p"), [(1, 0.0), (1, 0.3), (2, 0.3)])
def test_packed_gradients_are_those_of_the_parts(h, p, precision):
    """By the bar of the kernels."""
    qkv, do = draw(2, 40, h, 24, dtype=DTYPES.get(precision, torch.float32))
    check(packed(p).packed, qkv, do, p, precision)


def test_products_side_by_side():
    qkv, _ = draw(2, 20, 2, 8)
    q, k, v = qkv.unbind(2)
    weights = torch.rand(2, 2, 20, 20, generator=generator(3))
    torch.library.opcheck(compiled_products, ([weights, weights.mT], [k, q]))
    one, two = compiled_products([weights, weights.mT], [k, v]).unbind(2)
    torch.testing.assert_close(one, torch.einsum("bhnt,bthk->bnhk", weights, k))
    torch.testing.assert_close(two, torch.einsum("bhtn,bthk->bnhk", weights, v))


def test_products_decodes_what_it_trains():
    layer, x = moved(Attention(impl="products", n_heads=2)), tokens(2, 20)
    assert_close(decoded(layer, x), layer(x))


def test_what_products_does_not_take_is_named():
    with pytest.raises(ValueError, match="positions = 'rope' does not fit impl = 'products'"):
        Attention(impl="products", positions="rope")
    with pytest.raises(ValueError, match="impl = 'products' sees the past alone, but causal = F"):
        moved(Attention(impl="products"), causal=False)


def test_scores_are_scaled_before_they_pass_the_largest_number():
    qkv = torch.full((1, 3, 3, 1, 64), 60.0, dtype=torch.float16)
    assert torch.equal(packed(0.0).packed(qkv), qkv[:, :, 2])
