"""What surrounds FLA's kernels: gates, scales, directions, states, fields, reasons."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pydantic import ValidationError

import mixers.fla
from hgrn2.reference import gate, hgrn1_recurrent, hgrn2_recurrent
from mixers import GLA, HGRN1, HGRN2, Mixer
from mixers.gla import gla_log_gate
from tests.mixers import stand_ins
from tests.mixers.test_contract import CHECKS, CPU, D, assert_close, generator, moved, tokens

GPU = torch.device("cuda")
MADE = [
    HGRN2(impl="fla", preset="biased", expand_ratio=16),
    HGRN2(impl="fla", preset="lm", expand_ratio=8, lower_bound="cumsum"),
    HGRN2(impl="fla", preset="fla", expand_ratio=32, lower_bound="exclusive"),
    HGRN1(impl="fla_chunk", kind="real"),
    HGRN1(impl="fla_recurrent", kind="real", expand=2, lower_bound="cumsum"),
    GLA(impl="fla"),
    GLA(impl="fla", n_heads=2, expand_k=1.0, expand_v=0.5, gate_rank=4),
]


@pytest.fixture
def fla(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.install(monkeypatch, stand_ins.FLA)


def reference_of(mixer: Mixer) -> Mixer:
    return mixer.model_copy(update={"impl": "reference"})


@pytest.mark.usefixtures("fla")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mixer", MADE, ids=repr)
def test_the_layer_is_the_references(mixer: Mixer, causal: bool):
    ours, exact = (moved(m, causal=causal) for m in (mixer, reference_of(mixer)))
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in exact.named_parameters()]
    x, lengths = tokens(3, 100), torch.tensor([100, 33, 1])
    y, expected = ours(x, lengths=lengths), exact(x, lengths=lengths)
    for row, n in enumerate(lengths):
        assert_close(y[row : row + 1, :n], expected[row : row + 1, :n])
    x.requires_grad_()
    dy = tokens(3, 100, seed=8)
    grads = [torch.autograd.grad(m(x), [x, *m.parameters()], dy) for m in (ours, exact)]
    for mine, same in zip(*grads, strict=True):
        # Sums over 300 tokens of products of both passes' errors.
        allowed = 300 * (100 + D) * torch.finfo(x.dtype).eps * same.abs().max()
        assert (mine - same).abs().max() <= allowed


@pytest.mark.usefixtures("fla")
@pytest.mark.parametrize("check", [c for c in CHECKS if c.__name__ != "check_configuration"])
@pytest.mark.parametrize("mixer", MADE, ids=repr)
def test_contract(mixer: Mixer, check):
    check(mixer)


@pytest.mark.parametrize("bounds", [None, 0.0, 1e-30, 1e-3, 0.5, 1 - 2**-23])
def test_the_gate_is_the_references(bounds: float | None):
    z = torch.tensor([-50.0, -20, -3, 0, 3, 20, 50]).repeat(3, 1).requires_grad_()
    bound = None if bounds is None else torch.full((7,), bounds, requires_grad=True)
    log_f, key = mixers.fla.tied_gate(z, bound, torch.float32)
    exact = bound.double() if bound is not None else torch.zeros(7, dtype=torch.float64)
    f, exact_key = gate(z.double(), exact)
    torch.testing.assert_close(log_f.exp(), f.float(), rtol=4e-7, atol=1e-30)
    # 1 - f loses the low bits of a small key: FLA's way.
    torch.testing.assert_close(key, exact_key.float(), rtol=0, atol=2e-7)
    wanted = [z] if bound is None else [z, bound]
    # The loss is a function of f through either form.
    ours = torch.autograd.grad(log_f.exp().sum() + 2 * key.sum(), wanted)
    expected = torch.autograd.grad(f.sum() + 2 * exact_key.sum(), wanted)
    for mine, same in zip(ours, expected, strict=True):
        # log 1e-30 is near -69, half a unit in its last place is 4e-6 of the exponential, and the
        # two terms of the bound's gradient nearly cancel.
        torch.testing.assert_close(mine, same, rtol=1e-4, atol=1e-5)


def naive(path: str) -> ModuleType:
    """FLA's own eager loop, without importing the package."""
    package = importlib.util.find_spec("fla")
    if package is None or package.origin is None:
        pytest.skip("flash-linear-attention is not installed")
    file = Path(package.origin).parent / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("bounded", [True, False])
def test_flas_own_loops_take_what_we_give_them(bounded: bool):
    loops = naive("ops/gla/naive.py"), naive("ops/hgrn/naive.py")
    q, z, v = (torch.randn(2, 30, 2, 8, generator=generator(seed)) for seed in range(3))
    state = torch.randn(2, 2, 8, 8, generator=generator(3))
    bound = torch.rand(2, 8, generator=generator(4)) if bounded else torch.zeros(2, 8)
    log_f, key = mixers.fla.tied_gate(z, bound if bounded else None, v.dtype)
    # The loop scales by the root of the head size, as chunk_gla does where no scale is given.
    y, last = loops[0].naive_recurrent_gla(q * 8**0.5, key, v, log_f, state, True)
    expected, exact_last = hgrn2_recurrent(q, z, v, bound, state=state)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(last, exact_last, rtol=0, atol=1e-5)

    v, z, bound, state = v.flatten(2), z.flatten(2), bound.flatten(), state[:, :, 0].flatten(1)
    log_f, gated = mixers.fla.tied_input(z, bound if bounded else None, v)
    h, last = loops[1].naive_recurrent_hgrn(gated, log_f, state, True)
    expected, exact_last = hgrn1_recurrent(v, z, bound, state=state)
    torch.testing.assert_close(h, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(last, exact_last, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("fla")
def test_the_state_of_16_bit_decoding_is_fp32():
    for mixer in MADE:
        layer, x = moved(mixer).bfloat16(), tokens(2, 3).bfloat16()
        state = layer.start(2, 3)
        for token in x.unbind(1):
            y, state = layer.step(token, state)
            assert y.dtype == torch.bfloat16
            assert {s.dtype for s in state} == {torch.float32}


def test_each_implementation_runs_the_kernel_of_its_name(monkeypatch: pytest.MonkeyPatch):
    called: list[str] = []

    def named(name: str, function: object) -> object:
        assert callable(function)

        def call(*args: object, **options: object) -> object:
            called.append(name)
            return function(*args, **options)

        return call

    watched = {
        module: {name: named(name, function) for name, function in functions.items()}
        for module, functions in stand_ins.FLA.items()
    }
    stand_ins.install(monkeypatch, watched)
    kernels = {"hgrn2": "chunk_gla", "gla": "chunk_gla", "fla_chunk": "chunk_hgrn"}
    for mixer in MADE:
        layer = moved(mixer)
        called.clear()
        # As short as a sequence can be: FLA's own layers would take another kernel.
        layer(tokens(1, 1))
        name = kernels.get(mixer.name) or kernels.get(mixer.impl, "fused_recurrent_hgrn")
        assert called == [name]
        layer.step(tokens(1, 1)[:, 0], layer.start(1, 1))
        assert called[1:] == [
            "fused_recurrent_hgrn" if mixer.name == "hgrn1" else "fused_recurrent_gla"
        ]


@pytest.mark.usefixtures("fla")
def test_a_compiled_gate_is_compiled_whole(monkeypatch: pytest.MonkeyPatch):
    compiled: list[str] = []

    def recorded(function, *, fullgraph: bool, dynamic: bool):
        assert fullgraph
        assert not dynamic
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", recorded)
    mixers.fla._compiled.cache_clear()
    for mixer in (MADE[1], MADE[4], MADE[5]):
        eager, whole = (moved(mixer.model_copy(update={"gate": g})) for g in ("eager", "compiled"))
        x = tokens(2, 20)
        assert torch.equal(whole(x), eager(x))
    mixers.fla._compiled.cache_clear()
    assert compiled == ["tied_gate", "tied_input", "gla_log_gate"]


def test_the_gates_can_be_compiled_whole():
    """By torch.compile's tracer alone, its code generator being the GPU's test's; in a process of
    its own, where no type checks are wrapped around the functions."""
    code = """
import torch
from mixers import fla
from mixers.gla import gla_log_gate

z, v = (torch.randn(2, 5, 3, 4, requires_grad=True) for _ in range(2))
bound = torch.rand(3, 4, requires_grad=True)
for function, args in (
    (fla.tied_gate, (z, bound, torch.bfloat16)),
    (fla.tied_gate, (z, None, torch.float32)),
    (fla.tied_input, (z, bound, v)),
    (gla_log_gate, (z,)),
):
    whole = torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")
    results = []
    for run in (function, whole):
        out = run(*args)
        out = out if isinstance(out, tuple) else (out,)
        wanted = [x for x in args if isinstance(x, torch.Tensor)]
        results.append([*out, *torch.autograd.grad(sum(x.float().sum() for x in out), wanted)])
    for mine, same in zip(*results, strict=True):
        torch.testing.assert_close(mine, same)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", [HGRN2, HGRN1, GLA])
def test_a_gate_that_nothing_runs_is_no_field_of_the_record(kind: type[Mixer]):
    assert "gate" not in kind.model_validate({}).model_dump()
    with pytest.raises(ValidationError, match=r"gate = 'compiled' does not fit impl = 'reference'"):
        kind.model_validate({"gate": "compiled"})


@pytest.mark.parametrize("gate", ["eager", "compiled"])
def test_flas_gate_is_a_field_of_the_record(gate: str):
    for mixer in MADE:
        made = mixer.model_copy(update={"gate": gate})
        assert made.model_dump()["gate"] == gate
        assert type(mixer).model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize("mixer", MADE, ids=repr)
def test_what_flas_kernels_need_is_named(mixer: Mixer, monkeypatch: pytest.MonkeyPatch):
    reason = mixer.unsupported(CPU, torch.float32)
    assert reason == f"impl={mixer.impl!r} needs a CUDA device, not cpu: use impl='reference'"
    assert "not torch.float64" in str(mixer.unsupported(GPU, torch.float64))
    installed = {"triton"}
    monkeypatch.setattr(mixers.fla, "find_spec", lambda name: name if name in installed else None)
    missing = str(mixer.unsupported(GPU, torch.bfloat16))
    assert "pip install flash-linear-attention==0.6.0" in missing
    installed.add("fla")
    assert mixer.unsupported(GPU, torch.bfloat16) is None


def test_a_complex_cell_is_not_flas():
    mixer = HGRN1(impl="fla_chunk")
    assert mixer.unsupported(GPU, torch.bfloat16) == (
        "impl='fla_chunk' scans real cells alone: use kind='real'"
    )
    with pytest.raises(ValueError, match="scans real cells"):
        moved(mixer)(tokens(1, 3))


def test_gla_divides_the_logarithm_of_its_gate():
    z = torch.randn(3, 5, generator=generator(0))
    exact = (torch.sigmoid(z.double()) ** (1 / 16)).log()
    torch.testing.assert_close(gla_log_gate(z).double(), exact, rtol=1e-6, atol=0)
