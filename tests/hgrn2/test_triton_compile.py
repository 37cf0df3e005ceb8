"""The settings table's entries compile for every architecture, and fit, without a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from triton_compilation import SHARED_BYTES, compile_for, launches

# The entries that differ in tiles; the GPU tests run every pair of widths.
ENTRIES = [
    (128, 128, torch.bfloat16, 80),
    (128, 128, torch.bfloat16, 90),
    (128, 128, torch.bfloat16, 100),
    (16, 256, torch.bfloat16, 90),
    (64, 64, torch.float32, 90),
]


@pytest.mark.parametrize(("k", "v", "dtype", "architecture"), ENTRIES)
def test_entry_compiles_and_fits(k, v, dtype, architecture):
    seen = set()
    for launched in launches(k, v, dtype, architecture):
        key = launched.name, tuple(sorted(launched.options.items(), key=str))
        if key in seen:
            continue
        seen.add(key)
        resources = compile_for(launched, architecture)
        assert resources.shared_bytes <= SHARED_BYTES[architecture], launched.name
        assert resources.registers <= 255
        # The backward's chunk kernels hold more tiles than registers; every other stage must not.
        if not launched.name.startswith("hgrn2_bwd"):
            assert resources.spill_bytes <= 64, (launched.name, resources)
