"""The chunked form is at least ten times as fast as the per-token loop at T = 1024."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from hgrn2.reference import hgrn2_chunked, hgrn2_recurrent
from tests.hgrn2.operator_inputs import hgrn2_inputs


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_ten_times_as_fast_as_the_loop(backward):
    """One sequence, one head of width 32, one thread; measured in turn, best of three."""
    inputs = [x.float() for x in hgrn2_inputs(1, 1024, 1, 32, 32)[:4]]

    def run(form):
        if not backward:
            with torch.no_grad():
                form(*inputs)
            return
        leaves = [x.detach().requires_grad_() for x in inputs]
        torch.autograd.grad(form(*leaves)[0].sum(), leaves)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(hgrn2_chunked)
        measured = [
            (seconds(lambda: run(hgrn2_recurrent)), seconds(lambda: run(hgrn2_chunked)))
            for _ in range(3)
        ]
    finally:
        torch.set_num_threads(threads)
    loop, chunked = (min(times) for times in zip(*measured, strict=True))
    assert loop > 10 * chunked
