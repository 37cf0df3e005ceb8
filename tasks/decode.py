"""Cost of one more token after a context, a layer at a time."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator

from mixers.base import MixerLayer
from tasks.base import Context, Metrics, Task, Unsupported
from tasks.timing import spread, times_ms
from tasks.training import seeded
from tasks.workload import DTYPES


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
        layer = self.mixer.stack(
            self.d_model, 1, causal=True, generator=seeded(device, self.seed, "parameters")
        )[0].to(dtype)
        tokens = seeded(device, self.seed, "tokens")
        assert isinstance(layer, MixerLayer)
        x = torch.randn(self.batch, self.d_model, generator=tokens, device=device).to(dtype)
        with torch.no_grad():
            state = layer.start(self.batch, self.context + 1)
            for _ in range(self.context):
                _, state = layer.step(x, state)
            # A step from the same state each time: the cost at this context and no other.
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
