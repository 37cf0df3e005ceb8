"""The grids of multi-query associative recall (MQAR), and of the time that its training takes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Literal

import torch

from harness.grids_speed import our_impl
from mixers import GLA, HGRN1, HGRN2, Attention, Mamba, Mixer
from mixers.base_conv import BaseConv
from mixers.cross_entropy_settings import WIDTHS
from mixers.layers import Init
from tasks.backbone import Backbone
from tasks.base import Task
from tasks.mqar import protocols
from tasks.mqar.step import MQARStep
from tasks.mqar.task import MQAR, Segment
from tasks.recipe import Training

EXPAND_RATIOS = (16, 32, 64)
DENSE_LRS = tuple(10 ** (-5 + step / 4) for step in range(15))
"""Four a decade, from 1e-5 to 3.2e-2."""
LR_SEEDS = (123, 124, 125)
STEP_SHAPES = ((64, 4), (256, 16), (512, 64))
STEP_WIDTHS = (64, 256, 512)
"""Of zoology's own trainer's published speed, its batches included."""
STEPS_TOGETHER = 8
STEP_PRECISIONS = ("fp32", "tf32", "bf16_autocast")
STEP_WAYS = (
    ("graph", 1, True, False),
    ("graph", 1, True, True),
    ("graph", 7, True, False),
    ("graph", 7, True, True),
    ("graph", 1, False, False),
    ("graph", 7, False, False),
    ("graph", 4, False, False),
    ("eager", 1, False, False),
)
"""(engine, pack, compiled, fused_loss)"""


def mqar_quick(device: torch.device) -> list[Task]:
    """Recall of five mixers on short sequences: two widths, two learning rates, one seed.

    As small as recall gets: 16 tokens, 4 pairs (every second token after the pairs is a query), a
    vocabulary of 32, two layers, 640 steps of 64 rows at most.
    """
    return [
        on(
            device,
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
                training=Training(
                    lr=lr, epochs=5, batch=64, schedule="cosine_step", early_stop=0.99
                ),
                seed=0,
                data_seed=0,
            ),
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
    """Recall over model width at four lengths by zoology's ICLR 2024 Figure 2; made for GPUs."""
    return [
        on(
            device,
            protocols.iclr2024(mixer, seq_len=seq_len, kv_pairs=kv_pairs, d_model=d_model, lr=lr),
        )
        for (seq_len, kv_pairs), d_model, lr in product(
            protocols.FIGURE_CELLS, protocols.FIGURE_WIDTHS, protocols.ICLR2024_LRS
        )
        for mixer in recall_mixers(d_model, device, init="zoology")
    ]


def mqar_fig3(device: torch.device) -> list[Task]:
    """Recall over model width at four lengths by the HGRN2 paper's Figure 3; made for GPUs."""
    return [
        on(
            device,
            protocols.hgrn2_paper(
                mixer, seq_len=seq_len, kv_pairs=kv_pairs, d_model=d_model, lr=lr
            ),
        )
        for (seq_len, kv_pairs), d_model, lr in product(
            protocols.FIGURE_CELLS, protocols.FIGURE_WIDTHS, protocols.HGRN2_PAPER_LRS
        )
        for mixer in recall_mixers(d_model, device, init="zoology")
    ]


def mqar_variants(device: torch.device) -> list[Task]:
    """Recall of our variants of HGRN2 next to the paper's, as in its Figure 3; made for GPUs.

    The lower bound on; other expand ratios, which the paper ties to the width; and a short
    convolution in the place of the first layer, for HGRN2, HGRN1 and GLA.
    """
    return [
        on(device, labelled)
        for (seq_len, kv_pairs), d_model, lr in product(
            protocols.FIGURE_CELLS, protocols.FIGURE_WIDTHS[:3], protocols.HGRN2_PAPER_LRS
        )
        for mixer in recall_mixers(d_model, device, init="zoology")
        for labelled in variants(
            protocols.hgrn2_paper(mixer, seq_len=seq_len, kv_pairs=kv_pairs, d_model=d_model, lr=lr)
        )
    ]


def variants(task: MQAR) -> Iterator[MQAR]:
    """The paper's HGRN2, ours, and the hybrids; each other than the paper's with its label."""
    mixer = task.mixer
    if isinstance(mixer, HGRN2):
        yield task
        bounded = mixer.model_copy(update={"lower_bound": "cumsum"})
        yield task.model_copy(update={"mixer": bounded, "protocol": "lower bound"})
        for ratio in EXPAND_RATIOS:
            if ratio < mixer.expand_ratio:
                other = mixer.model_copy(update={"expand_ratio": ratio})
                yield task.model_copy(update={"mixer": other, "protocol": f"expand {ratio}"})
    if isinstance(mixer, HGRN2 | HGRN1 | GLA):
        yield conv_first(task).model_copy(update={"protocol": "short conv first"})


def mqar_capacity(device: torch.device) -> list[Task]:
    """Recall over state size, by Based's and zoology's mixed difficulties; made for GPUs.

    With that protocol's short convolution in the place of the first layer but for Mamba, and ours
    without it. No other project has HGRN1 and HGRN2 there.
    """
    return [
        on(device, hybrid)
        for d_model, lr in product((32, 64, 128, 256), protocols.MIXED_LRS)
        for mixer in recall_mixers(d_model, device, init="zoology", attention_heads=2)
        if d_model in ((32, 64, 128) if mixer.name == "attention" else (64, 128, 256))
        for hybrid in with_and_without_conv(protocols.mixed(mixer, d_model=d_model, lr=lr))
    ]


def with_and_without_conv(task: MQAR) -> Iterator[MQAR]:
    """The published protocol, and where it has a short convolution, the same without it."""
    if task.mixer.name == "mamba":
        yield task
        return
    yield conv_first(task)
    yield task.model_copy(update={"protocol": "mixed, no short conv"})


def conv_first(task: MQAR) -> MQAR:
    """The same with zoology's BaseConv of three taps in the place of the first layer's mixer."""
    conv = BaseConv(kernel_size=3, init="zoology")
    backbone = task.backbone.model_copy(update={"first": conv})
    return task.model_copy(update={"backbone": backbone})


def mqar_lr(device: torch.device) -> list[Task]:
    """Recall over a dense grid of learning rates, three seeds, a hard cell a mixer; made for GPUs.

    256 tokens with 16 pairs at width 128, otherwise as in Figure 3 of the HGRN2 paper: how wide is
    the window in which a mixer learns, and does the paper's grid of seven rates meet it?
    """
    return [
        on(
            device,
            # Not the paper's rates: its claim is not to be drawn from these.
            protocols.hgrn2_paper(
                mixer, seq_len=256, kv_pairs=16, d_model=128, lr=lr, seed=seed
            ).model_copy(update={"protocol": "hgrn2-paper, dense rates"}),
        )
        for seed, lr in product(LR_SEEDS, DENSE_LRS)
        for mixer in recall_mixers(128, device, init="zoology")
    ]


def mqar_step(device: torch.device) -> list[Task]:
    """Time of a training step at three lengths and widths, alone and side by side.

    Batches and model of zoology's protocol of 2024, in fp32 without TF32, in TF32, which sums in
    fp32 too, and in bf16 autocast; also through torch.compile, and at width 64 with the fused loss.
    """
    return [
        step_of(
            on(device, task.model_copy(update={"fused_loss": fused_loss})),
            pack,
            engine=engine,
            precision=precision,
            compiled=compiled,
            steps_together=STEPS_TOGETHER if engine == "graph" else 1,
        )
        for engine, pack, compiled, fused_loss in STEP_WAYS
        for precision, task in product(STEP_PRECISIONS, _timed_recall(device))
        if not (fused_loss and task.backbone.d_model not in WIDTHS)
    ]


def _timed_recall(device: torch.device) -> list[MQAR]:
    return [
        protocols.iclr2024(mixer, seq_len=seq_len, kv_pairs=kv_pairs, d_model=d_model, lr=1e-3)
        for (seq_len, kv_pairs), d_model in product(STEP_SHAPES, STEP_WIDTHS)
        for mixer in step_mixers(d_model, device)
    ]


def step_mixers(d_model: int, device: torch.device) -> list[Mixer]:
    """As the grids have them; on a GPU GLA and Mamba by the published kernels too."""
    ours = recall_mixers(d_model, device, init="zoology", wide_heads="products")
    published = [
        GLA(n_heads=2, init=gla_init("zoology"), impl="fla"),
        Mamba(init="zoology", impl="mamba_ssm"),
    ]
    return [*ours, *published] if device.type == "cuda" else ours


def step_of(task: MQAR, pack: int, **training_fields: object) -> MQARStep:
    """The time of a training step of this cell, with other settings of its training."""
    same = {name: getattr(task, name) for name in MQAR.model_fields if name != "name"}
    training = task.training.model_copy(update=training_fields)
    return MQARStep.model_validate(same | {"training": training, "pack": pack})


def on(device: torch.device, task: MQAR) -> MQAR:
    """The cell as it runs fastest on the device; its record says so."""
    if device.type != "cuda":
        return task
    fast = {"engine": "graph", "compiled": True, "steps_together": STEPS_TOGETHER}
    return task.model_copy(update={"training": task.training.model_copy(update=fast)})


def recall_mixers(
    d_model: int,
    device: torch.device,
    init: Init = "torch",
    attention_heads: int = 1,
    wide_heads: Literal["products", "reference"] = "reference",
) -> list[Mixer]:
    """The five mixers as the MQAR protocols configure them at this width; on a GPU by our kernels
    where they fit. `wide_heads`: attention's where they do not; Figure 3 began by `reference`, and
    cells of attention that it has are not trained again."""
    zoology, gpu, ours = init == "zoology", device.type == "cuda", our_impl(device)
    wide = wide_heads if gpu else "reference"
    # Dropout of the probabilities draws seeded masks: no kernel of torch's.
    seeded = "triton" if gpu and d_model // attention_heads <= 128 else wide
    return [
        HGRN2(
            preset="biased",
            expand_ratio=min(d_model, 128),
            lower_bound="off",
            init=init,
            impl=ours,
        ),
        HGRN1(kind="complex", lower_bound="off", init=init, impl=ours),
        # Our kernels take heads of 16 keys and more, a quarter of the width.
        GLA(n_heads=2, init=gla_init(init), impl="fla" if gpu and d_model < 64 else ours),
        Mamba(init=init, impl=ours),
        Attention(
            impl=seeded if zoology else "sdpa",
            n_heads=attention_heads,
            dropout=0.1 if zoology else 0.0,
            init=init,
        ),
    ]


def gla_init(init: Init) -> Init:
    """zoology scales no last map that is called o_proj, and GLA's is."""
    return "normal" if init == "zoology" else init
