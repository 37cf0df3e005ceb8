"""Synthetic records of speed, memory, decoding, cold starts and errors against fp64."""

from __future__ import annotations

import math
import random
from itertools import product
from typing import Any

from harness.records import Record
from tests.harness.synthetic import GPU, MIXERS, record

COST_MS = {"hgrn2": 0.9, "hgrn1": 0.6, "gla": 1.9, "mamba": 2.6}
"""At 32,768 tokens, whatever the length."""


def speed_task(
    mixer: str,
    impl: str,
    *,
    level: str = "op",
    mode: str = "fwd",
    seq_len: int = 2048,
    tokens: int = 32_768,
    trial: int = 0,
    name: str = "speed",
) -> dict[str, Any]:
    """A task of the shape that Speed's and Memory's dumps have."""
    task = {
        "name": name,
        "mixer": {"name": mixer, "impl": impl},
        "level": level,
        "mode": mode,
        "seq_len": seq_len,
        "batch": max(1, tokens // seq_len),
        "d_model": 2048,
        "dtype": "bf16",
        "seed": 0,
    }
    return task | ({"trial": trial} if name == "speed" else {})


def timing(times: list[float], null: list[float], tokens: int = 32_768) -> dict[str, Any]:
    """Speed's metrics from its two interleaved series of milliseconds."""
    ordered = sorted(times)
    median = ordered[len(ordered) // 2]
    return {
        "time_ms": median,
        "time_ms_p20": ordered[len(ordered) // 5],
        "time_ms_p80": ordered[-1 - len(ordered) // 5],
        "repetitions": len(times),
        "times_ms": times,
        "null_ms": sorted(null)[len(null) // 2],
        "tokens_per_s": 1e3 * tokens / median,
        "cold_start_s": 12.0,
        "bytes_floor_ms": 0.18,
        "flops_floor_ms": 0.11,
    }


def speed_records(
    *,
    grid: str = "speed_synthetic",
    lengths: tuple[int, ...] = (512, 2048, 8192, 32_768),
    trials: int = 3,
    levels: tuple[tuple[str, str], ...] = (
        ("op", "fwd"),
        ("op", "fwd_bwd"),
        ("layer", "fwd_bwd"),
        ("training_step", "step"),
    ),
    device: str = GPU,
) -> list[Record]:
    """A grid; attention's cost grows with length and passes the others' inside the range; its
    longest training step runs out of memory; Mamba's bare operator is unsupported."""
    records: list[Record] = []
    for trial, (level, mode), seq_len in product(range(trials), levels, lengths):
        for mixer, impl in MIXERS:
            task = speed_task(mixer, impl, level=level, mode=mode, seq_len=seq_len, trial=trial)
            if mixer == "attention" and level == "training_step" and seq_len == max(lengths):
                made = record(task, grid=grid, status="oom", error="out of memory", device=device)
            elif mixer == "mamba" and level == "op":
                why = "Mamba has no bare operator"
                made = record(task, grid=grid, status="unsupported", error=why, device=device)
            else:
                scale = 1 + 2.3 * (mode == "fwd_bwd") + 9 * (mode == "step") + 2 * (level != "op")
                cost = COST_MS.get(mixer, 0.1 + seq_len / 4800) * scale
                rng = random.Random(f"{mixer}{seq_len}{level}{mode}{trial}")
                cost *= rng.gauss(1, 0.01)
                times, null = ([cost * rng.gauss(1, 0.02) for _ in range(21)] for _ in range(2))
                made = record(task, timing(times, null), grid=grid, device=device)
            records.append(made)
    return records


def memory_records(
    *, grid: str = "memory_synthetic", lengths: tuple[int, ...] = (512, 2048, 8192, 32_768)
) -> list[Record]:
    """A grid; the per-token state of HGRN2's loop runs out of memory early."""
    mib = {"hgrn2": 700.0, "hgrn1": 400.0, "gla": 2560.0, "mamba": 1800.0, "attention": 388.0}
    records: list[Record] = []
    for (mixer, impl), mode, seq_len in product(MIXERS, ("fwd", "fwd_bwd"), lengths):
        task = speed_task(
            mixer, impl, mode=mode, seq_len=seq_len, tokens=16 * seq_len, name="memory"
        )
        peak = mib[mixer] * seq_len / 2048 * (1 + 1.5 * (mode == "fwd_bwd"))
        if peak > 20_000:
            made = record(task, grid=grid, status="oom", error="CUDA out of memory")
        else:
            metrics = {"peak_mib": peak, "reserved_mib": 1.1 * peak}
            made = record(task, metrics, grid=grid)
        records.append(made)
    return records


def decode_records(
    *,
    grid: str = "decode_synthetic",
    contexts: tuple[int, ...] = (256, 1024, 4096, 16_384),
    ways: tuple[dict[str, str], ...] = ({},),
) -> list[Record]:
    """A grid: only attention's step and state grow with the context; `ways` are further fields."""
    state = {"hgrn2": 262_144, "hgrn1": 4096, "gla": 262_144, "mamba": 65_536}
    records: list[Record] = []
    for (mixer, impl), way, batch, context, trial in product(
        MIXERS, ways, (1, 64), contexts, range(3)
    ):
        task = way | {
            "name": "decode",
            "mixer": {"name": mixer, "impl": impl},
            "context": context,
            "batch": batch,
            "d_model": 2048,
            "dtype": "bf16",
            "trial": trial,
        }
        rng = random.Random(f"{mixer}{batch}{context}{trial}")
        base = COST_MS.get(mixer, 0.1 + context / 8000) * (0.2 + batch / 200)
        base *= 0.3 if way.get("replay") == "graph" else 1
        times, null = ([base * rng.gauss(1, 0.02) for _ in range(11)] for _ in range(2))
        metrics = timing(times, null, tokens=batch)
        metrics["state_bytes"] = 4 * state.get(mixer, 4096 * context)
        metrics["bytes_floor_ms"] = base / 4
        records.append(record(task, metrics, grid=grid))
    return records


def cold_start_records(*, grid: str = "cold_start_synthetic") -> list[Record]:
    """A grid: one peer tunes for minutes, another never gets there."""
    forward_s = {"hgrn2": 8.0, "hgrn1": 2.0, "gla": 102.0, "attention": 0.3}
    records: list[Record] = []
    for level, (mixer, impl), trial in product(("op", "layer"), MIXERS, range(2)):
        task = speed_task(mixer, impl, level=level, mode="fwd_bwd", name="cold_start")
        task |= {"trial": trial, "timeout_s": 900.0}
        if mixer == "mamba":
            made = record(task, grid=grid, status="error", error="TimeoutError: no forward")
        else:
            parts = {"interpreter_s": 2.0, "import_s": 17.0 if impl == "fla" else 0.1}
            parts |= {"device_s": 0.3, "forward_s": forward_s[mixer] + trial}
            parts |= {"backward_s": 2 * forward_s[mixer]}
            made = record(task, {"cold_start_s": sum(parts.values())} | parts, grid=grid)
        records.append(made)
    return records


def accuracy_records(*, grid: str = "accuracy_synthetic") -> list[Record]:
    """A grid: HGRN2 by two implementations at two bounds, one of which overflows at closed gates;
    GLA has no bound."""
    regimes = ("ordinary", "spread", "open", "closed", "mixed", "resets")
    kinds = (("hgrn2", "triton"), ("hgrn2", "fla"), ("gla", "fla"))
    records: list[Record] = []
    for (mixer, impl), regime, bound in product(kinds, regimes, (0.0, 0.5)):
        if mixer == "gla" and bound:
            continue
        task = {
            "name": "accuracy",
            "mixer": {"name": mixer, "impl": impl},
            "regime": regime,
            "bound": None if mixer == "gla" else bound,
            "seq_len": 1000,
            "d_model": 256,
            "dtype": "bf16",
        }
        names = ["y", "dq", "dz", "dv", *(["dbound"] if mixer == "hgrn2" else ["dkey"])]
        broken = (impl, regime, bound, mixer) == ("fla", "closed", 0.0, "hgrn2")
        rng = random.Random(f"{mixer}{impl}{regime}{bound}")
        metrics: dict[str, Any] = {"nonfinite": float(broken)}
        for name in names:
            metrics[f"error_{name}"] = math.nan if broken else 4e-3 * rng.uniform(0.5, 4)
            metrics[f"reference_error_{name}"] = 2e-3 * rng.uniform(0.9, 1.1)
        records.append(record(task, metrics, grid=grid))
    return records
