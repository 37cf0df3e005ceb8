"""The scan's settings compile for every architecture without a spill, without a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from tests.hgrn2.scan_compilation import launches
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
    for launched in launches(batch, dtype, turn=turn, both=both):
        resources = compile_for(launched, architecture)
        assert resources.shared_bytes <= SHARED_BYTES[architecture], launched.name
        assert resources.registers <= 255
        assert resources.spill_bytes == 0, (launched.name, resources)
