"""The forms for use against the per-token loops, at T = 1024 in fp32 on the CPU.

    pytest tests/bench_operators.py --benchmark-only -o python_files=bench_*.py

One group of rows an operator and pass: its loop, and its form for use. Shapes are [b t h k] with
k = v for the gated recurrences, [b t d] for HGRN1, and [b t d n] (n states a channel) for Mamba's.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hgrn2.reference import (
    diagonal_recurrent,
    diagonal_scan,
    gated_chunked,
    gated_recurrent,
    hgrn1_recurrent,
    hgrn1_scan,
    hgrn2_chunked,
    hgrn2_recurrent,
)

T = 1024
Form = Callable[..., tuple[Tensor, Tensor]]
Case = tuple[Form, Form, list[Tensor]]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def hgrn2(b: int, h: int, k: int) -> Case:
    """Logits around zero, no lower bound."""
    z, q, v = (scale * randn(b, T, h, k) for scale in (1, 2, 3))
    return hgrn2_recurrent, hgrn2_chunked, [q, z, v, torch.zeros(h, k)]


def gla(b: int, h: int, k: int) -> Case:
    """GLA's gates, sigmoid(x) ** (1/16): close to one; its keys are free."""
    q, key, v, x = (scale * randn(b, T, h, k) for scale in (1, 2, 3, 4))
    return gated_recurrent, gated_chunked, [q, key, v, torch.sigmoid(x) ** (1 / 16)]


def hgrn1_real(b: int, d: int) -> Case:
    z = randn(b, T, d)
    return hgrn1_recurrent, hgrn1_scan, [2 * z, z, torch.zeros(d)]


def hgrn1_complex(b: int, d: int) -> Case:
    def turned(form: Form) -> Form:
        return lambda v, z, bound, theta: form(v, z, bound, theta=theta)

    inputs = [randn(b, T, d, 2), randn(b, T, d), torch.zeros(d), randn(d)]
    return turned(hgrn1_recurrent), turned(hgrn1_scan), inputs


def mamba(b: int, d: int, n: int) -> Case:
    x = randn(b, T, d, n)
    return diagonal_recurrent, diagonal_scan, [torch.sigmoid(x), 2 * x]


CASES: dict[str, Callable[[], Case]] = {
    "hgrn2 b=1 h=1 k=64": lambda: hgrn2(1, 1, 64),
    "hgrn2 b=1 h=1 k=128": lambda: hgrn2(1, 1, 128),
    "hgrn2 b=4 h=4 k=64": lambda: hgrn2(4, 4, 64),
    "gla b=1 h=2 k=64": lambda: gla(1, 2, 64),
    "hgrn1 real b=1 d=64": lambda: hgrn1_real(1, 64),
    "hgrn1 complex b=1 d=64": lambda: hgrn1_complex(1, 64),
    "hgrn1 real b=4 d=256": lambda: hgrn1_real(4, 256),
    "mamba b=1 d=128 n=16": lambda: mamba(1, 128, 16),
}


@pytest.mark.parametrize("which", ["loop", "form"])
@pytest.mark.parametrize("passes", ["fwd", "fwd+bwd"])
@pytest.mark.parametrize("case", CASES)
def test_operator(benchmark, case, passes, which):
    loop, form, inputs = CASES[case]()
    call = loop if which == "loop" else form
    leaves = [x.requires_grad_() for x in inputs]

    def forward() -> None:
        with torch.no_grad():
            call(*leaves)

    def both() -> None:
        torch.autograd.grad(call(*leaves)[0].sum(), leaves)

    benchmark.group = f"{case}, {passes}"
    run = forward if passes == "fwd" else both
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
