"""The scan's settings compile for every architecture without a spill, without a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from hgrn2.kernels.first_call import Enqueued
from tests.hgrn2.scan_compilation import head_launches, launches
from tests.hgrn2.triton_compilation import SHARED_BYTES, compile_for

BF16, FP32 = torch.bfloat16, torch.float32
# batch, dtype, complex, both directions, architecture. Batches of 16 walk with one warp, of 4 with
# four, of 1 over segments.
ENTRIES = [
    (16, BF16, False, False, 80),
    (16, BF16, False, False, 90),
    (16, BF16, False, False, 100),
    (4, BF16, False, False, 90),
    (1, BF16, False, False, 90),
    (16, FP32, False, False, 90),
    (4, BF16, False, True, 90),
    (4, BF16, True, False, 90),
    (16, BF16, True, True, 90),
]


@pytest.mark.parametrize(("batch", "dtype", "turn", "both", "architecture"), ENTRIES)
def test_entry_compiles_and_fits(batch, dtype, turn, both, architecture):
    expect_fit(launches(batch, dtype, turn=turn, both=both), architecture)


@pytest.mark.parametrize("both", [False, True], ids=["causal", "both"])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_heads_of_few_keys_compile_and_fit(dtype, both):
    expect_fit(head_launches(dtype, both=both), 90)


def expect_fit(found: list[Enqueued], architecture: int) -> None:
    for launched in found:
        resources = compile_for(launched, architecture)
        assert resources.shared_bytes <= SHARED_BYTES[architecture], launched.name
        assert resources.registers <= 255
        assert resources.spill_bytes == 0, (launched.name, resources)
