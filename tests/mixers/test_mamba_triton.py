"""Mamba's kernels where there is no GPU: interpreted, compiled for one, and asked for wrongly.

triton reads TRITON_INTERPRET on import, so the interpreted_ file runs in a process of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

pytest.importorskip("triton")

from mixers import Mamba
from tests.apart import expect_passes
from tests.hgrn2.triton_compilation import compile_for
from tests.mixers.mamba_compilation import launches
from tests.mixers.test_contract import generator


def test_the_interpreted_kernels_agree_with_the_oracle():
    expect_passes(Path(__file__).with_name("interpreted_mamba.py"))


# Numbers of state -> bytes a thread that spill today, of the scan's passes and the convolution's: a
# ratchet.
SPILL_BYTES = {4: (0, 0, 0, 0), 10: (0, 64, 0, 0), 16: (0, 8, 0, 0), 24: (0, 56, 0, 0)}


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("channels", "d_state", "rows"),
    [(128, 16, 512), (128, 16, 1), (96, 24, 512), (64, 4, 512), (100, 10, 512)],
)
def test_entry_compiles_and_fits(channels, d_state, rows, dtype, architecture):
    """With up to 16 numbers of state nothing is exchanged among threads where a program of the
    scan's forward pass has as many channels: Triton gives each thread its own."""
    found = [compile_for(x, architecture) for x in launches(channels, d_state, dtype, rows)]
    forward, *others = SPILL_BYTES[d_state]
    if (d_state, rows) == (16, 512):
        # Two words, in fp32 and for sm_100, are the price of a fourth warp a scheduler.
        assert found[0].registers <= 128
        forward += 8
    for resources, allowed in zip(found, (forward, *others), strict=True):
        assert resources.spill_bytes <= allowed
        assert resources.registers <= 255
    assert found[0].shared_bytes == 0 or d_state > 16


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_segments_compile_and_fit(architecture):
    found = launches(128, 16, torch.float16, rows=1, tokens=4096)
    names = [launched.name for launched in found]
    walk = ["mamba_sum_kernel", "mamba_enter_kernel"]
    assert names[:6] == [*walk, "mamba_fwd_kernel", *walk, "mamba_bwd_kernel"]
    spilled = [compile_for(launched, architecture).spill_bytes for launched in found]
    for bytes_, allowed in zip(spilled, (0, 0, 0, 0, 0, 0, 0, 0), strict=True):
        assert bytes_ <= allowed


def test_bad_input_is_named():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    mixer = Mamba(impl="triton")
    assert mixer.unsupported(cpu, torch.float32) == (
        "impl='triton' needs a CUDA device, not cpu: use impl='reference'"
    )
    assert mixer.unsupported(gpu, torch.bfloat16) is None
    assert "not torch.float64" in str(mixer.unsupported(gpu, torch.float64))
    with pytest.raises(
        ValidationError, match=r"d_state = 300 does not fit impl = 'triton'.*1 to 256"
    ):
        Mamba(impl="triton", d_state=300)
    layer = mixer.stack(16, 1, causal=True, generator=generator(0))[0]
    with pytest.raises(ValueError, match="impl='triton' needs a CUDA device, not cpu"):
        layer(torch.zeros(1, 4, 16))
