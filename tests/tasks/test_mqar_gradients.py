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
from tasks.mqar.gradients import ROWS, Compared, Start, check_gradients
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
    assert check_gradients(task(), CPU)["gradient_rows_untold"] == 0
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
    ("together", "mine", "others", "untold"),
    [
        # of the reference in the bars of all rows; ours by row; the reference's by row and rounding
        (0.4, {}, {}, 0),
        (0.6, {}, {}, 0),
        (0.6, {0: 0.1}, {}, None),
        (0.6, {0: 0.1}, {0: 0.06}, 0),
        (0.6, {0: 0.1}, {0: 0.04}, None),
        (0.4, {0: 0.1, 5: 0.3}, {0: 0.06, 5: 0.2}, 0),
        (0.4, {0: 0.1, 5: 0.3}, {0: 0.06}, None),
        (0.6, dict.fromkeys(range(4), 1.2), dict.fromkeys(range(4), 0.7), 4),
        (0.6, dict.fromkeys(range(5), 1.2), dict.fromkeys(range(5), 0.7), None),
        (0.6, {0: 1.6}, {0: 0.7}, None),
        (0.6, {5: math.nan}, {}, None),
        (0.6, {5: math.inf}, {5: math.inf}, None),
    ],
)
def test_rows_alone_pass_by_what_rounding_makes_of_the_reference(
    monkeypatch, together, mine, others, untold
):
    """Gradients that are their own errors. The reference's row is off by `others` in the last of
    its roundings alone."""

    def made(start: Start, part: slice, rounding: int = 0) -> Tensor:
        rows = range(ROWS)[part]
        alone = len(rows) == 1
        if next(start.model.parameters()).dtype == torch.float64:
            return torch.tensor(0.0)
        if start.task.mixer.impl != "reference":
            return torch.tensor(mine.get(rows[0], 0.0) if alone else 2.0 if mine else 0.0)
        if not alone:
            return torch.tensor(together)
        last = rounding == gradients.ROUNDINGS - 1
        return torch.tensor(others.get(rows[0], 0.0) if last else 0.0)

    def error(x: Tensor, exact: Tensor) -> float:
        return float(x - exact)

    monkeypatch.setattr(Start, "gradients", made)
    for module in (gradients, tasks.check):
        monkeypatch.setattr(module, "relative_error", error)
    if untold is None:
        with pytest.raises(Wrong, match="row by row"):
            check_gradients(task(), CPU)
    else:
        assert check_gradients(task(), CPU)["gradient_rows_untold"] == untold


def test_a_rounding_is_of_the_precision_and_by_its_number():
    for precision, most in gradients.NUDGE.items():
        reference = task(precision).model_copy(update={"mixer": Attention()})
        start = Start(reference, CPU, torch.float32)
        plain, one, two = (start.gradients(slice(ROWS), rounding) for rounding in range(3))
        assert torch.equal(start.gradients(slice(ROWS), 1), one)
        assert torch.equal(start.gradients(slice(ROWS)), plain)
        for x, y in ((plain, one), (plain, two), (one, two)):
            assert 0 < tasks.check.relative_error(x, y) < 8 * most
        moved, still = (
            torch.cat([p.detach().flatten() for p in model.parameters()])
            for model in (start.nudged(1), start.model)
        )
        share = (moved / still - 1)[still != 0]
        assert (share.abs() < most + 2**-23).all()
        assert share.min() < -most / 2
        assert share.max() > most / 2


def test_a_row_alone_is_run_in_the_batch_of_all(monkeypatch):
    seen = crook(monkeypatch, {})
    start = Start(task(), CPU, torch.float32)
    one = start.gradients(slice(2, 3))
    assert set(seen) == {ROWS}
    all_of_them = [start.gradients(slice(i, i + 1)) for i in range(ROWS)]
    together = start.gradients(slice(ROWS))
    assert torch.equal(all_of_them[2], one)
    assert not torch.allclose(one, together, rtol=1e-2)
    torch.testing.assert_close(torch.stack(all_of_them).mean(0), together, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("compared", "passes", "tells"),
    [
        (Compared(0.01, 0.02), True, True),
        (Compared(0.1, 0.02), False, True),
        (Compared(1.0, 1.9), True, False),
        (Compared(math.nan, 0.02), False, True),
        (Compared(1.0, math.inf), False, False),
        (Compared(0.01, math.nan), False, False),
    ],
)
def test_what_passes(compared, passes, tells):
    assert (compared.passes, compared.tells) == (passes, tells)
