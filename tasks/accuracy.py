"""How far an operator is from fp64, over gates from wide open to closed."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from mixers.base import Mixer, Operator
from tasks.base import Context, Metrics, Task, Unsupported
from tasks.check import relative_error
from tasks.seeds import seeded
from tasks.workload import DTYPES

Regime = Literal["ordinary", "spread", "open", "closed", "mixed", "resets"]
"""Of the forget gate's raw logits. `ordinary`: N(0, 1). `spread`: N(0, 16). `open`: N(6, 1).
`closed`: N(-20, 1). `mixed`: each -20 or 6, by a coin. `resets`: 6, and at one token in 64 all of a
sequence's -20."""


class Accuracy(Task):
    """|x - truth| / |truth| of the output and of every input's gradient, over whole tensors.

    The truth is the reference in fp64 on the same rounded inputs. Its gradients of z and of the
    bound are the closed form of `hgrn2.gate`: autograd's own would vanish at open gates. Beside
    each error stands that of the reference in the cell's dtype. A result that is not finite is one
    too: its error is NaN and `nonfinite` is 1.
    """

    name: Literal["accuracy"] = "accuracy"
    regime: Regime
    bound: Annotated[float, Field(ge=0, lt=1)] | None = None
    """The lower bound of every channel, for a mixer that has one."""
    seq_len: PositiveInt
    d_model: PositiveInt
    batch: PositiveInt = 1
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16"
    seed: int = 0

    timed: ClassVar[bool] = False

    @model_validator(mode="after")
    def _fits(self) -> Accuracy:
        self.mixer.check_width(self.d_model)
        return self

    @property
    def cost(self) -> float:
        """Tokens times width."""
        return float(self.batch * self.seq_len * self.d_model)

    @property
    def compute_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def run(self, context: Context) -> Metrics:
        device = context.device
        self.refuse_unsupported(device)
        oracle = self.mixer.model_copy(update={"impl": "reference"})
        truth = self._results(oracle, device, exact=True)
        plain = self._results(oracle, device, exact=False)
        mine = self._results(self.mixer, device, exact=False)
        metrics: Metrics = {"nonfinite": float(not all(x.isfinite().all() for x in mine.values()))}
        for name, exact in truth.items():
            metrics[f"error_{name}"] = _error(mine[name], exact)
            metrics[f"reference_error_{name}"] = _error(plain[name], exact)
        return metrics

    def _results(self, mixer: Mixer, device: torch.device, *, exact: bool) -> dict[str, Tensor]:
        """The output as `y`, and the gradient of input q as `dq` and so on."""
        operator = self._operator(mixer, device)
        leaves = [(x.double() if exact else x).requires_grad_() for x in operator.inputs]
        y = operator.run(*leaves)
        generator = seeded(device, self.seed, "output gradient")
        dy = torch.randn(y.shape, generator=generator, device=device).to(self.compute_dtype)
        gradients = torch.autograd.grad(y, leaves, dy.to(y.dtype))
        named = zip(operator.names, gradients, strict=True)
        return {"y": y.detach()} | {f"d{name}": x for name, x in named}

    def _operator(self, mixer: Mixer, device: torch.device) -> Operator:
        """With this regime's logits and bound. The bound stays in fp32, as a layer has it."""
        generator = seeded(device, self.seed, "inputs")
        operator = mixer.operator(
            self.d_model, self.batch, self.seq_len, dtype=self.compute_dtype, generator=generator
        )
        named = dict(zip(operator.names, operator.inputs, strict=True))
        if "z" not in named:
            raise Unsupported(f"{mixer.name}'s operator has no gate logit z: nothing to vary")
        if ("bound" in named) != (self.bound is not None):
            raise ValueError(
                f"bound = {self.bound} does not fit a {mixer.name} whose operator takes "
                f"{', '.join(named)}: give a bound where it takes one, else None"
            )
        named["z"] = logits(self.regime, named["z"].shape, generator).to(named["z"].dtype)
        if self.bound is not None:
            named["bound"] = torch.full(named["bound"].shape, self.bound, device=device)
        return operator._replace(inputs=tuple(named.values()))


def logits(regime: Regime, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Raw forget logits [b t ...] in fp32."""
    device = generator.device
    if regime == "resets":
        token = (*shape[:2], *(1,) * (len(shape) - 2))
        reset = torch.rand(token, generator=generator, device=device) < 1 / 64
        return torch.where(reset, -20.0, 6.0).expand(shape).clone()
    if regime == "mixed":
        closed = torch.rand(shape, generator=generator, device=device) < 0.5
        return torch.where(closed, -20.0, 6.0)
    scale, shift = {"ordinary": (1, 0), "spread": (4, 0), "open": (1, 6), "closed": (1, -20)}[
        regime
    ]
    return scale * torch.randn(shape, generator=generator, device=device) + shift


def _error(x: Tensor, exact: Tensor) -> float:
    return relative_error(x, exact) if x.isfinite().all() else math.nan
