"""What the speed and memory tasks run: a mixer's operator, layer or training step at one size."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from mixers.base import Mixer, MixerLayer
from tasks.backbone import Backbone, Block
from tasks.base import Task
from tasks.check import expect_as_close, expect_close, of, relative_error
from tasks.seeds import seeded

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
CHECKED_LEN = 256


class Workload(NamedTuple):
    """Callables over prepared inputs."""

    call: Callable[[], object]
    """What is measured."""
    outputs: Callable[[], list[Tensor]]
    """One forward's result and, where the mode has a backward, every gradient."""
    bytes_moved: float
    """Each input read once and each output written once, gradients included."""
    flops: Callable[[], float]
    """Of one call, by formula: the operator's and the linear maps', twice as many in a backward as
    in a forward. Draws the operator's inputs of one sequence."""
    stepped: Callable[[], Tensor] | None = None
    """The forward's result token by token, where the level is a layer."""


class WorkloadTask(Task):
    """The fields that say what is run; a subclass says what is measured of it."""

    level: Literal["op", "layer", "training_step"]
    """`op`: the bare operator. `layer`: with its projections and norm. `training_step`: a pre-norm
    block with its GLU, forward, backward and the fused AdamW update."""
    mode: Literal["fwd", "fwd_bwd", "step"]
    seq_len: PositiveInt
    batch: PositiveInt
    d_model: PositiveInt
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = 0
    glu_width: PositiveInt | None = None
    """Of a training step's channel mixer; None: 8 d_model / 3, rounded down."""

    later: ClassVar[tuple[str, ...]] = ("glu_width",)

    @model_validator(mode="after")
    def _mode_fits(self) -> WorkloadTask:
        if (self.mode == "step") != (self.level == "training_step"):
            raise ValueError(
                f"mode = {self.mode!r} does not fit level = {self.level!r}: a training_step has "
                "mode 'step', an op or a layer 'fwd' or 'fwd_bwd'"
            )
        if self.glu_width is not None and self.level != "training_step":
            raise ValueError(
                f"glu_width = {self.glu_width} has no effect at level = {self.level!r}; leave it "
                "out or use level = 'training_step'"
            )
        self.mixer.check_width(self.d_model)
        return self

    @property
    def compute_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def backend(self, device: torch.device) -> str | None:
        """The mixer's, at the full size."""
        size = self.d_model, self.batch, self.seq_len
        dtype, backward = self.compute_dtype, self.mode != "fwd"
        return self.mixer.backend(*size, device=device, dtype=dtype, backward=backward)

    def prepare(self, device: torch.device) -> Workload:
        """The full size, in the cell's dtype."""
        return self._prepare(self.mixer, device, self.compute_dtype, self.batch, self.seq_len)

    def repeated(self, device: torch.device) -> Callable[[], int]:
        self.refuse_unsupported(device)
        call = self.prepare(device).call

        def once() -> int:
            call()
            return 1

        return once

    def check(self, device: torch.device) -> None:
        """Raise Wrong where the implementation's error against fp64 is more than twice that of the
        reference in the cell's dtype, at one sequence of the cell's length or 256 tokens.

        At the level of a layer the fp64 reference is itself checked against its per-token form;
        at the others it is taken for granted (the tests hold it to the per-token form).
        """
        oracle_mixer = self.mixer.model_copy(update={"impl": "reference"})
        seq_len, dtype = min(self.seq_len, CHECKED_LEN), self.compute_dtype
        whole = self._prepare(oracle_mixer, device, torch.float64, 1, seq_len)
        exact = whole.outputs()
        if whole.stepped is not None:
            # Two ways to the same fp64 numbers part by fp64's rounding; a fault by far more.
            error = relative_error(exact[0], whole.stepped())
            what = f"the fp64 output {of(oracle_mixer)}"
            expect_close(what, error, torch.finfo(torch.float32).eps)
        baseline, ours = (
            self._prepare(mixer, device, dtype, 1, seq_len).outputs()
            for mixer in (oracle_mixer, self.mixer)
        )
        for index, (e, same, mine) in enumerate(zip(exact, baseline, ours, strict=True)):
            what = "the output" if index == 0 else f"gradient {index}"
            what = f"{what} in {self.dtype} {of(self.mixer)}"
            expect_as_close(what, mine, same, e, torch.finfo(dtype).eps)

    def _prepare(
        self, mixer: Mixer, device: torch.device, dtype: torch.dtype, batch: int, seq_len: int
    ) -> Workload:
        # fp64 runs see the numbers that the cell's dtype sees.
        rounded = self.compute_dtype
        generator = seeded(device, self.seed, "inputs", batch, seq_len)
        scale = 1.0 if self.mode == "fwd" else 3.0
        if self.level == "op":
            operator = mixer.operator(
                self.d_model, batch, seq_len, dtype=rounded, generator=generator
            )
            inputs = [x.to(dtype).requires_grad_(self.mode != "fwd") for x in operator.inputs]
            run, flops = operator.run, scale * operator.flops
            return _forward_backward(lambda: run(*inputs), inputs, lambda: flops)
        x = torch.randn(batch, seq_len, self.d_model, generator=generator, device=device)
        x = x.to(rounded).to(dtype)
        start = seeded(device, self.seed, "parameters")

        def flops_around(module: nn.Module) -> float:
            inside = mixer.operator(self.d_model, 1, seq_len, dtype=rounded, generator=generator)
            return scale * batch * (inside.flops + 2.0 * seq_len * linear_weights(module))

        if self.level == "layer":
            layer = mixer.stack(self.d_model, 1, causal=True, generator=start)[0]
            layer = layer.to(rounded).to(dtype)
            assert isinstance(layer, MixerLayer)
            x.requires_grad_(self.mode != "fwd")
            layer.requires_grad_(self.mode != "fwd")
            leaves = [x, *layer.parameters()]
            work = _forward_backward(lambda: layer(x), leaves, lambda: flops_around(layer))
            return work._replace(stepped=lambda: token_by_token(layer, x))
        backbone = Backbone(d_model=self.d_model, n_layers=1, norm="rms", glu_width=self.glu_width)
        layer = mixer.stack(self.d_model, 1, causal=True, generator=start)[0]
        block = Block(backbone, layer, start).to(rounded).to(dtype)
        return _training_step(block, x, lambda: flops_around(block))


def linear_weights(module: nn.Module) -> int:
    """Numbers in the linear maps' matrices: 2 operations each for a token."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _forward_backward(
    forward: Callable[[], Tensor], inputs: list[Tensor], flops: Callable[[], float]
) -> Workload:
    """One call; with a backward where the inputs ask for gradients (fresh ones each time)."""
    wanted = [x for x in inputs if x.requires_grad]
    with torch.no_grad():
        y = forward()
    dy = torch.randn(
        y.shape, generator=torch.Generator(y.device).manual_seed(1), device=y.device
    ).to(y.dtype)

    def outputs() -> list[Tensor]:
        if not wanted:
            with torch.no_grad():
                return [forward()]
        y = forward()
        # Zeros for the bounds of a first layer, which a gate in front of FLA's kernels leaves out.
        return [y.detach(), *torch.autograd.grad(y, wanted, dy, materialize_grads=True)]

    moved = sum(x.numel() * x.element_size() for x in [*inputs, y])
    # A backward reads the inputs again and dy, and writes a gradient for each.
    moved += sum(x.numel() * x.element_size() for x in [*inputs, dy, *wanted]) if wanted else 0
    return Workload(outputs, outputs, moved, flops)


def _training_step(block: nn.Module, x: Tensor, flops: Callable[[], float]) -> Workload:
    parameters = list(block.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def outputs() -> list[Tensor]:
        y = block(x)
        loss = y.square().mean()
        return [y.detach(), *torch.autograd.grad(loss, parameters, materialize_grads=True)]

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        block(x).square().mean().backward()
        optimizer.step()

    # Forward and backward read x.
    moved = 2.0 * x.numel() * x.element_size()
    # AdamW reads and writes a parameter and two moments, and reads its gradient.
    moved += 7.0 * sum(p.numel() * p.element_size() for p in parameters)
    return Workload(call, outputs, moved, flops)


def token_by_token(layer: MixerLayer, x: Tensor) -> Tensor:
    """The layer's output for x [b t d] by one decode step a token."""
    with torch.no_grad():
        state = layer.start(x.shape[0], x.shape[1])
        outputs = []
        for token in x.unbind(1):
            y, state = layer.step(token, state)
            outputs.append(y)
        return torch.stack(outputs, dim=1)
