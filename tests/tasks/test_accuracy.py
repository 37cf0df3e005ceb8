"""Errors against fp64: of whom, in which regime, and what a broken result looks like."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from hgrn2.gate import gate
from hgrn2.reference import gated_recurrent
from mixers import GLA, HGRN1, HGRN2, Attention
from tasks.accuracy import Accuracy, Regime, logits
from tasks.base import Context, Unsupported
from tasks.seeds import seeded

CPU = torch.device("cpu")


def task(**changed) -> Accuracy:
    fields = {
        "mixer": HGRN2(expand_ratio=16, lower_bound="cumsum"),
        "regime": "ordinary",
        "bound": 0.1,
        "seq_len": 70,
        "d_model": 32,
    }
    return Accuracy.model_validate(fields | changed)


@pytest.mark.parametrize("regime", get_args(Regime))
@pytest.mark.parametrize("bound", [0.0, 0.99])
def test_the_reference_is_a_rounding_or_two_from_the_truth(regime, bound):
    metrics = task(regime=regime, bound=bound).run(Context(CPU))
    assert metrics["nonfinite"] == 0
    for name in ("y", "dq", "dz", "dv", "dbound"):
        assert metrics[f"error_{name}"] == metrics[f"reference_error_{name}"] < 2**-7, name
    assert metrics["error_y"] > 2**-12


@pytest.mark.parametrize("regime", get_args(Regime))
def test_the_truth_is_the_closed_form_of_the_loop(regime):
    cell = task(regime=regime, bound=0.1)
    found = cell._results(cell.mixer, CPU, exact=True)
    q, z, v, bound = (x.double() for x in cell._operator(cell.mixer, CPU).inputs)
    f, key = gate(z, bound)
    leaves = [x.detach().requires_grad_() for x in (q, key, v, f)]
    y, _ = gated_recurrent(*leaves)
    dy = torch.randn(y.shape, generator=seeded(CPU, 0, "output gradient")).bfloat16().double()
    dq, dkey, dv, df = torch.autograd.grad(y, leaves, dy)
    closed = torch.sigmoid(-z) * (df - dkey)
    exact = {
        "y": y,
        "dq": dq,
        "dz": (1 - bound) * torch.sigmoid(z) * closed,
        "dv": dv,
        "dbound": closed.sum((0, 1)),
    }
    for name, x in exact.items():
        assert (found[name] - x).norm() <= 1e-13 * x.norm(), name


def test_the_other_gated_mixers():
    for mixer, bound, names in (
        (HGRN1(lower_bound="cumsum"), 0.5, ("v", "z", "theta", "bound")),
        (HGRN1(kind="real"), None, ("v", "z")),
        (GLA(n_heads=2), None, ("q", "key", "z", "v")),
    ):
        metrics = task(mixer=mixer, bound=bound, dtype="fp32").run(Context(CPU))
        errors = {name for name in metrics if name.startswith("error_")}
        assert errors == {"error_y", *(f"error_d{name}" for name in names)}
        assert max(metrics[name] for name in errors) < 1e-4


def test_a_result_that_is_not_finite_is_a_result():
    class Broken(HGRN2):
        def operator(self, *args, **options):
            plain = HGRN2(expand_ratio=16, lower_bound="cumsum").operator(*args, **options)
            if self.impl == "reference":
                return plain
            return plain._replace(run=lambda *inputs: plain.run(*inputs) / 0)

        def unsupported(self, device, dtype):
            return None

    broken = Broken(expand_ratio=16, lower_bound="cumsum", impl="triton")
    metrics = task(mixer=broken).run(Context(CPU))
    assert metrics["nonfinite"] == 1
    assert math.isnan(metrics["error_y"])
    assert metrics["reference_error_y"] < 0.01


def test_what_has_no_gate_or_another_bound_is_refused():
    with pytest.raises(Unsupported, match="attention's operator has no gate logit z"):
        task(mixer=Attention(), bound=None).run(Context(CPU))
    with pytest.raises(ValueError, match="bound = None does not fit a hgrn2 whose operator takes"):
        task(bound=None).run(Context(CPU))
    with pytest.raises(ValueError, match="bound"):
        task(bound=1.0)


def test_regimes_have_the_gates_that_they_name():
    def drawn(regime: Regime) -> torch.Tensor:
        shape = torch.Size((2, 2000, 2, 4))
        return logits(regime, shape, torch.Generator().manual_seed(0))

    assert drawn("open").mean() == pytest.approx(6, abs=0.1)
    assert drawn("closed").max() < -10
    assert drawn("spread").std() == pytest.approx(4, abs=0.1)
    assert set(drawn("mixed").unique().tolist()) == {-20.0, 6.0}
    whole = drawn("resets").flatten(2)
    assert (whole == whole[..., :1]).all()
    assert (whole[..., 0] == -20).float().mean() == pytest.approx(1 / 64, abs=0.01)
