"""Records as a real run would leave them, made from formulas: five mixers, some failed cells."""

from __future__ import annotations

import hashlib
import json
import math
import random
from itertools import product
from pathlib import Path
from typing import Any

from harness.records import Record, Records

MIXERS = (
    ("hgrn2", "triton"),
    ("hgrn1", "triton"),
    ("gla", "fla"),
    ("mamba", "mamba_ssm"),
    ("attention", "sdpa"),
)
GPU, CPU = "NVIDIA H200", "Example CPU @ 2.0GHz"


def record(
    task: dict[str, Any],
    metrics: dict[str, Any] | None = None,
    *,
    grid: str = "grid",
    status: str = "ok",
    error: str | None = None,
    device: str = GPU,
    commit: str = "a" * 40,
    dirty: bool = False,
    ended: str = "2024-04-11T09:00:00.000Z",
) -> Record:
    """One record; its key is a function of its task."""
    key = hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()[:12]
    env = {
        "python": "3.11.9",
        "torch": "2.13.0",
        "device": device,
        "device_type": "cpu" if device == CPU else "cuda",
        "threads": 2,
        "commit": commit,
        "dirty": dirty,
    }
    return Record.model_validate(
        {
            "key": key,
            "grid": grid,
            "task": task,
            "status": status,
            "metrics": metrics or {},
            "env": env,
            "started": ended,
            "ended": ended,
            "error": error,
        }
    )


def write(results: Path, grid: str, records: list[Record]) -> None:
    """Append them to the grid's file in one go."""
    path = Records(results / grid).path
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.writelines(record.line() for record in records)


RECALL = {"hgrn2": 1.0, "hgrn1": 0.35, "gla": 0.8, "mamba": 0.75, "attention": 8.0}
STATE = {"hgrn2": 64, "hgrn1": 2, "gla": 32, "mamba": 32, "attention": 0}


def mqar_task(
    mixer: str, impl: str, *, cell: tuple[int, int], d_model: int, lr: float, seed: int
) -> dict[str, Any]:
    """A task of the shape that MQAR's dump has."""
    seq_len, kv_pairs = cell
    segment = {"seq_len": seq_len, "kv_pairs": kv_pairs}
    return {
        "name": "mqar",
        "mixer": {"name": mixer, "impl": impl, "init": "zoology"},
        "protocol": "iclr2024",
        "train": [segment | {"examples": 100_000}],
        "test": [segment | {"examples": 3_000}],
        "vocab_size": 8192,
        "backbone": {"d_model": d_model, "n_layers": 2, "init": "zoology"},
        "training": {"lr": lr, "batch": 512, "precision": "fp32", "report": "last"},
        "seed": seed,
        "over_lr": "max",
        "seq_len": seq_len,
        "kv_pairs": kv_pairs,
    }


def recall(mixer: str, cell: tuple[int, int], d_model: int, lr: float, seed: int) -> float:
    """A plausible accuracy: it falls with the number of pairs, rises with width, peaks in lr."""
    noise = random.Random(f"{mixer}{cell}{d_model}{lr}{seed}").gauss(0, 0.03)
    strength = math.log(RECALL[mixer] * d_model / (4 * cell[1])) - abs(math.log10(lr) + 2.7)
    return min(1.0, max(0.0, 1 / (1 + math.exp(-1.6 * strength)) + noise))


def mqar_records(
    *,
    grid: str = "mqar_synthetic",
    cells: tuple[tuple[int, int], ...] = ((64, 4), (128, 8), (256, 16), (512, 64)),
    widths: tuple[int, ...] = (64, 128),
    lrs: tuple[float, ...] = (1e-4, 1e-3, 1e-2),
    seeds: tuple[int, ...] = (0, 1),
) -> list[Record]:
    """A grid; attention at 512 tokens and the larger width runs out of memory, HGRN1 at lr 1e-2
    and 256 tokens fails for seed 1."""
    records: list[Record] = []
    for (mixer, impl), cell, width, lr, seed in product(MIXERS, cells, widths, lrs, seeds):
        task = mqar_task(mixer, impl, cell=cell, d_model=width, lr=lr, seed=seed)
        if mixer == "attention" and cell[0] == 512 and width == max(widths):
            made = record(task, grid=grid, status="oom", error="CUDA out of memory")
        elif mixer == "hgrn1" and cell[0] == 256 and lr == 1e-2 and seed == 1:
            made = record(task, grid=grid, status="timeout", error="stopped after 3600 s")
        else:
            accuracy = recall(mixer, cell, width, lr, seed)
            state = 2 * width * (STATE[mixer] or 2 * cell[0])
            metrics = {
                "accuracy": accuracy,
                "best_accuracy": accuracy,
                "last_accuracy": accuracy,
                "epochs_run": 64,
                "steps": 12_544,
                "train_s": 100.0,
                "step_ms": 8.0,
                "parameters": 600_000,
                "accuracy_by_epoch": [accuracy / 2, accuracy],
                "loss_by_epoch": [5.0, 1.0],
                "state_bytes": 4 * state,
            }
            made = record(task, metrics, grid=grid)
        records.append(made)
    return records


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


def step_records(*, grid: str = "mqar_step_synthetic") -> list[Record]:
    """A grid; seven wide attentions side by side run out of memory."""
    shapes = (((64, 4), 512), ((256, 16), 256))
    records: list[Record] = []
    for pack, precision, (cell, batch), width, (mixer, impl) in product(
        (1, 7), ("fp32", "bf16_autocast"), shapes, (64, 256), MIXERS
    ):
        task = mqar_task(mixer, impl, cell=cell, d_model=width, lr=1e-3, seed=123)
        training = task["training"] | {"batch": batch, "precision": precision, "engine": "graph"}
        task |= {"name": "mqar_step", "training": training, "pack": pack, "trial": 0}
        if mixer == "attention" and pack == 7 and width == 256:
            made = record(task, grid=grid, status="oom", error="CUDA out of memory")
        else:
            ms = (1 + width / 64) * (1 + 0.5 * (pack - 1)) * (0.7 if "bf16" in precision else 1)
            metrics = {"step_ms": ms, "step_ms_per_model": ms / pack, "peak_mib": 900.0 * pack}
            metrics |= {"runs_per_hour": 3.6e6 * pack / (64 * 196 * ms)}
            made = record(task, metrics, grid=grid)
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
