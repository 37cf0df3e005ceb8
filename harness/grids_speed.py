"""The grids of speed, memory, decoding, cold starts and accuracy.

Timed cells take a fresh process each, so a GPU grid lists the most telling ones first within a
trial: stop it when its time is up, and the next run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, get_args

import torch

from hgrn2 import Impl
from mixers import GLA, HGRN1, HGRN2, Attention, Mamba, Mixer
from tasks.accuracy import Accuracy, Regime
from tasks.base import Task
from tasks.cold_start import ColdStart
from tasks.decode import Decode
from tasks.memory import Memory
from tasks.speed import Speed

TRIALS = range(3)
WIDTH, HEAD_DIM = 2048, 128
TOKENS = 32_768
"""Of one call; one sequence where it is longer."""
LENGTHS = tuple(2**power for power in range(9, 18, 2))
"""Four times apart: a cell of a peer takes ten seconds."""
MEMORY_LENGTHS = tuple(2**power for power in (11, 13, 15, 17, 18, 19, 20, 21, 22))
LONGEST_ATTENTION = 2**19
"""In the grid of memory: a call takes seconds there, and four times as many at each doubling."""
CONTEXTS = (512, 2048, 8192, 32_768, 131_072)
FIRST = 2
"""How many of `gpu_mixers` come first: ours and its rival, before peers that tune for minutes."""


def gpu_mixers(
    head_dim: int = HEAD_DIM, d_model: int = WIDTH, *, compiled: bool = False
) -> list[Mixer]:
    """What is compared on a GPU, every kernel a line: those with heads of `head_dim`; the others
    beside heads of 128 alone. HGRN2 has its lower bound, whose gradient is work too. `compiled`:
    FLA's gate by torch.compile as well, a line more."""
    heads = d_model // head_dim

    def hgrn2(**kernel: str) -> HGRN2:
        layer = {"preset": "lm", "expand_ratio": head_dim, "lower_bound": "cumsum"}
        return HGRN2.model_validate(layer | kernel)

    with_heads: list[Mixer] = [
        hgrn2(impl="triton"),
        Attention(n_heads=heads),
        *([hgrn2(impl="fla", gate="compiled")] if compiled else []),
        hgrn2(impl="fla", gate="eager"),
        GLA(impl="triton", n_heads=heads, expand_k=1.0),
        GLA(impl="fla", n_heads=heads, expand_k=1.0),
    ]
    if head_dim != HEAD_DIM:
        return with_heads
    real = HGRN1(kind="real", lower_bound="cumsum", impl="triton")
    fla = HGRN1(kind="real", lower_bound="cumsum", impl="fla_recurrent")
    return [*with_heads, real, fla, Mamba(impl="triton"), Mamba(impl="mamba_ssm")]


def speed_vs_length(_device: torch.device) -> list[Task]:
    """Time, throughput and roofline over length on a GPU: 32,768 tokens a call in bf16.

    The bare operator at width 2048 with heads of 128, 64 and 256, the layer at that width, and a
    training step of the layer of the 0.385 B models: width 1024, GLU of 2816, heads of 128.
    """
    return [cell for trial in TRIALS for cell in _speed_trial(trial)]


def _speed_trial(trial: int) -> Iterator[Speed]:
    both = ("fwd_bwd", "fwd")
    step = {"level": "training_step", "d_model": 1024, "glu_width": 2816}
    stages: tuple[tuple[dict[str, Any], tuple[str, ...], int], ...] = (
        ({"level": "op", "d_model": WIDTH}, both, 128),
        ({"level": "op", "d_model": WIDTH}, both, 64),
        ({"level": "op", "d_model": WIDTH}, both, 256),
        ({"level": "layer", "d_model": WIDTH}, both, 128),
        (step, ("step",), 128),
    )
    for fields, modes, head_dim in stages:
        # The operator and the layer show what a compiled gate is worth.
        compiled = fields["level"] != "training_step" and head_dim == HEAD_DIM
        mixers = gpu_mixers(head_dim, fields["d_model"], compiled=compiled)
        for tier in (mixers[:FIRST], mixers[FIRST:]):
            for seq_len, mode, mixer in product(LENGTHS, modes, tier):
                size = {"seq_len": seq_len, "batch": max(1, TOKENS // seq_len), "dtype": "bf16"}
                cell = {"mixer": mixer, "mode": mode, "trial": trial}
                yield Speed.model_validate(fields | size | cell)


def memory_vs_length(_device: torch.device) -> list[Task]:
    """Peak memory of one sequence's forward and backward over length, to where a GPU has no more.

    The bare operator and the layer at width 2048, bf16. Attention stops at 524,288 tokens.
    """
    return [
        Memory.model_validate(
            {
                "mixer": mixer,
                "level": level,
                "mode": "fwd_bwd",
                "seq_len": seq_len,
                "batch": 1,
                "d_model": WIDTH,
                "dtype": "bf16",
            }
        )
        for level in ("op", "layer")
        for seq_len, mixer in product(MEMORY_LENGTHS, gpu_mixers(compiled=level == "op"))
        if mixer.name != "attention" or seq_len <= LONGEST_ATTENTION
    ]


def decode_vs_context(_device: torch.device) -> list[Task]:
    """Time of one decode step over the context before it, against its bytes' floor, on a GPU.

    The bare operator and the layer at width 2048, bf16 with the recurrences' states in fp32, from
    Python and replayed from a CUDA graph. A recurrent step has no context: two show that.
    """
    return [
        Decode.model_validate(
            {
                "mixer": mixer,
                "level": level,
                "replay": replay,
                "batch": batch,
                "context": context,
                "d_model": WIDTH,
                "dtype": "bf16",
                "trial": trial,
            }
        )
        for trial, level, replay, batch in product(
            TRIALS, ("op", "layer"), ("graph", "eager"), (1, 256)
        )
        for mixer in gpu_mixers()
        # The others keep no bare operator of one token.
        if level == "layer" or mixer.name in ("hgrn2", "attention")
        for context in (CONTEXTS if mixer.name == "attention" else (CONTEXTS[0], CONTEXTS[-1]))
    ]


def cold_start(_device: torch.device) -> list[Task]:
    """Seconds from a fresh process with empty kernel caches to the first forward and backward.

    The bare operator at width 2048 on a GPU: 16 sequences of 2,048 tokens, bf16.
    """
    return [
        ColdStart.model_validate(
            {
                "mixer": mixer,
                "level": "op",
                "mode": "fwd_bwd",
                "seq_len": 2048,
                "batch": 16,
                "d_model": WIDTH,
                "dtype": "bf16",
                "trial": trial,
            }
        )
        for trial, mixer in product(TRIALS, gpu_mixers())
    ]


def accuracy_vs_fp64(_device: torch.device) -> list[Task]:
    """Error of outputs and gradients against fp64 over gates from open to closed, on a GPU.

    One sequence of 1,000 tokens, two heads of 128, bf16; four lower bounds where there is one.
    """
    gated = ("hgrn2", "hgrn1", "gla")
    mixers = [mixer for mixer in gpu_mixers(d_model=256, compiled=True) if mixer.name in gated]
    return [
        Accuracy(mixer=mixer, regime=regime, bound=bound, seq_len=1000, d_model=256)
        for regime, mixer in product(get_args(Regime), mixers)
        for bound in ((None,) if mixer.name == "gla" else (0.0, 0.1, 0.5, 0.99))
    ]


def speed_quick(device: torch.device) -> list[Task]:
    """Speed, peak memory and decoding of five mixers over length on a CPU, a layer of width 64.

    Three trials, each in a process of its own, the mixers interleaved.
    """
    lengths = (128, 512, 2048)
    layers = [
        Speed(
            mixer=mixer,
            level="layer",
            mode="fwd_bwd",
            seq_len=seq_len,
            batch=2048 // seq_len,
            d_model=64,
            trial=trial,
        )
        for trial in range(3)
        for seq_len in lengths
        for mixer in timed_mixers(device)
    ]
    memory = [
        Memory(
            mixer=mixer,
            level="layer",
            mode="fwd_bwd",
            seq_len=seq_len,
            batch=2048 // seq_len,
            d_model=64,
        )
        for seq_len in lengths
        for mixer in timed_mixers(device)
    ]
    decode = [
        Decode(mixer=mixer, context=context, batch=8, d_model=64)
        for context in (64, 512)
        for mixer in timed_mixers(device)
    ]
    return [*layers, *memory, *decode]


def timed_mixers(device: torch.device) -> list[Mixer]:
    """The five mixers with two heads of 32 where they have heads."""
    return [
        HGRN2(preset="lm", expand_ratio=32, lower_bound="cumsum", impl=our_impl(device)),
        HGRN1(kind="complex", lower_bound="cumsum"),
        GLA(n_heads=2),
        Mamba(),
        Attention(n_heads=2),
    ]


def our_impl(device: torch.device) -> Impl:
    """Our kernels where they run, the eager form on a CPU; the row says which one ran."""
    return "triton" if device.type == "cuda" else "reference"
