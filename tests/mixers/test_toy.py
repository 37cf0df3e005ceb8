"""A new mixer is tested by being listed; and every check of the contract can fail."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from hgrn2.reference import diagonal_scan
from mixers import Mixer
from mixers.base import Operator
from mixers.layers import linear
from mixers.tokens import flip_valid, taken
from tests.mixers import test_contract

CHECKS = {check.__name__: check for check in test_contract.CHECKS}


class Toy(Mixer):
    """An average that forgets at a fixed rate, right or with one fault."""

    name: Literal["toy"] = "toy"
    impl: Literal["reference"] = "reference"
    fault: str = ""

    def stack(
        self, d_model: int, n_layers: int, *, causal: bool, generator: torch.Generator
    ) -> list[nn.Module]:
        return [ToyLayer(self.fault, d_model, causal, generator) for _ in range(n_layers)]

    def state_size(self, d_model: int, seq_len: int) -> int:
        return d_model + (self.fault == "miscounted")

    def operator(
        self,
        d_model: int,
        batch: int,
        seq_len: int,
        *,
        dtype: torch.dtype,
        generator: torch.Generator,
    ) -> Operator:
        x = torch.randn(batch, seq_len, d_model, generator=generator)
        factor = 1 + 1e-3 * (self.fault == "approximate")
        return Operator(
            lambda x: averages(x) * (factor if x.dtype == torch.float32 else 1),
            (x.to(dtype),),
            2.0 * x.numel(),
            ("x",),
        )

    def unsupported(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return "not here" if self.fault == "unsupported" else None


class ToyLayer(nn.Module):
    def __init__(self, fault: str, d_model: int, causal: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.fault, self.causal = fault, causal
        self.proj = linear(d_model, d_model, bias=True, generator=generator)
        if fault == "draws":
            nn.init.normal_(self.proj.weight)
        if fault == "dead":
            self.dead = nn.Parameter(torch.ones(3))

    def forward(
        self, x: Tensor, *, lengths: Tensor | None = None, at: Tensor | None = None
    ) -> Tensor:
        h = averages(x)
        if not self.causal and self.fault != "one_way":
            valid = None if self.fault == "sees_padding" else lengths
            h = h + flip_valid(averages(flip_valid(x, valid)), valid)
        if self.fault == "leaks":
            h = h + x.mean(1, keepdim=True)
        if self.fault == "mixes_rows":
            h = h + x.mean(0)
        if self.fault == "coarse" and h.dtype == torch.float32:
            h = h.bfloat16().float()
        h = taken(h, None if at is None else at.sort().values if self.fault == "sorts" else at)
        if self.fault == "narrow":
            return self.proj(h.to(x.dtype)).float()
        if self.fault == "widens" and torch.is_autocast_enabled("cpu"):
            return 2 * self.proj(h)
        return self.proj(h.to(x.dtype))

    def start(self, batch: int, max_len: int) -> tuple[Tensor, ...]:
        weight = self.proj.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        return (torch.zeros(batch, weight.shape[1], dtype=wide),)

    @torch.no_grad()
    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        h = (0.8 if self.fault == "steps_apart" else 0.9) * state[0] + x
        return self.proj(h.to(x.dtype)), (h,)


def averages(x: Tensor) -> Tensor:
    rate = torch.full_like(x[:1, :1], 0.9, dtype=torch.promote_types(x.dtype, torch.float32))
    return diagonal_scan(rate.expand(x.shape), x)[0]


def test_a_listed_mixer_is_covered(monkeypatch):
    monkeypatch.setattr(test_contract, "MIXERS", (Toy,))
    assert [case.values for case in test_contract.cases()] == [(Toy(),)]


@pytest.mark.parametrize("check", CHECKS)
def test_a_right_toy_passes(check):
    CHECKS[check](Toy())


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("unsupported", "check_configuration"),
        ("narrow", "check_shape_and_dtype"),
        ("draws", "check_seed"),
        ("leaks", "check_causality"),
        ("one_way", "check_both_directions"),
        ("sees_padding", "check_padding"),
        ("sorts", "check_positions"),
        ("mixes_rows", "check_batch_invariance"),
        ("dead", "check_gradients"),
        ("steps_apart", "check_decoding"),
        ("coarse", "check_precision"),
        ("miscounted", "check_state_size"),
        ("widens", "check_autocast"),
        ("approximate", "check_operator"),
    ],
)
def test_a_faulty_toy_fails(fault, check):
    with pytest.raises(AssertionError):
        CHECKS[check](Toy(fault=fault))
