"""The published MQAR protocols, each a function from a mixer and a cell to a complete task.

Where they differ from each other they differ in a field of `MQAR`, `Backbone` or `Training`.

What all share (zoology): two layers, vocabulary 8192, tied embeddings, embedding dropout 0.1, AdamW
with weight decay 0.1 on every parameter, no warm-up, no clipping, cosine to 0 changed once an
epoch, early stop above 0.99, one seed, the best over learning rates. A block's channel mixer is
zoology's "identity", which adds a normalised copy of the stream; its Mamba blocks have RMSNorm, no
second branch and no dropout, before a final LayerNorm. Every linear map starts at N(0, 0.02^2), the
last one of a branch scaled down by sqrt(2 layers): pass mixers with `init="zoology"`. zoology's
initialisation overwrote Mamba's step sizes until January 2025; ours never does.
"""

from __future__ import annotations

from mixers.base import Mixer
from tasks.backbone import Backbone
from tasks.mqar.task import MQAR, Segment
from tasks.recipe import Training

ICLR2024_LRS = (1e-4, 10 ** (-10 / 3), 10 ** (-8 / 3), 1e-2)
HGRN2_PAPER_LRS = (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
MIXED_LRS = (1e-3, 10**-2.5, 1e-2, 10**-1.5)
FIGURE_CELLS = ((64, 4), (128, 8), (256, 16), (512, 64))
"""(seq_len, kv_pairs) of zoology's Figure 2 and of the HGRN2 paper's Figure 3."""
FIGURE_WIDTHS = (64, 128, 256, 512)
ICLR2024_BATCH = {64: 512, 128: 512, 256: 256, 512: 128, 1024: 64}
HGRN2_PAPER_BATCH = {64: 512, 128: 512, 256: 256, 512: 64}
"""Rows of a batch, by length."""

TRAIN_EXAMPLES, TEST_EXAMPLES = 100_000, 3_000


def iclr2024(
    mixer: Mixer, *, seq_len: int, kv_pairs: int, d_model: int, lr: float, seed: int = 123
) -> MQAR:
    """zoology's Figure 2 (arXiv 2312.04927, ICLR 2024) as its code has run since May 2024.

    Since then it has two layers for every mixer, since February 2024 batches in a fixed order (the
    first release shuffled). fp32; 3,000 test rows; attention alone has positions (learned); the
    last epoch's accuracy. Batches: `ICLR2024_BATCH`; learning rates: `ICLR2024_LRS`. Raises
    ValueError for a length without a published batch.
    """
    batch = _batch("iclr2024", ICLR2024_BATCH, seq_len)
    return _one_difficulty(
        mixer,
        "iclr2024",
        seq_len=seq_len,
        kv_pairs=kv_pairs,
        d_model=d_model,
        training=_training(lr, epochs=64, batch=batch),
        seed=seed,
    )


def hgrn2_paper(
    mixer: Mixer, *, seq_len: int, kv_pairs: int, d_model: int, lr: float, seed: int = 123
) -> MQAR:
    """Figure 3 of the HGRN2 paper (arXiv 2404.07904), as its authors' fork of zoology ran it.

    As `iclr2024` but: bf16 autocast in training with fp32 evaluation, batch 64 at 512 tokens,
    seven learning rates (`HGRN2_PAPER_LRS`). Its mixers: HGRN2 `biased` with expand ratio
    min(d_model, 128) and the lower bound off; HGRN1 complex, lower bound off. The fork's gradient
    scaler is left out: it multiplies by a power of two and divides again. Raises ValueError for a
    length without a published batch (`HGRN2_PAPER_BATCH`).
    """
    batch = _batch("hgrn2-paper", HGRN2_PAPER_BATCH, seq_len)
    return _one_difficulty(
        mixer,
        "hgrn2-paper",
        seq_len=seq_len,
        kv_pairs=kv_pairs,
        d_model=d_model,
        training=_training(lr, epochs=64, batch=batch, precision="bf16_autocast"),
        seed=seed,
    )


def mixed(mixer: Mixer, *, d_model: int, lr: float, seed: int = 123) -> MQAR:
    """The mixed-difficulty protocol of Based (arXiv 2402.18668) and zoology's README figure.

    Without the short convolution that is the first layer of all mixers but Mamba, H3 and Hyena
    there (`Backbone.first`).

    Five training segments from easy to hard, seven test segments of 1,000 rows whose last two
    extrapolate in length and number of pairs; random filler; batch 256 in a fixed order, 32
    epochs, fp32, no positions, the last epoch. Learning rates: `MIXED_LRS`.
    """
    train = [(64, 4, 100_000), (128, 8, 20_000), (256, 16, 20_000), (256, 32, 20_000)]
    test = [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)]
    return MQAR(
        mixer=mixer,
        protocol="mixed",
        train=tuple(_segment(*cell) for cell in [*train, (256, 64, 20_000)]),
        test=tuple(_segment(*cell, 1_000) for cell in test),
        test_batch=32,
        random_non_queries=True,
        backbone=zoology_backbone(mixer, d_model, positions=False),
        training=_training(lr, epochs=32, batch=256),
        seed=seed,
        data_seed=seed,
    )


def zoology_backbone(mixer: Mixer, d_model: int, *, positions: bool = True) -> Backbone:
    """Two layers without a real channel mixer; Mamba's blocks differ. `positions`: attention's."""
    mamba = mixer.name == "mamba"
    return Backbone(
        d_model=d_model,
        n_layers=2,
        channel_mixer="none" if mamba else "identity",
        norm="rms" if mamba else "layer",
        final_norm="layer",
        positions="learned" if positions and mixer.name == "attention" else "none",
        embed_dropout=0.0 if mamba else 0.1,
        init="zoology",
    )


def _one_difficulty(
    mixer: Mixer,
    protocol: str,
    *,
    seq_len: int,
    kv_pairs: int,
    d_model: int,
    training: Training,
    seed: int,
) -> MQAR:
    return MQAR(
        mixer=mixer,
        protocol=protocol,
        train=(_segment(seq_len, kv_pairs, TRAIN_EXAMPLES),),
        test=(_segment(seq_len, kv_pairs, TEST_EXAMPLES),),
        test_batch=training.batch,
        backbone=zoology_backbone(mixer, d_model),
        training=training,
        seed=seed,
        data_seed=seed,
    )


def _batch(protocol: str, batches: dict[int, int], seq_len: int) -> int:
    if seq_len not in batches:
        published = ", ".join(map(str, batches))
        raise ValueError(
            f"seq_len = {seq_len} has no published batch in protocol {protocol}; it should be one "
            f"of {published}, or build the MQAR task yourself"
        )
    return batches[seq_len]


def _segment(seq_len: int, kv_pairs: int, examples: int) -> Segment:
    return Segment(seq_len=seq_len, kv_pairs=kv_pairs, examples=examples)


def _training(lr: float, *, epochs: int, batch: int, precision: str = "fp32") -> Training:
    return Training.model_validate(
        {
            "lr": lr,
            "epochs": epochs,
            "batch": batch,
            "weight_decay": 0.1,
            "decay": "all",
            "schedule": "cosine_epoch",
            "precision": precision,
            "order": "fixed",
            "early_stop": 0.99,
            "report": "last",
        }
    )
