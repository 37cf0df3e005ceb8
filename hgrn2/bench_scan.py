"""Time HGRN1's Triton scan: `python -m hgrn2.bench_scan [--tokens 32768] [--complex] [--fla]`.

Event-timed medians after an L2 flush, over rotated random inputs: forward, and forward + backward,
at a fixed number of tokens over a range of lengths; peak memory above the inputs; the byte floor.
`--fla` times flash-linear-attention's fused_recurrent_hgrn and chunk_hgrn with an eager gate beside
it, where it is installed.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import hgrn2
from hgrn2.bench import copy_bytes_per_s, median_ms

Operator = Callable[..., Tensor]


def triton_path(v: Tensor, z: Tensor, bound: Tensor, theta: Tensor | None = None) -> Tensor:
    return hgrn2.hgrn1(v, z, bound, theta=theta, impl="triton")[0]


def fla_path(module: str, name: str) -> Operator:
    """What flash-linear-attention's HGRN layer does between its projections."""
    scan = getattr(importlib.import_module(module), name)

    def run(v: Tensor, z: Tensor, bound: Tensor) -> Tensor:
        g = torch.logaddexp(bound.log(), torch.log1p(-bound) + logsigmoid(z.float()))
        return scan((v * (1 - g.exp())).to(v.dtype), g.to(v.dtype))[0]

    return run


def inputs(b: int, t: int, d: int, turn: bool, seed: int) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        return x.requires_grad_()

    bound = torch.full((d,), 0.3, device="cuda").requires_grad_()
    if not turn:
        return [normal(b, t, d), normal(b, t, d), bound]
    theta = torch.rand(d, generator=generator, device="cuda").requires_grad_()
    return [normal(b, t, d, 2), normal(b, t, d), bound, theta]


def measure(operator: Operator, b: int, t: int, d: int, turn: bool, repetitions: int) -> dict:
    """fwd_ms, fwd_bwd_ms and peak_mib of one operator at one shape."""
    sets = [inputs(b, t, d, turn, seed) for seed in range(2)]
    dh = torch.randn_like(sets[0][0])

    def forward(leaves: list[Tensor]) -> None:
        with torch.no_grad():
            operator(*leaves)

    def both(leaves: list[Tensor]) -> None:
        torch.autograd.grad(operator(*leaves), leaves, dh)

    both(sets[0])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    both(sets[0])
    peak = torch.cuda.max_memory_allocated() - before
    return {
        "fwd_ms": median_ms([lambda x=x: forward(x) for x in sets], repetitions),
        "fwd_bwd_ms": median_ms([lambda x=x: both(x) for x in sets], repetitions),
        "peak_mib": peak / 2**20,
    }


def floor_ms(elements: int, turn: bool, bytes_per_s: float) -> tuple[float, float]:
    """Every input read once and every output written once, in bf16: forward, with backward."""
    value = 4 if turn else 2
    # v, z -> h; v, z, dh -> dv, dz
    forward, backward = 2 * value + 2, 3 * value + 4
    return (
        1e3 * elements * forward / bytes_per_s,
        1e3 * elements * (forward + backward) / bytes_per_s,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=32768, help="batch * length, at least")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192, 32768, 131072])
    parser.add_argument("--channels", type=int, default=2048)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--complex", action="store_true", help="complex states")
    parser.add_argument("--fla", action="store_true", help="time flash-linear-attention too")
    parser.add_argument("--out", type=Path, help="append a JSON line for each row")
    options = parser.parse_args()
    if options.fla and options.complex:
        parser.error("--fla has real states only: leave out --complex")
    operators: dict[str, Operator] = {"triton": triton_path}
    if options.fla:
        operators["fla_recurrent"] = fla_path("fla.ops.hgrn", "fused_recurrent_hgrn")
        operators["fla_chunk"] = fla_path("fla.ops.hgrn.chunk", "chunk_hgrn")
    rate = copy_bytes_per_s()
    print(f"{torch.cuda.get_device_name()}, copy {rate / 1e12:.2f} TB/s")
    print(
        "impl               t    b     d   fwd ms  floor  fwd+bwd ms  floor   peak MiB", flush=True
    )
    for t in options.lengths:
        b, d, turn = max(1, options.tokens // t), options.channels, options.complex
        floors = floor_ms(b * t * d, turn, rate)
        for name, operator in operators.items():
            # A row begins before its kernels are compiled, which takes seconds.
            print(f"{name:14s}{t:6d}{b:5d}{d:6d}", end="", flush=True)
            row = measure(operator, b, t, d, turn, options.repetitions)
            print(
                f"{row['fwd_ms']:9.3f}{floors[0]:7.3f}"
                f"{row['fwd_bwd_ms']:12.3f}{floors[1]:7.3f}{row['peak_mib']:11.0f}",
                flush=True,
            )
            if options.out is not None:
                shaped = {"b": b, "t": t, "d": d, "complex": turn}
                floor = {"fwd_floor_ms": floors[0], "fwd_bwd_floor_ms": floors[1]}
                line = {"impl": name, **shaped, **row, **floor, "copy_bytes_per_s": rate}
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
