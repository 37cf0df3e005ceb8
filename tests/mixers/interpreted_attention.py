"""Attention's kernels under Triton's interpreter, against the fp64 oracle with the same masks.

Run by test_attention_triton.py with TRITON_INTERPRET=1, which must be set before triton is
imported, as interpreted_queries.py and interpreted_rounding.py, which has 16 bits and TF32.
attention_inputs.py derives the bar.
"""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from mixers import Attention, Mixer
from mixers.attention_kernels import bits_of, where_kept
from mixers.attention_triton import Fused, attend
from mixers.layers import Dropout, keeps, seed_dropout
from tests.mixers import test_contract as contract
from tests.mixers.attention_inputs import check, draw, eager, generator, results

assert os.environ.get("TRITON_INTERPRET") == "1"


def fused(p: float, seed: int = 1) -> Fused:
    form = Fused(p)
    seed_dropout(form, generator(seed))
    return form


def separate(form: Fused, qkv: Tensor) -> Tensor:
    return form(*qkv.unbind(2), causal=True, mask=None)


@pytest.mark.parametrize("k", [16, 32, 64, 128])
@pytest.mark.parametrize("t", [1, 5, 64, 65, 130])
def test_results_and_gradients(t, k):
    for h, p in ((1, 0.0), (2, 0.1), (1, 0.5)):
        form = fused(p)
        qkv, do = draw(2 if t < 130 else 1, t, h, k)
        check(form.packed if h == 1 else partial(separate, form), qkv, do, p, "fp32")


def test_large_scores():
    """Up to 300: one key has it all, and no sum of exponentials overflows."""
    qkv, do = draw(1, 130, 1, 64)
    qkv[:, :, :2] *= 9
    check(fused(0.1).packed, qkv, do, 0.1, "fp32")


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("place", range(3), ids="qkv")
def test_a_nan_comes_out_as_one(monkeypatch, place):
    """A GPU's own has all bits but the sign, which TF32's rounding would turn into a zero."""
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    qkv, _ = draw(1, 70, 1, 16)
    qkv[:, 20, place] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    y = fused(0.0).packed(qkv)
    assert y[:, 20 if place == 0 else slice(20, None)].isnan().all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_are_dropouts_bit_for_bit(p):
    """Without scores the probabilities of row i are 1 / (i + 1), and unit values read them out."""
    b, t, h = 2, 100, 3
    q = torch.zeros(b, t, h, 128)
    v = torch.eye(t, 128)[None, :, None].expand(b, t, h, 128)
    dropout, form = Dropout(p), fused(p)
    seed_dropout(dropout, generator(1))
    for _ in range(3):
        kept = dropout(torch.ones(b, h, t, t)) != 0
        o = form(q, q, v, causal=True, mask=None)[..., :t].transpose(1, 2)
        assert torch.equal(o != 0, kept.tril())
        assert torch.equal(form.dropout.state, dropout.state)
    # dv_j = sum_i P_ij D_ij do_i, with unit gradients
    kept = (dropout(torch.ones(b, h, t, t)) != 0).tril()
    leaf = torch.zeros(b, t, h, 128, requires_grad=True)
    (dv,) = torch.autograd.grad(form(q, q, leaf, causal=True, mask=None), leaf, v)
    assert torch.equal(dv[..., :t].permute(0, 2, 3, 1) != 0, kept)


@triton.jit
def kept_kernel(out, state, head, row, T, DROPPED: tl.constexpr):
    column = tl.arange(0, 128)
    bits = bits_of(head.to(tl.int64), row, T, state, DROPPED)
    kept = where_kept(1.0, bits, column, DROPPED)
    tl.store(out + column, kept)


@pytest.mark.parametrize("state", [0, 2**31, 2**32 - 2])
@pytest.mark.parametrize(("head", "row", "t"), [(0, 0, 128), (5000, 777, 1000), (2**22, 99, 4099)])
def test_rows_and_states_wrap_at_32_bits(head, row, t, state):
    out, p = torch.empty(128), 0.3
    dropped = round(p * 2**32)
    kept_kernel[(1,)](out, torch.tensor(state), head, row, t, DROPPED=dropped)
    row_index = torch.tensor([head * t + row])
    assert torch.equal(out != 0, keeps(row_index, torch.arange(128), torch.tensor(state), p))


def test_nothing_is_dropped_in_evaluation():
    qkv, _ = draw(2, 70, 2, 16)
    form = fused(0.5).eval()
    before = form.dropout.state.clone()
    assert torch.equal(form.packed(qkv), Fused(0.0).packed(qkv))
    assert torch.equal(form.dropout.state, before)
    with pytest.raises(RuntimeError, match="seed_dropout"):
        Fused(0.5).packed(qkv)


def test_strictly_causal_bit_for_bit():
    qkv, _ = draw(1, 130, 2, 16)
    y = fused(0.1).packed(qkv)
    for cut in (1, 31, 64, 65, 129):
        changed = qkv.clone()
        changed[:, cut:] = 3 + changed[:, cut:].flip(1)
        found = fused(0.1).packed(changed)
        assert torch.equal(found[:, :cut], y[:, :cut])
        assert not torch.equal(found[:, cut:], y[:, cut:])


def test_views_of_any_strides():
    """Of one projection, of time before batch, with channels that are not neighbours; and a
    gradient that is one number everywhere."""
    qkv, do = draw(2, 70, 2, 16)
    expected = results(lambda x: fused(0.1).packed(x.contiguous()), qkv, do)
    turned = qkv.transpose(0, 1).contiguous().transpose(0, 1)
    apart = qkv.mT.contiguous().mT
    assert apart.stride(-1) != 1
    for view in (turned, apart):
        for form in (fused(0.1).packed, lambda x: separate(fused(0.1), x)):
            leaf = view.detach().requires_grad_()
            o = form(leaf)
            assert torch.equal(o, expected["o"])
            (gradient,) = torch.autograd.grad(o, leaf, do)
            assert torch.equal(gradient, torch.stack([*expected.values()][1:], 2))
    ones = torch.ones(()).expand(do.shape)
    constant = results(fused(0.1).packed, qkv, ones)
    whole = results(fused(0.1).packed, qkv, ones.contiguous())
    assert all(torch.equal(x, whole[name]) for name, x in constant.items())


def test_gradients_of_some_inputs_alone():
    qkv, do = draw(1, 20, 1, 16)
    expected = results(fused(0.1).packed, qkv, do)
    q, k, v = qkv.unbind(2)
    leaf = v.clone().requires_grad_()
    fused(0.1)(q, k, leaf, causal=True, mask=None).backward(do)
    assert torch.equal(leaf.grad, expected["dv"])
    with torch.no_grad():
        assert torch.equal(fused(0.1).packed(qkv), expected["o"])


def layer(impl: str, **fields) -> nn.Module:
    """The first of two layers of 32 channels, whose dropout has its state."""
    mixer = Attention.model_validate({"impl": impl, "n_heads": 2, **fields})
    stack = nn.ModuleList(mixer.stack(32, 2, causal=True, generator=generator(0)))
    seed_dropout(stack, generator(1))
    return stack[0]


@pytest.mark.parametrize("positions", ["none", "rope"])
def test_a_checkpoint_goes_on_in_another_implementation(positions):
    ours, other = (layer(x, dropout=0.2, positions=positions) for x in ("triton", "reference"))
    x = torch.randn(2, 40, 32, generator=generator(2))
    for _ in range(2):
        torch.testing.assert_close(ours(x), other(x))
    kept = ours.state_dict()
    assert kept.keys() == other.state_dict().keys()
    later = layer("reference", dropout=0.2, positions=positions)
    later.load_state_dict(kept)
    torch.testing.assert_close(later(x), ours(x))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("positions", ["none", "rope"])
def test_compiled_without_a_break(positions, backend):
    """A custom operator there, a plain autograd function in eager mode: the same bits where the
    compiler leaves the sums around it as they are; the same masks, backward too, where it takes a
    copy of the state for the state."""
    found = []
    x = torch.randn(2, 40, 32, generator=generator(2))
    for compiled in (False, True):
        own = layer("triton", dropout=0.2, positions=positions)
        run = torch.compile(own, backend=backend, fullgraph=True) if compiled else own
        for _ in range(2):
            run(x).square().sum().backward()
        state = own.get_buffer("attend.dropout.state")
        found.append([state, *(p.grad for p in own.parameters())])
    for x, y in zip(*found, strict=True):
        if backend == "aot_eager":
            assert torch.equal(x, y)
        torch.testing.assert_close(x, y)


def test_compiled_for_any_length():
    """The compiler's second length is a symbol."""
    run = torch.compile(lambda x, s: attend(x, state=s, p=0.3), backend="aot_eager", fullgraph=True)
    for t in (64, 70, 130):
        qkv, _ = draw(1, t, 1, 16)
        state = torch.tensor(7)
        assert torch.equal(run(qkv, state), attend(qkv, state=state, p=0.3))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_an_infinite_key_reaches_its_own_gradient_alone():
    """The last, of weight 0: the rows that a tile has past it would make a NaN of every dv."""
    qkv, do = draw(1, 70, 1, 16)
    qkv[:, -1, 0] = -qkv[:, -1, 0].abs() - 1
    qkv[:, -1, 1] = torch.inf
    leaf = qkv.requires_grad_()
    o = attend(leaf, state=None, p=0.0)
    assert o.isfinite().all()
    (gradient,) = torch.autograd.grad(o, leaf, do)
    assert gradient[:, :-1, 1:].isfinite().all()


def test_bad_input_is_named():
    qkv, _ = draw(1, 4, 1, 16)
    q, k, v = qkv.unbind(2)
    for wrong, message in (
        ((q.double(), k, v), r"q, k, v are torch\.float64, torch\.float32, torch\.float32; .*one"),
        ((q, k[:, :3], v), r"shapes \[1, 4, 1, 16\], \[1, 3, 1, 16\], .*takes one \[b t h k\]"),
        ((q[..., :12], k[..., :12], v[..., :12]), "12 channels; impl='triton' takes 16, 32, 64"),
    ):
        with pytest.raises(ValueError, match=message):
            attend(*wrong, state=None, p=0.0)
    with pytest.raises(ValueError, match=r"causal = False without a mask does not fit"):
        fused(0.1)(q, k, v, causal=False, mask=None)
    with pytest.raises(ValueError, match=r"causal = True with a mask does not fit.*or 'reference'"):
        fused(0.1)(q, k, v, causal=True, mask=torch.ones(1, 4, dtype=torch.bool))


# What every mixer promises, but for fp64 and both directions.
PROMISES = (
    contract.check_configuration,
    contract.check_seed,
    contract.check_padding,
    contract.check_batch_invariance,
    contract.check_gradients,
    contract.check_decoding,
    contract.check_state_size,
    contract.check_operator,
)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "mixer",
    [
        Attention(impl="triton"),
        Attention(impl="triton", n_heads=2, bias=False, positions="rope", init="zoology"),
    ],
    ids=["plain", "rope"],
)
def test_contract(mixer: Mixer, promise, monkeypatch):
    """In fp32. Where a promise has 900 or 1000 tokens, 160: three tiles, the last not full, and
    after the hundred of check_padding five; 16 have the interpreter walk ten times as many pairs of
    tiles, all of them alike."""
    tokens, moved = contract.tokens, contract.moved

    def few(batch: int, t: int, **options) -> Tensor:
        return tokens(batch, min(t, 160), **options).float()

    monkeypatch.setattr(contract, "BOTH", (True,))
    monkeypatch.setattr(contract, "tokens", few)
    monkeypatch.setattr(contract, "moved", lambda *args, **options: moved(*args, **options).float())
    monkeypatch.setattr(Attention, "unsupported", lambda *_: None)
    promise(mixer)


def test_the_eager_form_is_the_oracle_of_itself():
    """The bar is no empty one: another mask fails it."""
    qkv, do = draw(1, 65, 1, 16)
    check(eager(0.1), qkv, do, 0.1, "fp32")
    with pytest.raises(AssertionError, match="o: error"):
        check(fused(0.1, seed=2).packed, qkv, do, 0.1, "fp32")
