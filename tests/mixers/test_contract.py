"""What every mixer promises. A class in MIXERS is tested by being listed, its variants walked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mixers import MIXERS, Mixer
from mixers.base import MixerLayer

D = 32
CPU = torch.device("cpu")
BOTH = (True, False)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(batch: int, t: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, t, D, generator=generator(seed), dtype=torch.float64)


def layers(mixer: Mixer, *, causal: bool, n_layers: int = 2, seed: int = 0) -> nn.ModuleList:
    return nn.ModuleList(mixer.stack(D, n_layers, causal=causal, generator=generator(seed)))


def moved(mixer: Mixer, *, causal: bool = True) -> nn.Module:
    """A third layer in fp64 whose parameters left their start, where much holds by accident."""
    stack = layers(mixer, causal=causal, n_layers=3)
    noise = generator(2)
    with torch.no_grad():
        for p in stack.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=noise))
    return stack.double()[2]


def assert_close(ours: Tensor, exact: Tensor) -> None:
    """As sums in another order may differ: eps for each of the terms, tokens and channels."""
    terms = exact.shape[1] + D
    allowed = terms * torch.finfo(exact.dtype).eps * exact.abs().max()
    assert (ours - exact).abs().max() <= allowed


def decoded(layer: nn.Module, x: Tensor) -> Tensor:
    state, y = layer.start(x.shape[0], x.shape[1]), []
    for x_t in x.unbind(1):
        y_t, state = layer.step(x_t, state)
        y.append(y_t)
    return torch.stack(y, 1)


def check_configuration(mixer: Mixer) -> None:
    assert hash(mixer) == hash(mixer.model_copy())
    assert type(mixer).model_validate_json(mixer.model_dump_json()) == mixer
    with pytest.raises(ValidationError, match="expand_ration"):
        type(mixer).model_validate(mixer.model_dump() | {"expand_ration": 2})
    with pytest.raises(ValidationError, match="impl"):
        type(mixer).model_validate(mixer.model_dump() | {"impl": "magic"})
    assert mixer.unsupported(CPU, torch.float32) is None
    oracle = mixer.model_copy(update={"impl": "reference"})
    assert type(mixer).model_validate(oracle.model_dump()) == oracle


def check_shape_and_dtype(mixer: Mixer) -> None:
    for causal in BOTH:
        stack = layers(mixer, causal=causal, n_layers=3)
        assert len(stack) == 3
        assert all(isinstance(layer, MixerLayer) for layer in stack)
        assert {p.dtype for p in stack.parameters()} == {torch.float32}
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            x = tokens(2, 9).to(dtype)
            for layer in stack.to(dtype):
                y = layer(x)
                assert y.shape == x.shape
                assert y.dtype == dtype
                assert y.isfinite().all()


def check_seed(mixer: Mixer) -> None:
    before = torch.get_rng_state()
    for causal in BOTH:
        first, again, other = (layers(mixer, causal=causal, seed=s) for s in (3, 3, 4))
        same = zip(first.parameters(), again.parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in same)
        differ = zip(first.parameters(), other.parameters(), strict=True)
        assert any(not torch.equal(p, q) for p, q in differ)
        x = tokens(2, 9).float()
        assert torch.equal(first[0](x), again[0](x))
        first[0](x).sum().backward()
        if causal:
            decoded(first[0], x)
    mixer.operator(D, 2, 9, dtype=torch.float32, generator=generator(0))
    assert torch.equal(torch.get_rng_state(), before)


def check_causality(mixer: Mixer) -> None:
    layer = moved(mixer, causal=True)
    for dtype in (torch.float64, torch.float32):
        layer, x = layer.to(dtype), tokens(2, 130).to(dtype)
        y = layer(x)
        for t in (1, 31, 64, 65, 129):
            later = torch.cat([x[:, :t], 3 + tokens(2, 130 - t, seed=5).to(dtype)], dim=1)
            changed = layer(later)
            assert torch.equal(changed[:, :t], y[:, :t])
            assert not torch.equal(changed[:, t], y[:, t])


def check_both_directions(mixer: Mixer) -> None:
    """A token reaches its neighbours on both sides, across a chunk's end too."""
    layer, x = moved(mixer, causal=False), tokens(1, 130)
    y = layer(x)
    for t in (0, 64, 129):
        other = x.clone()
        other[:, t] += 1
        changed = (layer(other) != y).any(-1)[0]
        assert changed[max(0, t - 5) : t + 6].all()


def check_padding(mixer: Mixer) -> None:
    """No valid token changes with the padding's values, its number, or the other rows; at every
    length around a chunk's end."""
    for causal in BOTH:
        layer = moved(mixer, causal=causal)
        lengths = torch.tensor([1, 63, 64, 65, 0])
        x = tokens(5, 100).requires_grad_()
        y = layer(x, lengths=lengths)
        garbage = x.detach().clone()
        for row, n in enumerate(lengths):
            garbage[row, n:] = 1e3 * tokens(1, 100, seed=6)[0, n:]
        dirty = layer(garbage, lengths=lengths)
        long = layer(torch.cat([garbage, tokens(5, 900)], dim=1), lengths=lengths)
        assert y.isfinite().all()
        valid = [y[row, :n] for row, n in enumerate(lengths)]
        for row, n in enumerate(lengths[:-1]):
            assert torch.equal(dirty[row, :n], valid[row])
            assert_close(long[row : row + 1, :n], valid[row][None])
            assert_close(layer(x[row : row + 1, :n]), valid[row][None])
        torch.cat(valid).square().sum().backward()
        for row, n in enumerate(lengths):
            assert (x.grad[row, n:] == 0).all()


def check_positions(mixer: Mixer) -> None:
    """Valid tokens asked for alone are those of all, in any order, and so are the gradients."""
    at, lengths = torch.tensor([[69, 0, 33], [5, 39, 6]]), torch.tensor([70, 40])
    for causal in BOTH:
        layer, found = moved(mixer, causal=causal), []
        for alone in (True, False):
            x = tokens(2, 70).requires_grad_()
            if alone:
                y = layer(x, lengths=lengths, at=at)
            else:
                y = layer(x, lengths=lengths)[torch.arange(2)[:, None], at]
            leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
            gradients = torch.autograd.grad(y.sin().sum(), leaves, allow_unused=True)
            found.append([y, *(g for g in gradients if g is not None)])
        for ours, exact in zip(*found, strict=True):
            # Zeros where the rest of a token's terms are: as sums in another order may differ.
            assert (ours - exact).abs().max() <= 1e-12 * exact.abs().max()


def check_batch_invariance(mixer: Mixer) -> None:
    for causal in BOTH:
        layer, x = moved(mixer, causal=causal), tokens(3, 70)
        y = layer(x)
        for row in range(3):
            assert_close(layer(x[row : row + 1]), y[row : row + 1])


def check_gradients(mixer: Mixer) -> None:
    for causal in BOTH:
        stack = layers(mixer, causal=causal, n_layers=3)
        x = tokens(2, 20).float()
        for layer in stack:
            x = x + layer(x)
        (x * tokens(2, 20, seed=7).float()).sum().backward()
        for name, p in stack.named_parameters():
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
            assert p.grad.abs().max() > 0, name


def check_decoding(mixer: Mixer) -> None:
    layer, x = moved(mixer, causal=True), tokens(1, 1000)
    with torch.no_grad():
        steps = decoded(layer, x)
        for t in (1, 63, 64, 65, 1000):
            assert_close(layer(x[:, :t]), steps[:, :t])


def check_precision(mixer: Mixer) -> None:
    """The form for use errs at most twice as much as the loop over tokens in the same dtype."""
    for dtype in (torch.float32, torch.bfloat16):
        # Sixteen rows: products of one or two sum in another order than a whole sequence's.
        layer, x = moved(mixer, causal=True).to(dtype), tokens(16, 100).to(dtype)
        with torch.no_grad():
            ours, loop = layer(x).double(), decoded(layer, x).double()
            exact = layer.double()(x.double())
        unit = torch.finfo(dtype).eps * exact.norm()
        assert (ours - exact).norm() <= 2 * (loop - exact).norm() + unit


def check_state_size(mixer: Mixer) -> None:
    for seq_len in (1, 40):
        layer = layers(mixer, causal=True)[0]
        state = layer.start(3, seq_len)
        _, after = layer.step(tokens(3, 1).float()[:, 0], state)
        for held in (state, after):
            numbers = sum(x.numel() for x in held if x.is_floating_point())
            assert numbers == 3 * mixer.state_size(D, seq_len)
        counts = [x for x in after if not x.is_floating_point()]
        assert all((x == 1).all() for x in counts), "integers count the tokens seen"


def check_autocast(mixer: Mixer) -> None:
    for causal in BOTH:
        layer, x = layers(mixer, causal=causal)[1], tokens(2, 70).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        # Eight bits: what rounding every input and weight of a few maps in a row may cost.
        assert (y.float() - layer(x)).norm() <= 8 * 2**-8 * layer(x).norm()
        y.float().sum().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)


def check_operator(mixer: Mixer) -> None:
    operator = mixer.operator(D, 2, 70, dtype=torch.float32, generator=generator(0))
    assert operator.flops > 0
    assert {x.dtype for x in operator.inputs} == {torch.float32}
    assert len(operator.names) == len(operator.inputs)
    oracle = mixer.model_copy(update={"impl": "reference"})
    exact = oracle.operator(D, 2, 70, dtype=torch.float32, generator=generator(0))
    inputs = [x.requires_grad_() for x in operator.inputs]
    y = operator.run(*inputs)
    y64 = exact.run(*(x.double() for x in exact.inputs))
    assert y.shape[:2] == (2, 70)
    assert (y - y64).norm() <= (70 + D) * torch.finfo(torch.float32).eps * y64.norm()
    y.square().sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.abs().max() > 0 for x in inputs)


CHECKS: tuple[Callable[[Mixer], None], ...] = (
    check_configuration,
    check_shape_and_dtype,
    check_seed,
    check_causality,
    check_both_directions,
    check_padding,
    check_positions,
    check_batch_invariance,
    check_gradients,
    check_decoding,
    check_precision,
    check_state_size,
    check_autocast,
    check_operator,
)


def cases() -> Iterator[object]:
    for kind in MIXERS:
        for mixer in kind.variants():
            label = "-".join(
                f"{field}={value}"
                for field, value in mixer.model_dump(exclude_defaults=True).items()
            )
            yield pytest.param(mixer, id=f"{mixer.name}[{label}]")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("mixer", list(cases()))
def test_contract(mixer: Mixer, check: Callable[[Mixer], None]):
    check(mixer)
