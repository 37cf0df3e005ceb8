"""The published protocols, field by field, against the facts of their papers' code."""

from __future__ import annotations

import pytest

from mixers import HGRN2, Attention, Mamba
from tasks.mqar import protocols
from tasks.mqar.protocols import hgrn2_paper, iclr2024, mixed

CELL = {"kv_pairs": 4, "d_model": 64, "lr": 1e-3}


@pytest.mark.parametrize(
    ("protocol", "batches", "precision"),
    [
        (iclr2024, {64: 512, 128: 512, 256: 256, 512: 128, 1024: 64}, "fp32"),
        (hgrn2_paper, {64: 512, 128: 512, 256: 256, 512: 64}, "bf16_autocast"),
    ],
)
def test_one_difficulty(protocol, batches, precision):
    for seq_len, batch in batches.items():
        task = protocol(HGRN2(expand_ratio=64), seq_len=seq_len, **CELL)
        training, backbone = task.training, task.backbone
        assert (training.batch, task.test_batch, training.epochs) == (batch, batch, 64)
        assert training.precision == precision
        assert (training.schedule, training.order, training.report) == (
            "cosine_epoch",
            "fixed",
            "last",
        )
        assert (training.weight_decay, training.decay, training.betas) == (0.1, "all", (0.9, 0.999))
        assert (training.early_stop, training.clip_norm, training.warmup_steps) == (0.99, None, 0)
        assert (task.vocab_size, task.power_a, task.random_non_queries) == (8192, 0.01, False)
        assert [(s.seq_len, s.kv_pairs, s.examples) for s in task.train] == [(seq_len, 4, 100_000)]
        assert [s.examples for s in task.test] == [3_000]
        assert (backbone.n_layers, backbone.channel_mixer, backbone.init) == (
            2,
            "identity",
            "zoology",
        )
        assert (backbone.positions, backbone.embed_dropout) == ("none", 0.1)
    with pytest.raises(ValueError, match="seq_len = 2048 has no published batch"):
        protocol(HGRN2(expand_ratio=64), seq_len=2048, **CELL)


def test_the_mixers_that_differ():
    attention = iclr2024(Attention(), seq_len=64, **CELL).backbone
    assert attention.positions == "learned"
    mamba = iclr2024(Mamba(), seq_len=64, **CELL).backbone
    assert (mamba.norm, mamba.final_norm, mamba.channel_mixer) == ("rms", "layer", "none")
    assert (mamba.positions, mamba.embed_dropout) == ("none", 0.0)


def test_mixed_difficulty():
    task = mixed(Attention(n_heads=2), d_model=64, lr=1e-3)
    assert [(s.seq_len, s.kv_pairs, s.examples) for s in task.train] == [
        (64, 4, 100_000),
        (128, 8, 20_000),
        (256, 16, 20_000),
        (256, 32, 20_000),
        (256, 64, 20_000),
    ]
    tested = [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)]
    assert [(s.seq_len, s.kv_pairs) for s in task.test] == tested
    assert {s.examples for s in task.test} == {1_000}
    assert task.random_non_queries
    assert (task.training.batch, task.test_batch, task.training.epochs) == (256, 32, 32)
    # Lengths beyond the training ones are tested: a learned position there would be noise.
    assert task.backbone.positions == "none"


def test_learning_rates():
    iclr, paper, mixed_lrs = (
        list(lrs)
        for lrs in (protocols.ICLR2024_LRS, protocols.HGRN2_PAPER_LRS, protocols.MIXED_LRS)
    )
    assert iclr == pytest.approx([1e-4, 4.64e-4, 2.15e-3, 1e-2], rel=3e-3)
    assert paper == [1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2]
    assert mixed_lrs == pytest.approx([1e-3, 3.2e-3, 1e-2, 3.2e-2], rel=2e-2)
