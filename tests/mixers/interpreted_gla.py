"""GLA's layer on our kernels under Triton's interpreter: the reference's layer.

Run by test_gla.py, as tests/hgrn2/interpreted_gla.py, which holds the kernels to their bar: their
results are the reference's to the rounding of fp32.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

import hgrn2.api
import mixers.gla
from mixers import GLA
from tests.mixers import test_contract as contract
from tests.mixers.test_contract import D, decoded, generator

assert os.environ.get("TRITON_INTERPRET") == "1"

# Heads of 16 keys and 32 values, and of 32 and 16.
MIXERS = [
    GLA(impl="triton", n_heads=1),
    GLA(impl="triton", n_heads=2, expand_k=2.0, expand_v=1.0),
]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (hgrn2.api, mixers.gla):
        monkeypatch.setattr(module, "unsupported", lambda *_: None)


def tokens(batch: int, t: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, t, D, generator=generator(seed))


def layer(mixer: GLA, impl: str = "triton", *, causal: bool = True) -> nn.Module:
    mixer = mixer.model_copy(update={"impl": impl})
    return mixer.stack(D, 2, causal=causal, generator=generator(0))[0]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mixer", MIXERS, ids=repr)
def test_the_layer_is_the_references(mixer, causal):
    x, lengths = tokens(3, 70).requires_grad_(), torch.tensor([70, 33, 1])
    at = torch.tensor([[69, 3], [32, 0], [0, 5]])
    found = []
    for impl in ("triton", "reference"):
        own, results = layer(mixer, impl, causal=causal), []
        for y in (own(x, lengths=lengths), own(x, lengths=lengths, at=at)):
            results += [y, *torch.autograd.grad(y.sin().sum(), [x, *own.parameters()])]
        found.append(results)
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, **CLOSE)


@pytest.mark.parametrize("mixer", MIXERS, ids=repr)
def test_steps_are_the_forward(mixer):
    own, x = layer(mixer), tokens(2, 20)
    torch.testing.assert_close(decoded(own, x), own(x), **CLOSE)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("causal", [True, False])
def test_compiled_without_a_break(backend, causal):
    x, lengths, found = tokens(2, 20), torch.tensor([20, 7]), []
    for compiled in (False, True):
        own = layer(MIXERS[0], causal=causal)
        run = torch.compile(own, backend=backend, fullgraph=True) if compiled else own
        run(x, lengths=lengths).square().sum().backward()
        with torch.no_grad():
            found.append([run(x, lengths=lengths), *(p.grad for p in own.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


# Of what every mixer promises, what does not need fp64.
@pytest.mark.parametrize(
    "promise",
    [contract.check_configuration, contract.check_state_size, contract.check_operator],
    ids=lambda check: check.__name__,
)
@pytest.mark.parametrize("mixer", MIXERS, ids=repr)
def test_contract(mixer, promise):
    promise(mixer)
