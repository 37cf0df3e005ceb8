"""A loss is compiled around the kernels of other libraries, here stand-ins for them.

Run by test_compiled_peers.py without jaxtyping's checks, which fail between compiled parts.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from mixers import GLA, HGRN2, Mamba, Mixer
from tasks.graphs import compiled
from tasks.mqar.recall import Recall
from tests.mixers import stand_ins
from tests.tasks.test_training import tiny

CPU = torch.device("cpu")
LAYERS = 2
PEERS = [
    (GLA(n_heads=2, impl="fla"), "fla.ops.gla", "chunk_gla"),
    (HGRN2(impl="fla", preset="biased", expand_ratio=16), "fla.ops.gla", "chunk_gla"),
    (Mamba(impl="mamba_ssm"), "mamba_ssm.ops.selective_scan_interface", "mamba_inner_fn"),
]


@pytest.mark.parametrize(("mixer", "module", "name"), PEERS, ids=["gla", "hgrn2", "mamba"])
def test_a_loss_is_compiled_around_a_kernel(mixer: Mixer, module: str, name: str, monkeypatch):
    functions = (stand_ins.FLA | stand_ins.MAMBA)[module]
    kernel, kinds = functions[name], []

    def watched(*inputs: Tensor, **options: object) -> object:
        assert not torch.compiler.is_compiling()
        kinds.append([x.dtype for x in inputs if x is not None])
        return kernel(*inputs, **options)

    stand_ins.install(monkeypatch, {module: functions | {name: watched}})
    task = tiny().model_copy(update={"mixer": mixer})
    model, problem = task.model(CPU).eval(), Recall(task, CPU)
    problem.start_epoch(0)
    fast = compiled(problem.loss, backend="aot_eager")

    def results(loss) -> tuple[Tensor, ...]:
        value = loss(model, *problem.batch(0))
        return value.detach(), *torch.autograd.grad(value, list(model.parameters()))

    plain = results(problem.loss)
    torch.compiler.reset()
    counters.clear()
    for ours, same in zip(results(fast), plain, strict=True):
        torch.testing.assert_close(ours, same)
    # What comes before each kernel, between two of them and after the last.
    assert counters["stats"]["unique_graphs"] > LAYERS
    assert len(kinds) == 2 * LAYERS
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results(problem.loss)
        results(fast)
    assert kinds[-LAYERS:] == kinds[-2 * LAYERS : -LAYERS]
    assert torch.bfloat16 in kinds[-1]
