"""Attention's kernels of operands that are rounded, under Triton's interpreter: 16 bits and TF32.

Run by test_attention_triton.py, as interpreted_attention.py.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from mixers import attention_triton
from mixers.attention_kernels import attention_output
from tests.mixers.attention_inputs import DTYPES, check, check_much_in_common, draw
from tests.mixers.interpreted_attention import fused, separate


@pytest.mark.parametrize("k", [32, 128])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_results_and_gradients_of_16_bits(dtype, k):
    qkv, do = draw(2, 65, 2, k, dtype=DTYPES[dtype])
    check(partial(separate, fused(0.1)), qkv, do, 0.1, dtype)
    check(fused(0.0).packed, qkv, do, 0.0, dtype)


@pytest.mark.parametrize("k", [16, 64])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32"], indirect=True)
def test_what_keys_and_values_have_in_common_adds_nothing(precision, k):
    qkv, do = draw(2, 130, 1, k)
    check_much_in_common(fused(0.1).packed, qkv, do, 0.1, precision)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_delta_of_the_rounded_output_would_not_do(monkeypatch, dtype):
    def rounded_alone(*args):
        o, rest, *others = attention_output(*args)
        return o, torch.zeros_like(rest), *others

    monkeypatch.setattr(attention_triton, "attention_output", rounded_alone)
    qkv, do = draw(2, 130, 1, 64)
    with pytest.raises(AssertionError, match="dq: error"):
        check_much_in_common(fused(0.1).packed, qkv, do, 0.1, dtype)
