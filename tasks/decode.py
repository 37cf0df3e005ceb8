"""Cost of one more token after a context, a layer at a time."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator

from mixers.base import Mixer, MixerLayer
from tasks.base import Context, Metrics, Task, Unsupported
from tasks.timing import spread, times_ms
from tasks.training import seeded
from tasks.workload import DTYPES, expect_close, relative_error, token_by_token


class Decode(Task):
    """Milliseconds of one decode step of one layer after `context` tokens."""

    name: Literal["decode"] = "decode"
    context: PositiveInt
    batch: PositiveInt
    d_model: PositiveInt
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = 0
    trial: int = 0
    budget_s: PositiveFloat = 0.3

    timed: ClassVar[bool] = True

    @model_validator(mode="after")
    def _fits(self) -> Decode:
        self.mixer.check_width(self.d_model)
        return self

    def run(self, context: Context) -> Metrics:
        device, dtype = context.device, DTYPES[self.dtype]
        reason = self.mixer.unsupported(device, dtype)
        if reason is not None:
            raise Unsupported(reason)
        self._check(device)
        layer = self._layer(self.mixer, device, dtype)
        tokens = seeded(device, self.seed, "tokens")
        x = torch.randn(self.batch, self.d_model, generator=tokens, device=device).to(dtype)
        with torch.no_grad():
            state = layer.start(self.batch, self.context + 1)
            for _ in range(self.context):
                _, state = layer.step(x, state)
            # The same position each time: the cost at this context and no other.
            times, null_times = times_ms(
                [lambda: layer.step(x, state), lambda: layer.step(x, state)],
                device,
                budget_s=self.budget_s,
            )
        held = sum(x.numel() * x.element_size() for x in state if x.is_floating_point())
        p20, median, p80 = spread(times)
        return {
            "time_ms": median,
            "time_ms_p20": p20,
            "time_ms_p80": p80,
            "repetitions": len(times),
            "times_ms": times,
            "null_ms": spread(null_times)[1],
            "tokens_per_s": 1e3 * self.batch / median,
            "state_bytes": held / self.batch,
        }

    def _layer(self, mixer: Mixer, device: torch.device, dtype: torch.dtype) -> MixerLayer:
        start = seeded(device, self.seed, "parameters")
        layer = mixer.stack(self.d_model, 1, causal=True, generator=start)[0]
        layer = layer.to(DTYPES[self.dtype]).to(dtype)
        assert isinstance(layer, MixerLayer)
        return layer

    def _check(self, device: torch.device) -> None:
        """Raise Wrong where decoding 32 tokens of 16 sequences is off, against the reference's
        forward in fp64, by more than twice that forward's own error in the cell's dtype."""
        dtype = DTYPES[self.dtype]
        oracle_mixer = self.mixer.model_copy(update={"impl": "reference"})
        tokens = seeded(device, self.seed, "checked tokens")
        x = torch.randn(16, 32, self.d_model, generator=tokens, device=device).to(dtype)
        with torch.no_grad():
            exact = self._layer(oracle_mixer, device, torch.float64)(x.double())
            same = self._layer(oracle_mixer, device, dtype)(x)
            mine = token_by_token(self._layer(self.mixer, device, dtype), x)
        allowed = 2 * relative_error(same, exact) + torch.finfo(dtype).eps
        error = relative_error(mine, exact)
        expect_close(f"decoding in {self.dtype}", self.mixer, error, allowed)
