"""The one interface of a mixer.

Axes, one glossary for the whole repository:
    b batch    t time    d model width    h heads    k key (expand) width    v value width

A `Mixer` is a frozen configuration: every option is a field, so it is its own hash key and its own
table row. Only the layers that it builds hold tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, model_serializer
from torch import Tensor, nn


class Frozen(BaseModel):
    """A configuration: immutable, hashable; an unknown field is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    later: ClassVar[tuple[str, ...]] = ()
    """Fields that came after records had been made: left out of the JSON at their default, so that
    the cells of those records keep their keys."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        fields = type(self).model_fields
        unset = {name for name in self.later if getattr(self, name) == fields[name].default}
        return {name: value for name, value in dump(self).items() if name not in unset}


def expect_divisor(field: str, value: int, of: str, total: int) -> None:
    """Raise ValueError, with the values that fit, unless the field divides the total."""
    if total % value:
        fits = ", ".join(str(n) for n in range(1, total + 1) if total % n == 0)
        raise ValueError(f"{field} = {value} does not divide {of} = {total}; it could be {fits}")


class Operator(NamedTuple):
    """A mixer's bare operator: what a kernel computes, without projections and norms."""

    run: Callable[..., Tensor]
    """Takes `inputs`, returns [b t ...]."""
    inputs: tuple[Tensor, ...]
    """Random, with realistic gates; one dtype and device."""
    flops: float
    """Floating-point operations of one forward, by formula: matrix products count 2 m n k."""
    names: tuple[str, ...] = ()
    """Of the inputs: `z` is a forget gate's raw logit, `bound` its lower bound, `state` is written
    as well as read."""


class Mixer(Frozen):
    """How the tokens of a sequence are mixed.

    A subclass adds `name: Literal["..."]`, `impl: Literal[...]` and its options, and is listed in
    `mixers.MIXERS`; the contract test then covers it.
    """

    name: str
    impl: str

    @classmethod
    def variants(cls) -> Sequence[Mixer]:
        """The configurations, small enough for a CPU, that the contract test walks."""
        return [cls()]  # pyright: ignore[reportCallIssue]

    def check_width(self, d_model: int) -> None:
        """Raise ValueError, naming field, value and remedy, where `d_model` does not fit."""

    def stack(
        self, d_model: int, n_layers: int, *, causal: bool, generator: torch.Generator
    ) -> list[nn.Module]:
        """Build all layers at once: HGRN's lower bounds are one parameter over depth.

        Every layer is a `MixerLayer`; its parameters are fp32, on the generator's device, and
        drawn from `generator` alone. `causal=False` lets every token see the whole sequence.
        """
        raise NotImplementedError

    def state_size(self, d_model: int, seq_len: int) -> int:
        """Numbers that one layer holds to decode one sequence of `seq_len` tokens."""
        raise NotImplementedError

    def operator(
        self,
        d_model: int,
        batch: int,
        seq_len: int,
        *,
        dtype: torch.dtype,
        generator: torch.Generator,
    ) -> Operator:
        """The causal operator at this size, its inputs drawn from `generator` on its device."""
        raise NotImplementedError

    def step_operator(
        self,
        d_model: int,
        batch: int,
        context: int,
        *,
        dtype: torch.dtype,
        generator: torch.Generator,
    ) -> Operator | None:
        """One token of the bare operator after `context` tokens, its state or cache random and
        among the inputs; `run` returns [b ...]. None where the mixer keeps no such form."""
        return None

    def backend(
        self,
        d_model: int,
        batch: int,
        seq_len: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        backward: bool,
    ) -> str | None:
        """Which of a library's kernels a causal layer runs at this size; None where `impl` says it.

        `backward`: with gradients, which may need another kernel.
        """
        return None

    @property
    def forwards_alone(self) -> bool:
        """Whether its layers see no later token: `stack(causal=False)` raises ValueError then."""
        return False

    def unsupported(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why this mixer cannot run there, and the command that would make it so; else None."""
        return None


@runtime_checkable
class MixerLayer(Protocol):
    """What `Mixer.stack` builds.

    `start` and `step` are there when `causal` was true. A state is a tuple of tensors whose
    floating-point numbers are those that `state_size` counts, and whose integers, where it has
    any, count the tokens seen; `step` returns the next one and may reuse the memory of the last.

    `rates`, on a module that has any, names its parameters that set how fast a state forgets or
    turns: recipes may train them at a learning rate of their own.
    """

    def __call__(
        self,
        x: Float[Tensor, "b t d"],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        at: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Mix along t, in x's dtype. Tokens at t >= lengths[b] are padding: no other token
        sees them, and their outputs mean nothing. `at`: the outputs of these tokens alone, which
        differ; None: of all, n = t."""
        ...

    def start(self, batch: int, max_len: int) -> tuple[Any, ...]:
        """The state before the first token, for sequences of up to `max_len` tokens."""
        ...

    def step(
        self, x: Float[Tensor, "b d"], state: tuple[Any, ...]
    ) -> tuple[Float[Tensor, "b d"], tuple[Any, ...]]:
        """Feed one token: equals the forward at that position."""
        ...
