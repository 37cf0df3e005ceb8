"""No training with wrong gradients; one token's rounding in bf16 is not a wrong one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mixers import Attention, attention_products
from tasks.base import Context, Wrong
from tasks.mqar import gradients
from tasks.mqar.gradients import ROWS, Compared, check_gradients
from tasks.mqar.task import MQAR
from tests.tasks.test_training import tiny

CPU = torch.device("cpu")
OF_SCORES = attention_products._of_scores


def task(precision: str = "fp32") -> MQAR:
    """Attention by torch's products, whose gradients are written by hand."""
    return tiny(epochs=1, precision=precision).model_copy(
        update={"mixer": Attention(impl="products")}
    )


def crook(monkeypatch: pytest.MonkeyPatch, rows: list[int], factor: float) -> list[int]:
    """The scores' gradients of these rows of a batch times `factor`; returns batches seen."""
    seen: list[int] = []

    def of_scores(*inputs: Tensor) -> Tensor:
        found = OF_SCORES(*inputs).clone()
        seen.append(len(found))
        found[rows] = (factor * found[rows]).to(found.dtype)
        return found

    monkeypatch.setattr(attention_products, "_of_scores", of_scores)
    return seen


def test_a_wrong_gradient_is_not_trained_with(monkeypatch):
    assert check_gradients(task(), CPU)["gradient_rows_wrong"] == 0
    crook(monkeypatch, list(range(ROWS)), 1.1)
    with pytest.raises(Wrong, match=r"the gradient in fp32 of attention \(products\) is off by"):
        task().run(Context(CPU))


@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize(
    ("rows", "factor"),
    [
        ([0, 1], 100.0),
        ([ROWS - 1], 10.0),
        ([ROWS - 1], math.nan),
        ([1], math.inf),
        ([1, 3, 5, 7], 0.0),
        ([0, 1, 2, 3], -1.0),
        ([4, 5, 6, 7], 0.0),
    ],
)
def test_rows_that_are_wrong_are_found_wherever_they_lie(monkeypatch, rows, factor, precision):
    crook(monkeypatch, rows, factor)
    with pytest.raises(Wrong, match="is off by"):
        check_gradients(task(precision), CPU)


@pytest.mark.parametrize(
    ("precision", "rows", "wrong"),
    [("fp32", [0], None), ("bf16_autocast", [0, 5], 2), ("bf16_autocast", [0, 3, 5], None)],
)
def test_little_errors_of_few_rows_are_rounding_in_bf16_alone(monkeypatch, precision, rows, wrong):
    """Gradients of zeros, three times TOLERANCE off in ours wherever one of `rows` takes part."""

    def marked(each: MQAR, _: torch.device, dtype: torch.dtype, part: slice) -> Tensor:
        ours = each.mixer.impl == "products" and dtype == torch.float32
        off = ours and not set(range(ROWS)[part]).isdisjoint(rows)
        return torch.tensor(3 * gradients.TOLERANCE if off else 0.0)

    monkeypatch.setattr(gradients, "gradients", marked)
    monkeypatch.setattr(gradients, "relative_error", lambda x, exact: float(x - exact))
    if wrong is None:
        with pytest.raises(Wrong, match="is allowed$" if precision == "fp32" else "row by row"):
            check_gradients(task(precision), CPU)
    else:
        assert check_gradients(task(precision), CPU)["gradient_rows_wrong"] == wrong


def test_a_row_alone_is_run_in_the_batch_of_all(monkeypatch):
    seen = crook(monkeypatch, [], 1.0)
    one = gradients.gradients(task(), CPU, torch.float32, slice(2, 3))
    assert set(seen) == {ROWS}
    all_of_them = [
        gradients.gradients(task(), CPU, torch.float32, slice(i, i + 1)) for i in range(ROWS)
    ]
    together = gradients.gradients(task(), CPU, torch.float32, slice(ROWS))
    assert torch.equal(all_of_them[2], one)
    assert not torch.allclose(one, together, rtol=1e-2)
    torch.testing.assert_close(torch.stack(all_of_them).mean(0), together, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("compared", "passes", "rounding"),
    [
        (Compared(0.01, 0.02), True, True),
        (Compared(0.1, 0.02), False, True),
        (Compared(0.2, 0.02), False, False),
        (Compared(1.0, 1.9), False, True),
        (Compared(math.nan, 0.02), False, False),
        (Compared(1.0, math.inf), False, False),
        (Compared(0.01, math.nan), False, False),
    ],
)
def test_what_passes(compared, passes, rounding):
    assert (compared.passes(), compared.may_be_rounding()) == (passes, rounding)
