"""Time HGRN2's Triton operator: `python -m hgrn2.bench [--tokens 32768] [--k 128] [--fla]`.

Event-timed medians after an L2 flush, over rotated random inputs: forward, and forward + backward,
at a fixed number of tokens over a range of lengths; peak memory above the inputs; the byte floor.
`--fla` times flash-linear-attention's tied path (eager gate, then chunk_gla) beside it; its
autotuner keeps the first shape's choice for the whole process, so give it one shape a process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import hgrn2

Operator = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def triton_path(q: Tensor, z: Tensor, v: Tensor, bound: Tensor) -> Tensor:
    return hgrn2.hgrn2(q, z, v, bound, impl="triton")[0]


def fla_path(q: Tensor, z: Tensor, v: Tensor, bound: Tensor) -> Tensor:
    """What flash-linear-attention's HGRN2 layer does between its projections."""
    chunk_gla = importlib.import_module("fla.ops.gla").chunk_gla

    g = torch.logaddexp(bound.log(), torch.log1p(-bound) + logsigmoid(z.float()))
    return chunk_gla(q, (1 - g.exp()).to(v.dtype), v, g, scale=1.0)[0]


def inputs(b: int, t: int, h: int, k: int, v: int, seed: int) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        return x.requires_grad_()

    bound = torch.full((h, k), 0.3, device="cuda").requires_grad_()
    return [normal(b, t, h, k), normal(b, t, h, k), normal(b, t, h, v), bound]


def median_ms(calls: Sequence[Callable[[], object]], repetitions: int) -> float:
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    for call in calls:
        call()
    events = []
    for i in range(repetitions):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        calls[i % len(calls)]()
        end.record()
        events.append((start, end))
    # Not before: the host runs ahead of the device, as it does in training.
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def measure(operator: Operator, shape: tuple[int, int, int, int, int], repetitions: int) -> dict:
    """fwd_ms, fwd_bwd_ms and peak_mib of one operator at one shape (b, t, h, k, v)."""
    sets = [inputs(*shape, seed) for seed in range(2)]
    dy = torch.randn_like(sets[0][2])

    def forward(leaves: list[Tensor]) -> None:
        with torch.no_grad():
            operator(*leaves)

    def both(leaves: list[Tensor]) -> None:
        torch.autograd.grad(operator(*leaves), leaves, dy)

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


def floor_ms(shape: tuple[int, int, int, int, int], bytes_per_s: float) -> tuple[float, float]:
    """Every input read once and every output written once, in bf16: forward, with backward."""
    b, t, h, k, v = shape
    forward = 2 * b * t * h * (2 * k + 2 * v)
    backward = 2 * b * t * h * (4 * k + 3 * v)
    return 1e3 * forward / bytes_per_s, 1e3 * (forward + backward) / bytes_per_s


def copy_bytes_per_s() -> float:
    """The measured device-to-device copy rate, bytes read plus bytes written."""
    x = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.numel() / (median_ms([lambda: y.copy_(x)], 10) / 1e3)


def decode_ms(batch: int, h: int, k: int, v: int) -> float:
    """One token replayed from a CUDA graph (no L2 flush: a state is used every step)."""
    q, z, x, bound = (leaf.detach() for leaf in inputs(batch, 1, h, k, v, 0))
    state = torch.randn(batch, h, k, v, device="cuda")

    def step() -> None:
        hgrn2.hgrn2_step(q[:, 0], z[:, 0], x[:, 0], bound, state, impl="triton")

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            step()
    return median_ms([graph.replay], 10) / 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=32768, help="batch * length")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192, 32768])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--k", type=int, default=128)
    parser.add_argument("--v", type=int, default=None, help="k, if not given")
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--decode", type=int, nargs="+", default=[1, 64, 256], help="batches")
    parser.add_argument("--fla", action="store_true", help="time flash-linear-attention too")
    parser.add_argument("--out", type=Path, help="append a JSON line for each row")
    options = parser.parse_args()
    operators = {"triton": triton_path} | ({"fla": fla_path} if options.fla else {})
    rate = copy_bytes_per_s()
    print(f"{torch.cuda.get_device_name()}, copy {rate / 1e12:.2f} TB/s")
    print("impl        t    b    k    v   fwd ms  floor  fwd+bwd ms  floor   peak MiB")
    for t in options.lengths:
        b, v = max(1, options.tokens // t), options.v or options.k
        shape = (b, t, options.heads, options.k, v)
        floors = floor_ms(shape, rate)
        for name, operator in operators.items():
            row = measure(operator, shape, options.repetitions)
            print(
                f"{name:7s}{t:6d}{b:5d}{options.k:5d}{v:5d}{row['fwd_ms']:9.3f}{floors[0]:7.3f}"
                f"{row['fwd_bwd_ms']:12.3f}{floors[1]:7.3f}{row['peak_mib']:11.0f}",
                flush=True,
            )
            if options.out is not None:
                shaped = dict(zip(("b", "t", "h", "k", "v"), shape, strict=True))
                line = {"impl": name, **shaped, **row, "copy_bytes_per_s": rate}
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    for batch in options.decode:
        ms = decode_ms(batch, options.heads, options.k, options.v or options.k)
        floor = 8 * batch * options.heads * options.k * (options.v or options.k) / rate * 1e3
        print(f"decode, batch {batch}: {ms:.4f} ms, floor {floor:.4f}")


if __name__ == "__main__":
    main()
