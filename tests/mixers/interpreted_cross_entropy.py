"""The fused loss's kernels under Triton's interpreter, against the fp64 oracle.

Run by test_cross_entropy.py with TRITON_INTERPRET=1, which must be set before triton is imported.
cross_entropy_inputs.py derives the bar.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from mixers import cross_entropy, cross_entropy_kernels
from mixers.attention_settings import Launch
from mixers.cross_entropy import linear_cross_entropy
from mixers.cross_entropy_backward import gradients_of
from mixers.cross_entropy_kernels import MOST_PARTS, losses_of, parts_of
from tasks.base import Context, Wrong
from tasks.mqar.task import Segment
from tests.mixers.cross_entropy_inputs import check, draw, results, separate
from tests.tasks.test_training import tiny

assert os.environ.get("TRITON_INTERPRET") == "1"

# log2 of what is empty: a part of the vocabulary that has no word in it.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero encountered in log2:RuntimeWarning")


@pytest.mark.parametrize("d", [16, 32, 64, 128])
@pytest.mark.parametrize(("n", "v"), [(1, 2), (5, 33), (64, 64), (130, 300), (257, 400)])
def test_loss_and_gradients(n, v, d):
    check(linear_cross_entropy, *draw(n, v, d), "fp32")


@pytest.mark.parametrize("d", [16, 64])
@pytest.mark.parametrize(("n", "v"), [(5, 33), (130, 300)])
def test_loss_and_gradients_in_bf16(n, v, d):
    check(linear_cross_entropy, *draw(n, v, d, dtype=torch.bfloat16), "bf16")


def test_large_scores():
    """Up to 300: one word has it all, and no sum of exponentials overflows."""
    hidden, weight, target = draw(70, 130, 32)
    weight = 60 * weight
    assert (hidden @ weight.T).max() > 200
    check(linear_cross_entropy, hidden, weight, target, "fp32")


def test_the_first_and_the_last_word():
    hidden, weight, target = draw(70, 129, 16)
    for word in (0, 128):
        check(linear_cross_entropy, hidden, weight, torch.full_like(target, word), "fp32")


def test_large_scores_that_are_all_negative():
    """What a tile has past the vocabulary scores 0, a power of e above the others."""
    hidden, weight, target = draw(70, 33, 16)
    check(linear_cross_entropy, -hidden.abs(), 30 * weight.abs(), target, "fp32")


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_every_number_of_parts(parts, monkeypatch):
    monkeypatch.setattr(cross_entropy_kernels, "PROGRAMS", 2 * parts)
    hidden, weight, target = draw(300, 290, 16)
    launch = Launch(64, 32, 4, 1)
    assert parts_of(100, 290, launch) == parts
    check(linear_cross_entropy, hidden[:100], weight, target[:100], "fp32")
    check(linear_cross_entropy, hidden, weight[:100], target % 100, "fp32")


def test_few_words_make_few_parts():
    launch = Launch(64, 32, 4, 1)
    assert [parts_of(1, v, launch) for v in (1, 33, 100, 8192)] == [1, 2, 4, MOST_PARTS]
    assert [parts_of(n, 8192, launch) for n in (4_000, 5_000, 9_000)] == [4, 2, 1]


def test_a_target_that_is_no_word_is_seen():
    hidden, weight, target = draw(20, 30, 16)
    for word in (-100, -1, 30, 2**32 + 3):
        target[7] = word
        assert linear_cross_entropy(hidden, weight, target).isnan()


@pytest.mark.filterwarnings("ignore:(invalid value|All-NaN slice) encountered:RuntimeWarning")
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7FC00000, -1])
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_a_nan_comes_out_as_one(precision, bits):
    """A GPU's own has all bits but the sign."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        hidden, weight, target = draw(20, 30, 16)
        hidden[:] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        found = results(linear_cross_entropy, hidden, weight, target)
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(x.isnan().all() for x in found.values())


def test_buffers_are_written_whole_and_nothing_beyond(monkeypatch):
    """Fresh memory holds NaN or, of integers, -7, and what lies behind it stays."""
    hidden, weight, target = draw(67, 70, 16)
    fresh = []

    def poisoned(x, *shape, **options):
        poison = torch.nan if options.setdefault("dtype", x.dtype).is_floating_point else -7
        size = shape[0] if isinstance(shape[0], tuple | torch.Size) else shape
        whole = torch.full((torch.Size(size).numel() + 512,), poison, **options)
        fresh.append(whole)
        return whole[:-512].view(size)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    loss, lse, aim = losses_of(hidden, weight, target)
    found = gradients_of(hidden, weight, lse, aim, torch.ones_like(loss))
    assert all(x.isfinite().all() for x in (loss, lse[:67], *found))
    assert (lse[67:] == torch.inf).all()
    assert torch.equal(aim[:67].long(), target)
    assert (aim[67:] == -1).all()
    # The interpreter's own among them.
    assert len(fresh) >= 6
    assert all((x[-512:].isnan() | (x[-512:] == -7)).all() for x in fresh)


def test_a_gradient_of_any_size_and_stride():
    hidden, weight, target = draw(70, 130, 16)
    _, lse, aim = losses_of(hidden, weight, target)
    dloss = torch.randn(3, 70).T
    exact = torch.autograd.grad(
        torch.nn.functional.cross_entropy(
            (h := hidden.double().requires_grad_()) @ (w := weight.double().requires_grad_()).T,
            target,
            reduction="none",
        ),
        (h, w),
        dloss[:, 1].double(),
    )
    found = gradients_of(hidden, weight, lse, aim, dloss[:, 1])
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-6)


def test_views_and_the_same_bits_every_time():
    hidden, weight, target = draw(70, 130, 16)
    expected = results(linear_cross_entropy, hidden, weight, target)
    wide = torch.cat([hidden, hidden], 1)[:, :16]
    turned = weight.T.contiguous().T
    for again in (
        results(linear_cross_entropy, hidden, weight, target),
        results(linear_cross_entropy, wide, turned, torch.stack([target, target], 1)[:, 0]),
    ):
        assert all(torch.equal(x, again[name]) for name, x in expected.items())


def test_a_gradient_of_one_input_alone():
    hidden, weight, target = draw(20, 30, 16)
    expected = results(linear_cross_entropy, hidden, weight, target)
    leaf = weight.clone().requires_grad_()
    linear_cross_entropy(hidden, leaf, target).backward()
    assert torch.equal(leaf.grad, expected["dweight"])
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, target), expected["loss"])


def test_compiled_it_is_the_same():
    hidden, weight, target = draw(70, 130, 16)
    fast = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    expected = results(linear_cross_entropy, hidden, weight, target)
    found = results(fast, hidden, weight, target)
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x)


def test_recall_learns_the_same_with_it():
    rows = (Segment(seq_len=16, kv_pairs=2, examples=64),)
    task = tiny(epochs=2).model_copy(update={"train": rows, "test": rows})
    fused = task.model_copy(update={"fused_loss": True})
    assert fused.key != task.key
    one, other = (x.run(Context(torch.device("cpu"))) for x in (task, fused))
    assert other["loss_by_epoch"] == pytest.approx(one["loss_by_epoch"], rel=1e-4)


@pytest.mark.parametrize("faulty", ["loss", "hidden gradient", "weight gradient"])
def test_a_fault_of_it_is_refused(faulty, monkeypatch):
    """A cell checks it before it trains, whatever its mixer."""
    task = tiny().model_copy(update={"fused_loss": True})
    cpu = torch.device("cpu")
    task.check(cpu)

    def wrong(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        right = separate(hidden, weight, target)
        if faulty == "loss":
            return 1.01 * right
        x = hidden if faulty == "hidden gradient" else weight
        return right + 1e-3 * (x - x.detach()).sum()

    monkeypatch.setattr(cross_entropy, "linear_cross_entropy", wrong)
    with pytest.raises(Wrong, match=f"the {faulty} of the head with fused_loss = True"):
        task.check(cpu)
