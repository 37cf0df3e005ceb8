"""Parts in which no token meets another: linear maps, norms, dropout, with explicit generators.

torch's own constructors draw from the global RNG; these draw from the generator that they are
given, on its device.
"""

from __future__ import annotations

import math
from typing import Any, Literal, no_type_check

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mixers.tokens import valid_tokens

Init = Literal["torch", "normal", "zoology"]
"""How a linear map starts. `torch`: weight and bias uniform in +-1/sqrt(fan-in). `normal`: weight
N(0, 0.02), bias 0 (the HGRN2 language models). `zoology`: as `normal`, but the last map of a branch
has standard deviation 0.02 / sqrt(2 layers)."""

NormName = Literal["layer", "rms", "simple_rms", "batch", "none"]
"""`simple_rms` is RMSNorm without weights (HGRN's SimpleRMSNorm). `batch`: `BatchNorm`, which needs
the lengths, so around a mixer alone."""

INIT_STD = 0.02


def linear(
    d_in: int,
    d_out: int,
    *,
    bias: bool,
    generator: torch.Generator,
    init: Init = "torch",
    out_of_layers: int | None = None,
) -> nn.Linear:
    """A linear map. `out_of_layers`: the stack's depth, if this map is the last of its branch."""
    # On the meta device the constructor draws nothing.
    layer = nn.Linear(d_in, d_out, bias=bias, device="meta").to_empty(device=generator.device)
    with torch.no_grad():
        if init == "torch":
            bound = 1 / math.sqrt(d_in)
            for parameter in layer.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
        else:
            scaled = init == "zoology" and out_of_layers is not None
            std = INIT_STD / math.sqrt(2 * out_of_layers) if scaled and out_of_layers else INIT_STD
            layer.weight.normal_(0, std, generator=generator)
            if bias:
                layer.bias.zero_()
    return layer


def norm(
    name: NormName, width: int, *, eps: float = 1e-5, device: torch.device | None = None
) -> nn.Module:
    """A norm over the last axis; it starts as the identity's scale, so it draws nothing."""
    if name == "layer":
        return nn.LayerNorm(width, eps=eps, device=device)
    if name == "rms":
        return RMSNorm(width, eps=eps, device=device)
    if name == "simple_rms":
        return nn.RMSNorm(width, eps=eps, elementwise_affine=False)
    if name == "batch":
        return BatchNorm(width, eps=eps, device=device)
    return nn.Identity()


def normalised(layer: nn.Module, x: Tensor, lengths: Tensor | None) -> Tensor:
    """A norm of x [b t d], whatever its kind."""
    return layer(x, lengths=lengths) if isinstance(layer, BatchNorm) else layer(x)


class RMSNorm(nn.RMSNorm):
    """In its weights' dtype: under autocast in fp32, as torch's LayerNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class BatchNorm(nn.Module):
    """Each channel by its mean and variance over the valid tokens of the batch: padding changes
    neither. In evaluation by their running averages, as torch's own keeps them.

    Padding comes out as 0: nothing bounds it, as it counts in no variance, and a few blocks whose
    maps grow with the square of their input take it past the largest number.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, width: int, *, eps: float, momentum: float = 0.1, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(width, device=device))
        self.bias = nn.Parameter(torch.zeros(width, device=device))
        self.register_buffer("running_mean", torch.zeros(width, device=device))
        self.register_buffer("running_var", torch.ones(width, device=device))

    def forward(self, x: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """x [b t d], lengths [b]; in its weights' dtype."""
        x = x.to(self.weight.dtype)
        if lengths is None:
            return self._over_all(x)
        valid = valid_tokens(lengths, x.shape[1])[..., None]
        if not self.training:
            return torch.where(valid, self._over_all(torch.where(valid, x, 0)), 0)
        y, mean, variance, count = _OverValid.apply(x, valid, self.weight, self.bias, self.eps)
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        return y

    def _over_all(self, x: Tensor) -> Tensor:
        flat = F.batch_norm(
            x.flatten(0, 1),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )
        return flat.view_as(x)


class _OverValid(torch.autograd.Function):
    """Batch norm over the valid tokens; padding comes out as 0, and so does its gradient.

    With n = (x - mean) / std and means over the valid tokens

        dx = weight / std (dy - mean dy - n mean(n dy)),

    two passes over x and dy; autograd through the sums of mean and variance takes several more.

    `no_type_check`: torch's compiler takes both functions as they are, so nothing may wrap them.
    """

    @staticmethod
    @no_type_check
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [b t d], valid [b t 1], weight [d], bias [d], eps: y, mean, variance, count."""
        x, valid, weight, bias, eps = inputs
        count = valid.sum().to(x.dtype)
        mean = torch.where(valid, x, 0).sum((0, 1)) / count
        variance = torch.where(valid, x - mean, 0).square().sum((0, 1)) / count
        per_std = (variance + eps).rsqrt()
        ctx.save_for_backward(x, valid, weight, mean, per_std, count)
        ctx.mark_non_differentiable(mean, variance, count)
        y = torch.where(valid, (x - mean) * per_std * weight + bias, 0)
        return y, mean, variance, count

    @staticmethod
    @once_differentiable
    @no_type_check
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, valid, weight, mean, per_std, count = ctx.saved_tensors
        n, dy = torch.where(valid, (x - mean) * per_std, 0), torch.where(valid, dy, 0)
        dbias, dweight = dy.sum((0, 1)), (n * dy).sum((0, 1))
        apart = dy - dbias / count - n * (dweight / count)
        return torch.where(valid, weight * per_std * apart, 0), None, dweight, dbias, None


class Dropout(nn.Module):
    """Dropout whose mask is a hash of a number's place and of a state that each call moves on:
    `keeps` of its row, one along the last axis, and its column.

    The state is a buffer: a checkpoint of the model keeps it, a compiler sees nothing but
    arithmetic and fuses it, a CUDA graph's replay moves it on as a call does.
    """

    state: Tensor | None
    """int64 [], below 2^32; `seed_dropout` sets it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("state", None)

    def forward(self, x: Tensor, row: Int[Tensor, "*#rows 1"] | None = None) -> Tensor:
        """x [*rows columns]; `row`: the numbers of its rows, from 0 on where None."""
        keep = self.mask(x.shape, x.device, row)
        return x if keep is None else kept(x, keep, self.p)

    def mask(
        self, shape: torch.Size, device: torch.device, row: Int[Tensor, "*#rows 1"] | None = None
    ) -> Bool[Tensor, "*rows columns"] | None:
        """Which numbers a call keeps, and the module's state has moved on; None: all."""
        state = self._state_to_use()
        if state is None:
            return None
        *rows, columns = shape
        if row is None:
            row = torch.arange(math.prod(rows), device=device).view(*rows, 1)
        keep = keeps(row, torch.arange(columns, device=device), state, self.p)
        hash_(state.add_(1))
        return keep

    def draw(self) -> Int[Tensor, ""] | None:
        """The state of one call, for a kernel that forms its mask, and the module's has moved on;
        None where nothing is dropped."""
        state = self._state_to_use()
        if state is None:
            return None
        drawn = state.clone()
        hash_(state.add_(1))
        return drawn

    def _state_to_use(self) -> Int[Tensor, ""] | None:
        if not self.training or self.p == 0:
            return None
        if self.state is None:
            raise RuntimeError("Dropout has no state: call seed_dropout(model, generator)")
        return self.state


def kept(x: Tensor, keep: Bool[Tensor, "*#n"], p: float) -> Tensor:
    """Dropout of a share p, and its gradient."""
    return torch.where(keep, x / (1 - p), 0)


WORD = 2**32 - 1
COLUMN_FACTORS, COLUMN_SHIFT = (0x597158A7, 0x6B0E5E15), 14


def hash_(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """A bijection of the integers below 2^32 that scatters their bits (xor-shifts and products), in
    place: eager, it is most of what dropout takes. Of larger ones the low 32 bits count. The
    factors are below 2^31, so no product overflows."""
    x &= WORD
    for shift, factor in ((16, 0x7FEB352D), (15, 0x31848BAB)):
        x ^= x >> shift
        x *= factor
        x &= WORD
    x ^= x >> 16
    return x


def keeps(
    row: Int[Tensor, "*#n"], column: Int[Tensor, "*#n"], state: Int[Tensor, ""], p: float
) -> Bool[Tensor, "*#n"]:
    """Where dropout of a share p keeps a number: 32 bits of its own are at least p 2^32.

    A row's bits are the `hash_` of its number and the state together; a column flips some of them,
    and two products, which carry every bit up to the ones that count, make the number's own. The
    factors are of a random search: at p = 0.1 and 0.5 the masks of two columns that differ by one
    or two bits correlate by less than 0.002.

    Cheap, and so not free of patterns: calls whose states are nearer than the rows are many have
    rows with the same mask, and of 65,536 rows of 256 columns 262 have that of another with its
    columns permuted.
    """
    x = hash_(row + state) ^ column
    x *= COLUMN_FACTORS[0]
    x &= WORD
    x ^= x >> COLUMN_SHIFT
    x *= COLUMN_FACTORS[1]
    x &= WORD
    return x >= round(p * 2**32)


def seed_dropout(model: nn.Module, generator: torch.Generator) -> None:
    """Give every Dropout in `model` a state drawn from `generator`, on the generator's device."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.state = torch.randint(WORD, (), generator=generator, device=generator.device)


def multiplied(x: Tensor) -> Tensor:
    """x as autocast would have it in a product, where some of it goes into one and all into
    another: it would be rounded twice, and kept unrounded for that."""
    device = x.device.type
    # Autocast knows no meta device, and leaves fp64 as it is.
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def no_autocast(x: Tensor) -> torch.autocast:
    """A recurrence's products run in its own precision, whatever autocast is around the model."""
    return torch.autocast(x.device.type, enabled=False)
