"""Memory: the peak is what the call takes, temporaries and all."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mixers import Attention
from tasks.base import Context
from tasks.memory import Memory

CPU = torch.device("cpu")


def test_quadratic_attention_takes_its_scores_worth_of_memory():
    """The eager scores of 1,024 tokens are 4 MiB a head and sequence; SDPA keeps none."""

    def peak(impl: str) -> float:
        task = Memory(
            mixer=Attention.model_validate({"impl": impl}),
            level="op",
            mode="fwd",
            seq_len=1024,
            batch=16,
            d_model=32,
        )
        return float(task.run(Context(CPU))["peak_mib"])

    # Pages are 4 KiB and the allocator keeps some: a twentieth less than the two score tensors.
    assert peak("reference") >= 0.95 * 2 * 16 * 4
    assert peak("sdpa") < 16 * 4


@pytest.mark.parametrize(("mib", "blocks"), [(4, 1), (64, 1), (16, 8), (64, 8)])
def test_peak_memory_sees_temporaries_also_after_a_warm_up(mib, blocks):
    """In a process of its own, as the runner gives it: an old heap has room that nobody sees."""
    code = f"""
import torch
from tasks.timing import peak_memory, track_memory

track_memory(torch.device("cpu"))

def call():
    held = [torch.ones({mib} * 2**18 // {blocks}) for _ in range({blocks})]
    for _ in range(20):
        held.append(torch.ones({mib} * 2**18 // {blocks}))
        held.pop(0)

for _ in range(3):
    call()
print(peak_memory(call, torch.device("cpu")).peak_mib)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # While one more is made, one more is there.
    assert float(done.stdout) == pytest.approx(mib * (1 + 1 / blocks), abs=0.5)
