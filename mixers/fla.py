"""The kernels of flash-linear-attention (FLA) behind our operators' signatures.

FLA's kernels take the logarithm of the forget gate and the key. Its layers make both in eager torch
and so do we: the same chain, always in fp32 (fp64 for fp64 inputs), eagerly or compiled. No kernel
is switched by length; FLA's own layers take the recurrent one up to 64 tokens.

A causal run needs no lengths: no valid token sees the padding on its right. FLA is causal; both
directions are two runs of it, the second over the valid tokens in reverse.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import model_serializer, model_validator
from torch import Tensor
from torch.nn import functional as F

from hgrn2.gate import arithmetic_dtype
from mixers.base import Mixer
from mixers.peers import not_compiled
from mixers.tokens import flip_valid

Gate = Literal["eager", "compiled"]
Kernel = Literal["fla_chunk", "fla_recurrent"]
LEAST_BOUND = 1e-30
"""Added to a lower bound before its logarithm: 0 has none, and its gradient would be NaN. A forget
gate below it is 0 in effect."""


class FLAGate(Mixer):
    """The option of a mixer whose gate FLA leaves to torch; not a mixer of its own."""

    gate: Gate = "eager"
    """How the gate in front of FLA's kernel runs: `eager`, as in FLA's layers, or `compiled` by
    torch.compile, anew for each shape. Only with FLA's implementations: the record of another one
    has no such field."""

    @model_validator(mode="after")
    def _gate_fits_the_impl(self) -> FLAGate:
        if self.gate != "eager" and not self._is_fla():
            raise ValueError(
                f"gate = {self.gate!r} does not fit impl = {self.impl!r}, which has no gate in "
                "front of its kernel: use gate = 'eager', or FLA's implementation"
            )
        return self

    @model_serializer(mode="wrap")
    def _where_it_runs(self, fields: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Left out where nothing runs it: the keys of those cells do not depend on it."""
        # pydantic runs the last serializer of a class alone.
        dump = self._without_later_defaults(fields)
        if not self._is_fla():
            dump.pop("gate", None)
        return dump

    def _is_fla(self) -> bool:
        return self.impl.startswith("fla")


def unsupported(impl: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why FLA cannot run there, in words; None when it can."""
    if device.type != "cuda":
        return f"impl={impl!r} needs a CUDA device, not {device}: use impl='reference'"
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"impl={impl!r} takes bfloat16, float16 or float32, not {dtype}: use one of them"
    if find_spec("fla") is None:
        return f"impl={impl!r} needs FLA: pip install flash-linear-attention==0.6.0"
    if find_spec("triton") is None:
        return f"impl={impl!r} needs triton, which is not installed: pip install triton"
    return None


def _load(module: str) -> ModuleType:
    """A module of FLA's, imported when first asked for: that takes seconds.

    FLA tunes its kernels under keys without shapes and keeps the choice on disk, so that a process
    would run another shape's tiles; and it may hand a call to another library's kernel. Both are
    off unless the environment says otherwise.
    """
    os.environ.setdefault("FLA_CACHE_RESULTS", "0")
    os.environ.setdefault("FLA_DISABLE_BACKEND_DISPATCH", "1")
    return import_module(module)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # fullgraph: a part that would stay eager is an error, and so are more shapes than torch caches.
    return torch.compile(function, fullgraph=True, dynamic=False)


def run_gate(gate: Gate, function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), eagerly or compiled."""
    return (_compiled(function) if gate == "compiled" else function)(*args)


def log_gate(
    z: Float[Tensor, "*b k"], bound: Float[Tensor, "*h k"] | None
) -> Float[Tensor, "*b k"]:
    """log(bound + (1 - bound) sigmoid(z)), in fp32 (fp64 for fp64 logits); bound None is 0."""
    log_f = F.logsigmoid(z.to(arithmetic_dtype(z)))
    if bound is None:
        return log_f
    bound = bound.to(log_f.dtype)
    return torch.logaddexp((bound + LEAST_BOUND).log(), torch.log1p(-bound) + log_f)


def tied_gate(z: Tensor, bound: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """log f, and the key 1 - f in `dtype`, formed as FLA's layer forms it."""
    log_f = log_gate(z, bound)
    return log_f, (1 - log_f.exp()).to(dtype)


def tied_input(z: Tensor, bound: Tensor | None, v: Tensor) -> tuple[Tensor, Tensor]:
    """log f, and HGRN1's gated input (1 - f) v in v's dtype."""
    log_f = log_gate(z, bound)
    return log_f, ((1 - log_f.exp()) * v).to(v.dtype)


def chunk_gla(
    q: Float[Tensor, "b t h k"],
    key: Float[Tensor, "b t h k"],
    v: Float[Tensor, "b t h v"],
    log_f: Float[Tensor, "b t h k"],
    *,
    scale: float = 1.0,
    causal: bool = True,
    lengths: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, "b t h v"]:
    """y_t = scale q_t S_t with S_t = Diag(f_t) S_(t-1) + key_t (x) v_t, in chunks of 64 tokens.

    Scores are products of tf32 operands, and the rest rounds its operands to v's dtype.
    """
    run = partial(_chunk_gla, scale=scale)
    return _directions(run, q, key, v, log_f, causal=causal, lengths=lengths)


@not_compiled
def _chunk_gla(q: Tensor, key: Tensor, v: Tensor, log_f: Tensor, *, scale: float) -> Tensor:
    return _load("fla.ops.gla").chunk_gla(q, key, v, log_f, scale=scale)[0]


def step_gla(
    q: Float[Tensor, "b 1 h k"],
    key: Float[Tensor, "b 1 h k"],
    v: Float[Tensor, "b 1 h v"],
    log_f: Float[Tensor, "b 1 h k"],
    state: Float[Tensor, "b h k v"],
    *,
    scale: float = 1.0,
) -> tuple[Float[Tensor, "b 1 h v"], Float[Tensor, "b h k v"]]:
    """One token by FLA's recurrent kernel: y and the next state, in fp32."""
    return _load("fla.ops.gla").fused_recurrent_gla(
        q, key, v, gk=log_f, scale=scale, initial_state=state, output_final_state=True
    )


def hgrn2(
    q: Float[Tensor, "b t h k"],
    z: Float[Tensor, "b t h k"],
    v: Float[Tensor, "b t h v"],
    bound: Float[Tensor, "h k"] | None,
    *,
    gate: Gate,
    causal: bool = True,
    lengths: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, "b t h v"]:
    """HGRN2 as FLA's layer runs it: the gate in torch, then `chunk_gla`. Bound None is 0."""
    log_f, key = run_gate(gate, tied_gate, z, bound, v.dtype)
    return chunk_gla(q, key, v, log_f, causal=causal, lengths=lengths)


def hgrn2_step(
    q: Float[Tensor, "b h k"],
    z: Float[Tensor, "b h k"],
    v: Float[Tensor, "b h v"],
    bound: Float[Tensor, "h k"] | None,
    state: Float[Tensor, "b h k v"],
    *,
    gate: Gate,
) -> tuple[Float[Tensor, "b h v"], Float[Tensor, "b h k v"]]:
    """One token of HGRN2."""
    log_f, key = run_gate(gate, tied_gate, z, bound, v.dtype)
    y, last = step_gla(q[:, None], key[:, None], v[:, None], log_f[:, None], state)
    return y[:, 0], last


def hgrn1(
    v: Tensor,
    z: Float[Tensor, "b t d"],
    bound: Float[Tensor, " d"] | None,
    *,
    kernel: Kernel,
    gate: Gate,
    causal: bool = True,
    lengths: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, "b t d"]:
    """Real HGRN1 as FLA's layer runs it: the gate in torch, then one of its two scans; v [b t d].

    Raises ValueError for a complex v, [b t d 2].
    """
    if v.shape != z.shape:
        raise ValueError(f"v has shape {list(v.shape)}; FLA scans real cells, as z {list(z.shape)}")
    log_f, gated = run_gate(gate, tied_input, z, bound, v)
    return _directions(partial(_scan, kernel), gated, log_f, causal=causal, lengths=lengths)


@not_compiled
def _scan(kernel: Kernel, gated: Tensor, log_f: Tensor) -> Tensor:
    ops = _load("fla.ops.hgrn")
    scan = ops.chunk_hgrn if kernel == "fla_chunk" else ops.fused_recurrent_hgrn
    return scan(gated, log_f)[0]


def hgrn1_step(
    v: Float[Tensor, "b 1 d"],
    z: Float[Tensor, "b 1 d"],
    bound: Float[Tensor, " d"] | None,
    state: Float[Tensor, "b d"],
    *,
    gate: Gate,
) -> tuple[Float[Tensor, "b 1 d"], Float[Tensor, "b d"]]:
    """One token of real HGRN1 by FLA's recurrent kernel: h in v's dtype, the next state in fp32."""
    # FLA's state has its input's dtype: a state in 16 bits would round at every token.
    log_f, gated = run_gate(gate, tied_input, z, bound, v.to(state.dtype))
    h, last = _load("fla.ops.hgrn").fused_recurrent_hgrn(
        gated, log_f, initial_state=state, output_final_state=True
    )
    return h.to(v.dtype), last


def _directions(
    run: Callable[..., Tensor], *inputs: Tensor, causal: bool, lengths: Tensor | None
) -> Tensor:
    """One run, or the sum of two, the second over the valid tokens in reverse."""
    y = run(*inputs)
    if causal:
        return y
    return y + flip_valid(run(*(flip_valid(x, lengths) for x in inputs)), lengths)
