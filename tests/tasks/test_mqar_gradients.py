"""No training with wrong gradients; one token's rounding in bf16 is not a wrong one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import tasks.check
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


def crook(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> list[int]:
    """The scores' gradients of these rows of a batch times their factors; returns batches seen."""
    seen: list[int] = []

    def of_scores(*inputs: Tensor) -> Tensor:
        found = OF_SCORES(*inputs).clone()
        seen.append(len(found))
        for row, factor in factors.items():
            found[row] = (factor * found[row]).to(found.dtype)
        return found

    monkeypatch.setattr(attention_products, "_of_scores", of_scores)
    return seen


def test_a_wrong_gradient_is_not_trained_with(monkeypatch):
    assert check_gradients(task(), CPU)["gradient_rows_wrong"] == 0
    crook(monkeypatch, dict.fromkeys(range(ROWS), 1.1))
    with pytest.raises(Wrong, match=r"the gradient in fp32 of attention \(products\) is off by"):
        task().run(Context(CPU))


@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize(
    "factors",
    [
        {0: 100.0, 1: 100.0},
        {0: 100.0, 3: 100.0, 6: 100.0},
        {ROWS - 1: 10.0},
        {ROWS - 1: math.nan},
        {1: math.inf},
        {1: 100.0, 6: math.nan},
        {3: 1.5},
        {3: 0.0},
        dict.fromkeys((1, 3, 5, 7), 0.0),
        dict.fromkeys(range(4), -1.0),
        dict.fromkeys(range(4, 8), 0.0),
    ],
)
def test_rows_that_are_wrong_are_found_wherever_they_lie(monkeypatch, factors, precision):
    crook(monkeypatch, factors)
    with pytest.raises(Wrong, match=r"is off by .* row by row"):
        check_gradients(task(precision), CPU)


@pytest.mark.parametrize(
    ("together", "errors", "wrong"),
    [
        (0.4, {}, 0),
        (0.4, {0: 3.0}, None),
        (0.6, {}, 0),
        (0.6, {0: 3.0, 5: 7.0}, 2),
        (0.6, {0: 3.0, 3: 3.0, 5: 3.0}, None),
        (0.6, {5: 9.0}, None),
        (0.6, {5: math.nan}, None),
    ],
)
def test_rows_alone_count_where_the_bar_for_all_tells_nothing(monkeypatch, together, errors, wrong):
    """Gradients of zeros: `together` off in the reference's of all rows, and a row's ours by so
    many times TOLERANCE, all rows' by 2."""

    def made(each: MQAR, _: torch.device, dtype: torch.dtype, part: slice) -> Tensor:
        rows = range(ROWS)[part]
        alone = len(rows) == 1
        if dtype == torch.float64:
            return torch.tensor(0.0)
        if each.mixer.impl == "reference":
            return torch.tensor(0.0 if alone else together)
        far = 2.0 if errors else 0.0
        return torch.tensor(gradients.TOLERANCE * errors.get(rows[0], 0.0) if alone else far)

    def error(x: Tensor, exact: Tensor) -> float:
        return float(x - exact)

    monkeypatch.setattr(gradients, "gradients", made)
    for module in (gradients, tasks.check):
        monkeypatch.setattr(module, "relative_error", error)
    if wrong is None:
        with pytest.raises(Wrong, match="row by row"):
            check_gradients(task(), CPU)
    else:
        assert check_gradients(task(), CPU)["gradient_rows_wrong"] == wrong


def test_a_row_alone_is_run_in_the_batch_of_all(monkeypatch):
    seen = crook(monkeypatch, {})
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
