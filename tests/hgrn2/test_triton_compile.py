"""The settings table's entries compile for every architecture, and fit, without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")

from hgrn2.kernels.first_call import Enqueued
from tests.hgrn2.triton_compilation import SHARED_BYTES, Resources, compile_for, launches

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


# The same of GLA, whose key is a tensor of its own: the most that Triton 3.6 or 3.7 spills.
FREE_KEY_ENTRIES = [
    (32, 64, torch.bfloat16, 90),
    (64, 128, torch.bfloat16, 90),
    (128, 256, torch.bfloat16, 90),
    (128, 128, torch.bfloat16, 80),
    (128, 128, torch.bfloat16, 100),
    (64, 64, torch.float32, 90),
]
FREE_KEY_SPILL_BYTES = {
    "hgrn2_fwd_states_kernel": 16,
    "hgrn2_bwd_gate_kernel": 392,
    "hgrn2_fwd_deep_kernel": 160,
    "hgrn2_bwd_deep_kernel": 1352,
}
FREE_KEY_HOPPER_BF16 = {
    "hgrn2_bwd_gate_kernel": 40,
    "hgrn2_fwd_deep_kernel": 232,
    "hgrn2_bwd_deep_kernel": 672,
}
FREE_KEY_BOTH_DIRECTIONS = {
    "hgrn2_fwd_output_kernel": 496,
    "hgrn2_bwd_gate_kernel": 2200,
    "hgrn2_fwd_deep_kernel": 432,
    "hgrn2_bwd_deep_kernel": 2056,
}


@pytest.mark.parametrize(("k", "v", "dtype", "architecture"), ENTRIES)
def test_entry_compiles_and_fits(k, v, dtype, architecture):
    for launched, resources in compiled(launches(k, v, dtype, architecture), architecture):
        fast = dtype == torch.bfloat16 and architecture == 90
        bytes_of = HOPPER_BF16 if fast else SPILL_BYTES
        if launched.options.get("BIDIRECTIONAL"):
            projected = launched.options.get("PARTS") == 3
            bytes_of = PROJECTED_BOTH_DIRECTIONS if projected else BOTH_DIRECTIONS
        allowed = bytes_of.get(launched.name, 0)
        assert resources.spill_bytes <= allowed, (launched.name, resources)


@pytest.mark.parametrize(("k", "v", "dtype", "architecture"), FREE_KEY_ENTRIES)
def test_a_free_keys_entry_compiles_and_fits(k, v, dtype, architecture):
    found = launches(k, v, dtype, architecture, free_key=True)
    for launched, resources in compiled(found, architecture):
        fast = dtype == torch.bfloat16 and architecture == 90
        bytes_of = FREE_KEY_HOPPER_BF16 if fast else FREE_KEY_SPILL_BYTES
        if launched.options.get("BIDIRECTIONAL"):
            bytes_of = FREE_KEY_BOTH_DIRECTIONS
        allowed = bytes_of.get(launched.name, 0)
        assert resources.spill_bytes <= allowed, (launched.name, resources)


def compiled(found: list[Enqueued], architecture: int) -> Iterator[tuple[Enqueued, Resources]]:
    """Each kernel once, which fits a program's registers and shared memory."""
    seen = set()
    for launched in found:
        key = launched.name, tuple(sorted(launched.options.items(), key=str))
        if key in seen:
            continue
        seen.add(key)
        resources = compile_for(launched, architecture)
        assert resources.shared_bytes <= SHARED_BYTES[architecture], launched.name
        assert resources.registers <= 255
        yield launched, resources
