"""Rows of a table and its gradient where there is no GPU: torch's own, and the kernel interpreted
and compiled for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixers.lookup import looked_up
from tests.apart import expect_passes
from tests.mixers.lookup_inputs import check, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_mostly_of_filler_is_looked_up_like_any_other(dtype):
    check(*draw(4, 300, 40, 24, dtype=dtype))


def test_gradcheck():
    table, ids, _ = draw(2, 9, 5, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda table: looked_up(table, ids), (table,))


def test_a_number_past_the_table_is_refused():
    table, ids, _ = draw(2, 9, 5, 3)
    with pytest.raises(IndexError):
        looked_up(table, ids + 5)


def test_the_interpreted_kernel_agrees_with_the_oracle():
    pytest.importorskip("triton")
    expect_passes(Path(__file__).with_name("interpreted_lookup.py"))


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("d", [24, 64, 128, 512])
def test_the_kernel_compiles_and_spills_nothing(d, architecture):
    pytest.importorskip("triton")
    from hgrn2.kernels.first_call import noted
    from mixers.lookup_kernel import gradient
    from tests.hgrn2.triton_compilation import SHARED_BYTES, compile_for

    for dtype in (torch.float32, torch.bfloat16):
        with noted() as launches:
            dy = torch.empty(8, 256, d, dtype=dtype, device="meta")
            gradient(dy, torch.empty(8, 256, dtype=torch.int64, device="meta"), 8192)
        (launch,) = launches
        resources = compile_for(launch, architecture)
        assert resources.shared_bytes <= SHARED_BYTES[architecture]
        assert resources.spill_bytes == 0
