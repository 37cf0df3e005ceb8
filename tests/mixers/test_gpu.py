"""Every mixer on a GPU: the same numbers as on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mixers import Mixer
from tests.mixers.test_contract import D, assert_close, cases, decoded, moved, tokens

GPU = torch.device("cuda")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mixer", list(cases()))
def test_the_gpu_agrees_with_the_cpu(mixer: Mixer, causal: bool):
    cpu, gpu = moved(mixer, causal=causal), moved(mixer, causal=causal).to(GPU)
    x, lengths = tokens(2, 100), torch.tensor([100, 33])
    ours = gpu(x.to(GPU), lengths=lengths.to(GPU))
    exact = cpu(x, lengths=lengths)
    assert_close(ours[:, :33].cpu(), exact[:, :33])
    assert_close(ours[:1].cpu(), exact[:1])
    ours[:, :33].square().sum().backward()
    exact[:, :33].square().sum().backward()
    for (name, p), q in zip(gpu.named_parameters(), cpu.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if q.grad is not None:
            # As assert_close, for sums over 66 tokens of products of both passes' errors.
            allowed = 66 * (100 + D) * torch.finfo(q.dtype).eps * q.grad.abs().max()
            assert (p.grad.cpu() - q.grad).abs().max() <= allowed, name


@pytest.mark.parametrize("mixer", list(cases()))
def test_a_generator_on_the_gpu_builds_there(mixer: Mixer):
    def build(seed: int) -> nn.ModuleList:
        generator = torch.Generator(GPU).manual_seed(seed)
        return nn.ModuleList(mixer.stack(D, 2, causal=True, generator=generator))

    before = torch.cuda.get_rng_state()
    first, again = build(0), build(0)
    assert {p.device.type for p in first.parameters()} == {"cuda"}
    same = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in same)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = tokens(2, 70).to(GPU, dtype)
        y = first.to(dtype)[1](x)
        assert y.dtype == dtype
        assert y.isfinite().all()
    layer, x = first.double()[1], tokens(2, 70).to(GPU)
    assert_close(decoded(layer, x), layer(x))
    operator = mixer.operator(
        D, 2, 70, dtype=torch.bfloat16, generator=torch.Generator(GPU).manual_seed(0)
    )
    assert operator.run(*operator.inputs).isfinite().all()
    assert torch.equal(torch.cuda.get_rng_state(), before)
