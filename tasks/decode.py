"""Cost of one more token after a context: of a layer, or of its bare operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from mixers.base import Mixer, MixerLayer, Operator
from tasks.base import Context, Metrics, Task, Unsupported
from tasks.check import expect_as_close, of
from tasks.seeds import seeded
from tasks.timing import ceilings, host_ms, replayed, spread, times_ms
from tasks.workload import DTYPES, token_by_token

CHECKED_BATCH, CHECKED_LEN = 16, 32


class _Step(NamedTuple):
    """One token at a fixed position: the cost at this context and no other."""

    call: Callable[[], object]
    bytes_moved: float
    """Inputs, weights and state read once, the output and what changes of the state written."""
    state_bytes: float
    """Held for one sequence."""


class Decode(Task):
    """Milliseconds of one decode step after `context` tokens.

    The state or cache is filled with random numbers: what a step costs does not depend on which
    tokens they came from. That a step is right is checked on a short sequence, token by token.
    """

    name: Literal["decode"] = "decode"
    context: PositiveInt
    batch: PositiveInt
    d_model: PositiveInt
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = 0
    trial: int = 0
    budget_s: PositiveFloat = 0.3
    level: Literal["layer", "op"] = "layer"
    """`layer`: with its projections and norm. `op`: the bare operator."""
    replay: Literal["eager", "graph"] = "eager"
    """`eager`: launched from Python. `graph`: one replay of a CUDA graph of the step. Of both,
    `time_ms` is the device's part on a GPU, and `host_ms` the host's."""

    timed: ClassVar[bool] = True
    later: ClassVar[tuple[str, ...]] = ("level", "replay")

    @model_validator(mode="after")
    def _fits(self) -> Decode:
        self.mixer.check_width(self.d_model)
        return self

    @property
    def compute_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def run(self, context: Context) -> Metrics:
        device = context.device
        self.refuse_unsupported(device)
        with torch.no_grad():
            bare = self.level == "op"
            step = self._operator_step(device) if bare else self._layer_step(device)
            # Before the check: a kernel that tunes itself does it at the first size it meets.
            step.call()
            self._check_operator(device) if bare else self._check_layer(device)
            call = replayed(step.call, device) if self.replay == "graph" else step.call
            times, null_times = times_ms([call, call], device, budget_s=self.budget_s)
            host = host_ms(call, device) if device.type == "cuda" else None
            roof = ceilings(device, self.compute_dtype)
        p20, median, p80 = spread(times)
        metrics: Metrics = {
            "time_ms": median,
            "time_ms_p20": p20,
            "time_ms_p80": p80,
            "repetitions": len(times),
            "times_ms": times,
            "null_ms": spread(null_times)[1],
            "tokens_per_s": 1e3 * self.batch / median,
            "state_bytes": step.state_bytes,
            "bytes_floor_ms": 1e3 * step.bytes_moved / roof.copy_bytes_per_s,
            "copy_gb_per_s": 1e-9 * roof.copy_bytes_per_s,
        }
        if host is not None:
            metrics["host_ms"] = host
        return metrics

    def _layer_step(self, device: torch.device) -> _Step:
        dtype = self.compute_dtype
        layer = self._layer(self.mixer, device, dtype)
        tokens = seeded(device, self.seed, "tokens")
        x = torch.randn(self.batch, self.d_model, generator=tokens, device=device).to(dtype)
        state = layer.start(self.batch, self.context + 1)
        for part in state:
            if part.is_floating_point():
                part.normal_(generator=tokens)
            else:
                part.fill_(self.context)
        held = sum(_bytes(part) for part in state if part.is_floating_point())
        size, next_size = (
            self.mixer.state_size(self.d_model, n) for n in (self.context, self.context + 1)
        )
        # A cache is read whole and gets one token more; a recurrent state is written whole.
        written = held * (next_size - size) / next_size if next_size > size else held
        assert isinstance(layer, nn.Module)
        weights = sum(_bytes(p) for p in layer.parameters())
        moved = held + written + weights + 2 * _bytes(x)
        return _Step(lambda: layer.step(x, state), moved, held / self.batch)

    def _operator_step(self, device: torch.device) -> _Step:
        operator = self._operator(self.mixer, device, self.batch, self.context)
        named = dict(zip(operator.names, operator.inputs, strict=True))
        y = operator.run(*operator.inputs)
        moved = _bytes(y) + sum(_bytes(x) for x in operator.inputs)
        if "state" in named:
            held = _bytes(named["state"])
            moved += held
        else:
            held = _bytes(named["k"]) + _bytes(named["v"])
        return _Step(lambda: operator.run(*operator.inputs), moved, held / self.batch)

    def _layer(self, mixer: Mixer, device: torch.device, dtype: torch.dtype) -> MixerLayer:
        start = seeded(device, self.seed, "parameters")
        layer = mixer.stack(self.d_model, 1, causal=True, generator=start)[0]
        layer = layer.to(self.compute_dtype).to(dtype)
        assert isinstance(layer, MixerLayer)
        return layer

    def _operator(self, mixer: Mixer, device: torch.device, batch: int, context: int) -> Operator:
        operator = mixer.step_operator(
            self.d_model,
            batch,
            context,
            dtype=self.compute_dtype,
            generator=seeded(device, self.seed, "inputs"),
        )
        if operator is None:
            raise Unsupported(
                f"{mixer.name} ({mixer.impl}) keeps no bare operator of one token: use level = "
                "'layer'"
            )
        return operator

    def _check_layer(self, device: torch.device) -> None:
        """Raise Wrong where decoding 32 tokens of 16 sequences is off, against the reference's
        forward in fp64, by more than twice that forward's own error in the cell's dtype."""
        dtype = self.compute_dtype
        oracle_mixer = self.mixer.model_copy(update={"impl": "reference"})
        tokens = seeded(device, self.seed, "checked tokens")
        shape = CHECKED_BATCH, CHECKED_LEN, self.d_model
        x = torch.randn(shape, generator=tokens, device=device).to(dtype)
        exact = self._layer(oracle_mixer, device, torch.float64)(x.double())
        same = self._layer(oracle_mixer, device, dtype)(x)
        mine = token_by_token(self._layer(self.mixer, device, dtype), x)
        what = f"decoding in {self.dtype} {of(self.mixer)}"
        expect_as_close(what, mine, same, exact, torch.finfo(dtype).eps)

    def _check_operator(self, device: torch.device) -> None:
        """As `_check_layer`, of one token's output and of the state after it."""
        oracle_mixer = self.mixer.model_copy(update={"impl": "reference"})

        def after_a_step(mixer: Mixer, *, exact: bool) -> list[Tensor]:
            operator = self._operator(mixer, device, CHECKED_BATCH, CHECKED_LEN)
            inputs = [x.double() if exact else x for x in operator.inputs]
            y = operator.run(*inputs)
            named = zip(operator.names, inputs, strict=True)
            return [y, *(x for name, x in named if name == "state")]

        results = (
            after_a_step(oracle_mixer, exact=True),
            after_a_step(oracle_mixer, exact=False),
            after_a_step(self.mixer, exact=False),
        )
        names = ("the output", "the state")
        for what, exact, same, mine in zip(names, *results, strict=False):
            what = f"{what} of a step in {self.dtype} {of(self.mixer)}"
            expect_as_close(what, mine, same, exact, torch.finfo(self.compute_dtype).eps)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
