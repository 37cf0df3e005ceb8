"""The settings table's entries compile for every architecture, and fit, without a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from tests.hgrn2.triton_compilation import SHARED_BYTES, compile_for, launches

# The entries that differ in tiles, loops or precision; the GPU tests run every pair of widths.
ENTRIES = [
    (128, 128, torch.bfloat16, 80),
    (128, 128, torch.bfloat16, 90),
    (128, 128, torch.bfloat16, 100),
    (64, 64, torch.bfloat16, 90),
    (256, 256, torch.bfloat16, 90),
    (16, 256, torch.bfloat16, 90),
    (64, 64, torch.float32, 90),
    (32, 16, torch.float16, 80),
    (32, 64, torch.float32, 100),
]

# Bytes a thread that spill today: a ratchet, to be lowered with the kernels, never raised. The
# deep kernels, which hold the most, are for rare chunks.
SPILL_BYTES = {
    "hgrn2_fwd_states_kernel": 32,
    "hgrn2_bwd_gate_kernel": 376,
    "hgrn2_fwd_deep_kernel": 128,
    "hgrn2_bwd_deep_kernel": 1256,
}
# What Hopper spills in bf16, where the speed is measured.
HOPPER_BF16 = {
    "hgrn2_bwd_gate_kernel": 96,
    "hgrn2_fwd_deep_kernel": 112,
    "hgrn2_bwd_deep_kernel": 480,
}
# In both directions a chunk's kernels hold the sums of two.
BOTH_DIRECTIONS = {
    "hgrn2_fwd_output_kernel": 392,
    "hgrn2_bwd_gate_kernel": 1920,
    "hgrn2_fwd_deep_kernel": 272,
    "hgrn2_bwd_deep_kernel": 3320,
}
# A query's slope besides.
PROJECTED_BOTH_DIRECTIONS = {"hgrn2_bwd_gate_kernel": 1952, "hgrn2_bwd_deep_kernel": 1920}


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
        fast = dtype == torch.bfloat16 and architecture == 90
        bytes_of = HOPPER_BF16 if fast else SPILL_BYTES
        if launched.options.get("BIDIRECTIONAL"):
            projected = launched.options.get("PARTS") == 3
            bytes_of = PROJECTED_BOTH_DIRECTIONS if projected else BOTH_DIRECTIONS
        allowed = bytes_of.get(launched.name, 0)
        assert resources.spill_bytes <= allowed, (launched.name, resources)
