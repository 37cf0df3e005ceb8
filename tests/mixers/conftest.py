"""A fixture that the tests of Triton kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.mixers.attention_inputs import DTYPES


@pytest.fixture(params=list(DTYPES))
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """How matrix products multiply, torch's too; tf32x3: where fp32 is asked."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if request.param == "tf32" else "highest")
    yield request.param
    torch.set_float32_matmul_precision(before)
