"""What a worker makes of a cell's end."""

from __future__ import annotations

import pickle

import pytest
import torch

from harness.worker import Outcome, measure
from tasks.base import Context
from tests.harness.toy_tasks import Toy


def outcome(ends: str) -> Outcome:
    turns = measure(pickle.dumps(Toy(ends=ends)), Context(torch.device("cpu")))
    with pytest.raises(StopIteration) as end:
        next(turns)
    return end.value.value


def test_out_of_memory_on_a_crowded_gpu_is_no_result() -> None:
    status, metrics, error = outcome("crowded_oom")
    assert (status, metrics) == ("error", {})
    assert error is not None
    assert error.startswith("other processes held 2.9 GiB of the GPU: OutOfMemoryError: CUDA")


@pytest.mark.parametrize("ends", ["oom", "desktop_oom", "contained_oom"])
def test_out_of_memory_otherwise_is_one(ends: str) -> None:
    status, _, error = outcome(ends)
    assert status == "oom"
    assert error is not None
    assert error.startswith("OutOfMemoryError: ")
