"""The fused loss where there is no GPU: interpreted, compiled for one, and asked for wrongly.

triton reads TRITON_INTERPRET on import, so interpreted_cross_entropy.py runs in a process of its
own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from harness.grids_recall import mqar_step
from mixers.cross_entropy import _check, linear_cross_entropy
from mixers.cross_entropy_kernels import PADDING, ROWS
from mixers.cross_entropy_settings import TABLE
from tasks.base import Context, Unsupported
from tasks.mqar.task import MQAR
from tests.apart import expect_passes
from tests.hgrn2.triton_compilation import SHARED_BYTES, compile_for
from tests.mixers.cross_entropy_compilation import launches
from tests.mixers.cross_entropy_inputs import draw
from tests.tasks.test_training import tiny

# (width, products, architecture) -> bytes a thread that spill today, of the forward pass, the sum
# of its parts, the gradients of hidden rows and of the weight: a ratchet. Raised once, in TF32
# from 0 on Hopper and 72 on Ampere, when targets came to be of 32 bits: in bf16 the loops have 18
# to 40 % fewer instructions on Hopper, for which settings are made.
SPILL_BYTES = {
    (64, "bf16", 90): (0, 0, 0, 24),
    (64, "bf16", 100): (0, 0, 0, 8),
    (64, "tf32", 90): (0, 0, 8, 0),
    (64, "tf32", 80): (0, 0, 344, 0),
    (128, "tf32x3", 90): (0, 0, 80, 144),
    (64, "tf32x3", 80): (0, 0, 8, 104),
    (64, "tf32x3", 100): (0, 0, 0, 88),
}


def test_the_interpreted_kernels_agree_with_the_oracle():
    expect_passes(Path(__file__).with_name("interpreted_cross_entropy.py"))


def entries():
    for products in ("bf16", "tf32", "tf32x3"):
        yield from ((width, products, 90) for width in (64, 128))
        yield from ((64, products, place) for place in (80, 100))


@pytest.mark.parametrize(("width", "products", "architecture"), list(entries()))
def test_entry_compiles_and_fits(width, products, architecture):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if products == "tf32" else "highest")
    try:
        # Both forms of each kernel are of a vocabulary: the second has no whole number of steps.
        dtype = torch.bfloat16 if products == "bf16" else torch.float32
        launched = [kernel for words in (8192, 8001) for kernel in launches(width, dtype, words)]
    finally:
        torch.set_float32_matmul_precision(before)
    allowed = SPILL_BYTES.get((width, products, architecture), (0, 0, 0, 0))
    for kernel, spill_bytes in zip(launched, 2 * allowed, strict=True):
        resources = compile_for(kernel, architecture)
        assert resources.shared_bytes <= SHARED_BYTES[architecture], kernel.name
        assert resources.registers <= 255
        assert resources.spill_bytes <= spill_bytes, (kernel.name, resources)


def test_tiles_and_steps_are_parts_of_the_padding():
    for launch in (launch for entry in TABLE.values() for launch in entry):
        assert PADDING % launch.block == PADDING % launch.step == 0
    assert PADDING % ROWS == 0


def test_what_does_not_fit_is_named():
    hidden, weight, target = draw(4, 8, 16)
    with pytest.raises(ValueError, match="needs a CUDA device, not cpu: use fused_loss = False"):
        linear_cross_entropy(hidden, weight, target)
    with pytest.raises(ValueError, match=r"fused_loss = True takes d_model = 16.*not 24"):
        linear_cross_entropy(torch.zeros(4, 24), torch.zeros(8, 24), target)
    with pytest.raises(ValueError, match=r"torch\.float64"):
        linear_cross_entropy(hidden.double(), weight, target)
    shapes = r"takes \[n d\], \[vocab d\] and int64 \[n\]"
    for wrong in (
        (hidden[None], weight, target),
        (hidden, weight[:, :8], target),
        (hidden, weight, target[:2]),
        (hidden, weight, target[:, None]),
        (hidden, weight, target.int()),
    ):
        with pytest.raises(ValueError, match=shapes):
            _check(*wrong)


def test_without_triton_every_grid_is_listed(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr("mixers.cross_entropy_settings.find_spec", lambda _: None)
    assert any(cell.fused_loss for cell in mqar_step(torch.device("cuda")))
    with pytest.raises(Unsupported, match="needs triton, which is not installed: pip install"):
        tiny().model_copy(update={"fused_loss": True}).run(Context(torch.device("cpu")))


def test_a_cell_says_what_it_needs():
    fused = tiny().model_copy(update={"fused_loss": True})
    with pytest.raises(Unsupported, match="fused_loss = True needs a CUDA device, not cpu"):
        fused.run(Context(torch.device("cpu")))
    backbone = fused.backbone.model_copy(update={"d_model": 48})
    with pytest.raises(ValueError, match=r"fused_loss = True takes d_model = .*not 48"):
        MQAR.model_validate(dict(fused) | {"backbone": backbone})
