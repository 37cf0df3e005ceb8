"""Attention's kernels where there is no GPU: interpreted, compiled for one, and asked for wrongly.

triton reads TRITON_INTERPRET on import, so the interpreted_ files run in processes of their own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from mixers import Attention
from mixers.attention_settings import HEAD_SIZES, PADDING, TABLE
from tests.apart import expect_passes
from tests.hgrn2.triton_compilation import SHARED_BYTES, compile_for
from tests.mixers.attention_compilation import launches
from tests.mixers.test_contract import generator

# (channels of a head, products, architecture) -> bytes a thread that spill today, of the forward
# pass, the queries' and the keys' gradients: a ratchet, to be lowered with the kernels. Raised
# twice: when masks came to cost a third and the loops got 4 to 44 % fewer instructions on Hopper,
# there from 104 (tf32 at 128) and 40 (tf32x3 at 64), elsewhere from 0, 632 and 848 (tf32x3); and
# by 8 on 80 (tf32x3 at 128), when the softmax came to sum rounded probabilities. The settings are
# made for Hopper; elsewhere the operands' halves of tf32x3 spill.
SPILL_BYTES = {
    (128, "bf16", 90): (0, 0, 32),
    (128, "tf32", 90): (0, 0, 128),
    (64, "tf32x3", 90): (0, 0, 64),
    (128, "tf32x3", 90): (24, 0, 8),
    (128, "bf16", 80): (0, 0, 8),
    (64, "tf32", 80): (0, 8, 392),
    (128, "tf32", 80): (0, 0, 8),
    (64, "tf32x3", 80): (16, 296, 864),
    (128, "tf32x3", 80): (1128, 0, 8),
    (64, "tf32x3", 100): (64, 448, 768),
    (128, "tf32x3", 100): (936, 0, 16),
}


# The same on Hopper, of some tokens' queries.
SPILL_BYTES_ALONE = {
    (64, "tf32x3"): (0, 0, 80),
    (128, "bf16"): (0, 8, 48),
    (128, "tf32"): (0, 24, 160),
    (128, "tf32x3"): (152, 0, 8),
}


@pytest.mark.parametrize(
    "file", ["interpreted_attention.py", "interpreted_queries.py", "interpreted_rounding.py"]
)
def test_the_interpreted_kernels_agree_with_the_oracle(file):
    expect_passes(Path(__file__).with_name(file))


def entries():
    for products in ("bf16", "tf32", "tf32x3"):
        yield from ((width, products, 90) for width in HEAD_SIZES)
        yield from ((width, products, place) for place in (80, 100) for width in (64, 128))


@pytest.fixture
def products(request):
    """The dtype of inputs that are multiplied so, where torch is told so meanwhile."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if request.param == "tf32" else "highest")
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("width", "products", "architecture"), list(entries()), indirect=["products"]
)
def test_entry_compiles_and_fits(width, products, architecture):
    dtype = torch.bfloat16 if products == "bf16" else torch.float32
    allowed = SPILL_BYTES.get((width, products, architecture), (0, 0, 0))
    for launched, spill_bytes in zip(launches(width, dtype, 0.1), allowed, strict=True):
        resources = compile_for(launched, architecture)
        assert resources.shared_bytes <= SHARED_BYTES[architecture], launched.name
        assert resources.registers <= 255
        assert resources.spill_bytes <= spill_bytes, (launched.name, resources)


@pytest.mark.parametrize("products", ["bf16", "tf32", "tf32x3"], indirect=True)
@pytest.mark.parametrize("width", [64, 128])
def test_queries_of_some_tokens_compile_and_fit(width, products):
    dtype = torch.bfloat16 if products == "bf16" else torch.float32
    allowed = SPILL_BYTES_ALONE.get((width, products), (0, 0, 0))
    for launched, spill_bytes in zip(launches(width, dtype, 0.1, alone=True), allowed, strict=True):
        resources = compile_for(launched, 90)
        assert resources.shared_bytes <= SHARED_BYTES[90], launched.name
        assert resources.spill_bytes <= spill_bytes, (launched.name, resources)


@pytest.mark.parametrize("width", HEAD_SIZES)
def test_without_dropout_there_is_neither_a_hash_nor_a_factor(width):
    for launched in launches(width, torch.bfloat16, 0.0):
        assert (launched.options["DROPPED"], launched.options["KEPT"]) == (0, 1)
        assert compile_for(launched, 90).spill_bytes == 0


def test_tiles_and_steps_are_parts_of_the_padding():
    for entry in TABLE.values():
        for launch in (entry.forward, entry.query, entry.key):
            assert PADDING % launch.block == PADDING % launch.step == 0


def test_heads_that_do_not_fit_are_named():
    for n_heads, d_model, instead in (
        (1, 256, "n_heads could be 16, 8, 4, 2"),
        (3, 72, "use impl = 'reference'"),
        (4, 32, "n_heads could be 2, 1"),
    ):
        mixer = Attention(impl="triton", n_heads=n_heads)
        with pytest.raises(
            ValueError, match=f"n_heads = {n_heads} of d_model = {d_model}.*{instead}"
        ):
            mixer.check_width(d_model)
    Attention(impl="triton", n_heads=2).check_width(64)


def test_both_directions_and_a_cpu_are_refused():
    mixer = Attention(impl="triton", dropout=0.1)
    with pytest.raises(ValueError, match=r"impl = 'triton' sees the past alone.*use impl = 'sdpa'"):
        mixer.stack(32, 2, causal=False, generator=generator(0))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert mixer.unsupported(cpu, torch.float32) == (
        "impl='triton' needs a CUDA device, not cpu: use impl='reference'"
    )
    assert mixer.unsupported(gpu, torch.bfloat16) is None
    assert "not torch.float64" in str(mixer.unsupported(gpu, torch.float64))
    layer = Attention(impl="triton").stack(32, 2, causal=True, generator=generator(0))[0]
    x = torch.zeros(1, 4, 32)
    with pytest.raises(ValueError, match="impl='triton' needs a CUDA device, not cpu"):
        layer(x)
    # One token at a time it is the eager form, which a CPU has.
    y, _ = layer.step(x[:, 0], layer.start(1, 4))
    assert y.isfinite().all()
