"""Every grid: a function from a device to a list of tasks, one figure's worth of cells.

The docstring says what its figures show. To add a grid: a function here (or, of speed, memory,
decoding and accuracy, in `grids_speed`), and its name in GRIDS.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch

from harness.grids_speed import (
    accuracy_vs_fp64,
    cold_start,
    decode_vs_context,
    hgrn2_impl,
    memory_vs_length,
    speed_quick,
    speed_vs_length,
)
from mixers import GLA, HGRN1, HGRN2, Attention, Mamba, Mixer
from mixers.layers import Init
from tasks.backbone import Backbone
from tasks.base import Task
from tasks.mqar import protocols
from tasks.mqar.task import MQAR, Segment
from tasks.recipe import Training

Grid = Callable[[torch.device], list[Task]]


def mqar_quick(device: torch.device) -> list[Task]:
    """Recall of five mixers on short sequences: two widths, two learning rates, one seed.

    As small as recall gets: 16 tokens, 4 pairs (every second token after the pairs is a query), a
    vocabulary of 32, two layers, 640 steps of 64 rows at most.
    """
    return [
        MQAR(
            mixer=mixer,
            protocol="quick",
            train=(Segment(seq_len=16, kv_pairs=4, examples=8_192),),
            test=(Segment(seq_len=16, kv_pairs=4, examples=1_000),),
            vocab_size=32,
            backbone=Backbone(
                d_model=d_model,
                n_layers=2,
                channel_mixer="none",
                positions="learned" if mixer.name == "attention" else "none",
            ),
            training=Training(lr=lr, epochs=5, batch=64, schedule="cosine_step", early_stop=0.99),
            seed=0,
            data_seed=0,
        )
        for d_model, lr in product((64, 32), (2e-3, 5e-3))
        for mixer in quick_mixers(d_model, device)
    ]


def quick_mixers(d_model: int, device: torch.device) -> list[Mixer]:
    """As the protocols have them, with half of Mamba's state: its scan takes most of the time."""
    return [
        mixer.model_copy(update={"d_state": 8}) if mixer.name == "mamba" else mixer
        for mixer in recall_mixers(d_model, device)
    ]


def mqar_iclr2024(device: torch.device) -> list[Task]:
    """Recall over model width at four lengths, by the protocol of zoology's ICLR 2024 Figure 2."""
    return [
        protocols.iclr2024(mixer, seq_len=seq_len, kv_pairs=kv_pairs, d_model=d_model, lr=lr)
        for (seq_len, kv_pairs), d_model, lr in product(
            protocols.FIGURE_CELLS, protocols.FIGURE_WIDTHS, protocols.ICLR2024_LRS
        )
        for mixer in recall_mixers(d_model, device, init="zoology")
    ]


def mqar_fig3(device: torch.device) -> list[Task]:
    """Recall over model width at four lengths, by the protocol of the HGRN2 paper's Figure 3."""
    return [
        protocols.hgrn2_paper(mixer, seq_len=seq_len, kv_pairs=kv_pairs, d_model=d_model, lr=lr)
        for (seq_len, kv_pairs), d_model, lr in product(
            protocols.FIGURE_CELLS, protocols.FIGURE_WIDTHS, protocols.HGRN2_PAPER_LRS
        )
        for mixer in recall_mixers(d_model, device, init="zoology")
    ]


def mqar_capacity(device: torch.device) -> list[Task]:
    """Recall over state size, by the mixed-difficulty protocol of Based and zoology's README.

    Without that protocol's short convolution, so not comparable with its published points.
    """
    return [
        protocols.mixed(mixer, d_model=d_model, lr=lr)
        for d_model, lr in product((32, 64, 128, 256), protocols.MIXED_LRS)
        for mixer in recall_mixers(d_model, device, init="zoology", attention_heads=2)
        if d_model in ((32, 64, 128) if mixer.name == "attention" else (64, 128, 256))
    ]


def recall_mixers(
    d_model: int, device: torch.device, init: Init = "torch", attention_heads: int = 1
) -> list[Mixer]:
    """The five mixers as the MQAR protocols configure them at this width."""
    zoology = init == "zoology"
    return [
        HGRN2(
            preset="biased",
            expand_ratio=min(d_model, 128),
            lower_bound="off",
            init=init,
            impl=hgrn2_impl(device),
        ),
        HGRN1(kind="complex", lower_bound="off", init=init),
        # zoology scales no last map that is called o_proj, and GLA's is.
        GLA(n_heads=2, init="normal" if zoology else init),
        Mamba(init=init),
        # Dropout of the probabilities needs the eager form, whose masks are seeded.
        Attention(
            impl="reference" if zoology else "sdpa",
            n_heads=attention_heads,
            dropout=0.1 if zoology else 0.0,
            init=init,
        ),
    ]


GRIDS: tuple[Grid, ...] = (
    mqar_quick,
    speed_quick,
    speed_vs_length,
    memory_vs_length,
    decode_vs_context,
    cold_start,
    accuracy_vs_fp64,
    mqar_iclr2024,
    mqar_fig3,
    mqar_capacity,
)
