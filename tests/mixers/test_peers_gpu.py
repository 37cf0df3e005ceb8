"""Every peer's implementation on a GPU, and ours of the peers' layers: the layer of the reference,
to the peer's precision; of our mixers too, the tokens that a layer is asked for.

An error may be twice the reference's in the same dtype, and a band more: eight roundings in a row
of the operands of products, as FLA's chunks have them (scores, their product with the values, the
state, the key, and each again in the backward). In bf16 they round by 2^-9; in fp32 FLA's products
take tf32 operands, which round by 2^-11. HGRN1's scans, Mamba's and attention in fp32 do not: there
the band is eight roundings of fast exponentials, which are off by 2^-22.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mixers import GLA, HGRN1, HGRN2, Attention, Mamba, Mixer
from tests.mixers.test_contract import decoded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("little_tuning"),
    # torch's own, of the first product in a process that runs in the backward pass.
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning"),
]
GPU = torch.device("cuda")
WIDTH = 256
PEERS = [
    HGRN2(impl="fla", preset="biased", expand_ratio=128),
    HGRN2(impl="fla", preset="lm", expand_ratio=64, lower_bound="cumsum"),
    HGRN2(impl="fla", preset="fla", expand_ratio=32, lower_bound="exclusive"),
    HGRN1(impl="fla_chunk", kind="real", lower_bound="cumsum"),
    HGRN1(impl="fla_recurrent", kind="real", expand=2),
    GLA(impl="fla", n_heads=2),
    GLA(impl="triton", n_heads=2),
    GLA(impl="triton", n_heads=8, expand_k=1.0, gate_rank=4),
    Mamba(impl="mamba_ssm"),
    Mamba(impl="mamba_ssm", d_state=8, d_conv=2),
    Mamba(impl="triton"),
    Mamba(impl="triton", d_state=24, d_conv=1),
    Attention(impl="sdpa", n_heads=4),
    Attention(impl="sdpa_flash", n_heads=4),
    Attention(impl="sdpa_cudnn", n_heads=4),
]
GATED = [mixer for mixer in PEERS if mixer.impl.startswith("fla")]
OURS = [
    HGRN2(impl="triton", preset="biased"),
    HGRN2(impl="triton", preset="lm", expand_ratio=8, lower_bound="cumsum"),
    HGRN1(impl="triton"),
    HGRN1(impl="triton", kind="real", expand=2),
    Attention(impl="triton", n_heads=4),
]
DTYPES = [torch.float32, torch.bfloat16]


def need(mixer: Mixer, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if (reason := mixer.unsupported(GPU, dtype)) is not None:
        pytest.skip(reason)


def band(mixer: Mixer, dtype: torch.dtype) -> float:
    if dtype == torch.bfloat16:
        return 8 * 2**-9
    return 8 * (2**-11 if mixer.name in ("hgrn2", "gla") else 2**-22)


def layer_of(mixer: Mixer, dtype: torch.dtype, *, causal: bool = True) -> nn.Module:
    """The second layer of two, whose lower bound is above 0, its parameters rounded to dtype."""
    draw = torch.Generator(GPU).manual_seed(0)
    return mixer.stack(WIDTH, 2, causal=causal, generator=draw)[1].to(dtype)


def drawn(t: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    draw = torch.Generator(GPU).manual_seed(seed)
    return torch.randn(2, t, WIDTH, generator=draw, device=GPU).to(dtype)


def results(
    layer: nn.Module, x: Tensor, dy: Tensor, run: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """y, and the gradients of x and of the parameters; `run`: another call of the layer."""
    x = x.detach().requires_grad_()
    y = layer(x) if run is None else run(x)
    wanted = {"x": x} | dict(layer.named_parameters())
    grads = torch.autograd.grad(y, list(wanted.values()), dy.to(y.dtype))
    return {"y": y.detach()} | dict(zip(wanted, grads, strict=True))


def error(x: Tensor, exact: Tensor) -> float:
    return float((x.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("t", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mixer", PEERS, ids=repr)
def test_the_layer_is_the_references(mixer: Mixer, dtype: torch.dtype, t: int, causal: bool):
    need(mixer, dtype)
    if mixer.impl == "mamba_ssm" and not causal:
        pytest.skip("mamba_ssm runs forwards alone")
    if mixer.impl == "sdpa_cudnn" and t == 1:
        pytest.skip("cuDNN has no kernel for one token")
    oracle = mixer.model_copy(update={"impl": "reference"})
    x, dy = drawn(t, dtype), drawn(t, dtype, seed=2)
    exact = results(layer_of(oracle, dtype, causal=causal).double(), x.double(), dy.double())
    same = results(layer_of(oracle, dtype, causal=causal), x, dy)
    mine = results(layer_of(mixer, dtype, causal=causal), x, dy)
    for name, value in exact.items():
        if value.norm() > 0:
            allowed = 2 * error(same[name], value) + band(mixer, dtype)
            assert error(mine[name], value) <= allowed, name


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mixer", PEERS, ids=repr)
def test_padding_changes_nothing(mixer: Mixer, causal: bool):
    dtype = torch.bfloat16
    need(mixer, dtype)
    if not causal and mixer.impl in ("mamba_ssm", "sdpa_flash"):
        pytest.skip("does not run both directions, or not with lengths")
    layer, x = layer_of(mixer, dtype, causal=causal), drawn(100, dtype)
    lengths = torch.tensor([100, 33], device=GPU)
    with torch.no_grad():
        y, alone = layer(x, lengths=lengths), layer(x[1:, :33].contiguous())
    assert error(y[1:, :33], alone.double()) <= band(mixer, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mixer", [*PEERS, *OURS], ids=repr)
def test_tokens_asked_for_alone_are_those_of_all(mixer: Mixer, dtype: torch.dtype):
    need(mixer, dtype)
    layer, x = layer_of(mixer, dtype), drawn(100, dtype)
    at = torch.tensor([[99, 0, 64], [5, 63, 6]], device=GPU)
    row = torch.arange(2, device=GPU)[:, None]
    dy = drawn(3, dtype, seed=2)
    found = results(layer, x, dy, lambda x: layer(x, at=at))
    expected = results(layer, x, dy, lambda x: layer(x)[row, at])
    for name, value in expected.items():
        assert value.isfinite().all(), name
        # Products of fewer rows may sum in another order.
        allowed = band(mixer, dtype) * value.double().norm()
        assert (found[name].double() - value.double()).norm() <= allowed, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mixer", PEERS, ids=repr)
def test_steps_are_the_forward(mixer: Mixer, dtype: torch.dtype):
    need(mixer, dtype)
    if mixer.impl == "sdpa_flash":
        pytest.skip("takes no mask, so it does not decode")
    oracle = mixer.model_copy(update={"impl": "reference"})
    x = drawn(40, dtype)
    with torch.no_grad():
        exact = layer_of(oracle, dtype).double()(x.double())
        same, mine = (decoded(layer_of(m, dtype), x) for m in (oracle, mixer))
    assert error(mine, exact) <= 2 * error(same, exact) + band(mixer, dtype)


# Dynamo looks at the .grad of every input and hides torch's warning, but not from a filter "error".
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mixer", GATED, ids=repr)
def test_a_compiled_gate_is_the_eager_one(mixer: Mixer, dtype: torch.dtype):
    need(mixer, dtype)
    # Every case is a process to torch.compile, which keeps a few shapes of a function.
    torch.compiler.reset()
    x, dy = drawn(100, dtype), drawn(100, dtype, seed=2)
    eager, whole = (
        results(layer_of(mixer.model_copy(update={"gate": g}), dtype), x, dy)
        for g in ("eager", "compiled")
    )
    for name, value in eager.items():
        # Both round the same chain, the last step to dtype: a neighbour at the most, and tf32's.
        if value.norm() > 0:
            assert error(whole[name], value.double()) <= band(mixer, dtype), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mixer", PEERS, ids=repr)
def test_the_operator_is_the_references(mixer: Mixer, dtype: torch.dtype):
    need(mixer, dtype)

    def operator(made: Mixer, arithmetic: torch.dtype) -> list[Tensor]:
        draw = torch.Generator(GPU).manual_seed(0)
        op = made.operator(WIDTH, 2, 200, dtype=dtype, generator=draw)
        inputs = [x.to(arithmetic).requires_grad_() for x in op.inputs]
        y = op.run(*inputs)
        dy = torch.randn(y.shape, generator=torch.Generator(GPU).manual_seed(1), device=GPU)
        return [y.detach(), *torch.autograd.grad(y, inputs, dy.to(dtype).to(y.dtype))]

    oracle = mixer.model_copy(update={"impl": "reference"})
    exact, same = operator(oracle, torch.float64), operator(oracle, dtype)
    for index, mine in enumerate(operator(mixer, dtype)):
        allowed = 2 * error(same[index], exact[index]) + band(mixer, dtype)
        assert error(mine, exact[index]) <= allowed, index
