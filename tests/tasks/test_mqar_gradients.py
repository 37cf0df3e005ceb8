"""No training with wrong gradients; one token's rounding in bf16 is not a wrong one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mixers import GLA, HGRN1, HGRN2, Attention, Mamba, attention_products
from tasks.base import Context, Wrong
from tasks.mqar import gradients
from tasks.mqar.gradients import (
    ROWS,
    Compared,
    Start,
    check_gradients,
    relative_error_of_part,
)
from tasks.mqar.task import MQAR
from tests.tasks.test_training import tiny

CPU = torch.device("cpu")
OF_SCORES = attention_products._of_scores


def task(precision: str = "fp32") -> MQAR:
    """Attention by torch's products, whose gradients are written by hand."""
    return tiny(epochs=1, precision=precision).model_copy(
        update={"mixer": Attention(impl="products")}
    )


def in_a_row(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in found.values()])


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
        (0.2, {}, {}, 0),
        (0.3, {}, {}, 0),
        (1.0, {0: 0.1}, {}, None),
        (0.2, {0: 0.1}, {}, None),
        (0.2, {0: 0.1}, {0: 0.06}, 0),
        (0.2, {0: 0.1}, {0: 0.04}, None),
        (0.2, {0: 0.1, 5: 0.3}, {0: 0.06, 5: 0.2}, 0),
        (0.2, {0: 0.1, 5: 0.3}, {0: 0.06}, None),
        (0.2, dict.fromkeys(range(4), 0.9), dict.fromkeys(range(4), 0.5), 4),
        (0.2, dict.fromkeys(range(5), 0.9), dict.fromkeys(range(5), 0.5), None),
        (0.2, {0: 1.6}, {0: 0.7}, None),
        (0.2, {5: math.nan}, {}, None),
        (0.2, {5: math.inf}, {5: math.inf}, None),
        (0.2, {5: 0.1}, {5: math.nan}, None),
    ],
)
def test_rows_alone_pass_by_what_rounding_makes_of_the_reference(
    monkeypatch, together, mine, others, untold
):
    """Gradients that are their own errors. The reference's row is off by `others` in the last of
    its roundings alone."""
    draws: list[int] = []

    def made(start: Start, part: slice, rounding: int = 0) -> dict[str, Tensor]:
        rows = range(ROWS)[part]
        alone = len(rows) == 1
        error = 0.0
        if start.task.mixer.impl != "reference":
            error = mine.get(rows[0], 0.0) if alone else 2.0 if mine else 0.0
        elif next(start.model.parameters()).dtype != torch.float64:
            draws.append(rounding)
            last = rounding == gradients.ROUNDINGS - 1
            error = (others.get(rows[0], 0.0) if last else 0.0) if alone else together
        assert rounding == 0 or start.task.mixer.impl == "reference"
        return {"p": torch.tensor(error)}

    def errors(x: dict[str, Tensor], _: dict[str, Tensor], __: int) -> dict[str, float]:
        return {"p": float(x["p"]), gradients.ALL: float(x["p"])}

    monkeypatch.setattr(Start, "gradients", made)
    monkeypatch.setattr(gradients, "relative_errors", errors)
    if untold is None:
        with pytest.raises(Wrong, match="row by row"):
            check_gradients(task(), CPU)
    else:
        found = check_gradients(task(), CPU)
        assert found["gradient_rows_untold"] == untold
        assert found["gradient_rows_alone"] == (ROWS if mine or together > 0.25 else 0)
        error, allowed = found["gradient_error"], found["gradient_allowed"]
        assert isinstance(error, float)
        assert isinstance(allowed, float)
        assert error <= allowed
    # All rows once, then each row once but those that need more: up to the first wrong one.
    far = [row for row in range(ROWS) if row in mine]
    first = next((i for i, row in enumerate(far) if untold is None and row not in others), len(far))
    alone = 0 if not mine and together < 0.25 else ROWS
    assert len(draws) <= 1 + alone + min(first + 1, len(far)) * (gradients.ROUNDINGS - 1)
    assert draws[0] == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize(
    "mixer",
    [Attention(), GLA(n_heads=2), HGRN1(), HGRN2(expand_ratio=4), Mamba(d_state=4)],
    ids=lambda m: m.name,
)
def test_every_part_of_every_parameter_counts(mixer, precision):
    """However small its gradient is: negated, zeroed or half as large again, its error is above the
    reference's bar, and nothing else's changes."""
    whole = task(precision).model_copy(update={"mixer": mixer})
    exact, same = (Start(whole, CPU, dtype) for dtype in (torch.float64, torch.float32))
    truth, found = exact.gradients(slice(ROWS)), same.gradients(slice(ROWS))
    length = whole.backbone.d_model // gradients.PARTS
    bars = gradients.relative_errors(found, truth, length)
    assert len(bars) == 1 + sum(math.ceil(len(g) / length) for g in truth.values())
    for name, gradient in found.items():
        for start in range(0, len(gradient), length):
            part = f"{name}[{start}:]"
            rows = truth[name][start : start + length]
            if rows.norm() < 1e-6 * truth[name].norm():
                assert (mixer.name, name.endswith("proj_in.bias")) == ("attention", True)
                continue
            allowed = 2 * bars[part] + gradients.TOLERANCE
            for factor in (-1.0, 0.0, 1.5):
                x = factor * gradient[start : start + length]
                assert relative_error_of_part(x, rows, truth[name]) > allowed, part
    name, gradient = next(iter(found.items()))
    wrong = torch.cat((-gradient[:length], gradient[length:]))
    errors = gradients.relative_errors(found | {name: wrong}, truth, length)
    changed = {part for part in bars if errors[part] != bars[part]}
    assert changed == {f"{name}[0:]", gradients.ALL}


def test_what_is_nothing_counts_in_units_of_the_whole():
    whole = torch.tensor([1.0, 1.0, 1e-9, 0.0])
    off = relative_error_of_part(whole[2:] + 0.1, whole[2:], whole)
    assert off == pytest.approx(0.1)
    assert relative_error_of_part(1.1 * whole[:2], whole[:2], whole) == pytest.approx(0.1)
    assert relative_error_of_part(torch.zeros(2), torch.zeros(2), torch.zeros(2)) == 0


def test_a_rounding_is_of_the_precision_and_by_its_number():
    assert gradients.NUDGE == {"fp32": 2**-23, "bf16_autocast": 2**-9, "tf32": 2**-12}
    for precision, most in gradients.NUDGE.items():
        reference = task(precision).model_copy(update={"mixer": Attention()})
        start = Start(reference, CPU, torch.float32)
        plain, one, two = (start.gradients(slice(ROWS), rounding) for rounding in range(3))
        assert in_a_row(start.gradients(slice(ROWS), 1)).equal(in_a_row(one))
        assert in_a_row(start.gradients(slice(ROWS))).equal(in_a_row(plain))
        for x, y in ((plain, one), (plain, two), (one, two)):
            assert 0 < gradients.relative_errors(x, y, 4)[gradients.ALL] < 8 * most
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
    one = in_a_row(start.gradients(slice(2, 3)))
    assert set(seen) == {ROWS}
    all_of_them = [in_a_row(start.gradients(slice(i, i + 1))) for i in range(ROWS)]
    together = in_a_row(start.gradients(slice(ROWS)))
    assert torch.equal(all_of_them[2], one)
    assert not torch.allclose(one, together, rtol=1e-2)
    torch.testing.assert_close(torch.stack(all_of_them).mean(0), together, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("error", "allowed", "share"),
    [
        (0.01, 0.02, 0.5),
        (0.1, 0.02, 5.0),
        (0.0, 0.02, 0.0),
        (0.0, 0.0, math.inf),
        (math.nan, 0.02, math.inf),
        (1.0, math.inf, math.inf),
        (0.01, math.nan, math.inf),
    ],
)
def test_shares_of_a_bar(error, allowed, share):
    assert Compared("p", error, allowed, True).share == pytest.approx(share)
