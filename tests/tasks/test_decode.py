"""Decode: a step is timed at its context, in a state as large as is said."""

from __future__ import annotations

import pytest
import torch

from mixers import HGRN2, MIXERS, Attention
from tasks.base import Context
from tasks.decode import Decode

CPU = torch.device("cpu")


@pytest.mark.parametrize("mixer_class", MIXERS, ids=lambda m: m.__name__)
def test_every_mixer_decodes(mixer_class):
    mixer = mixer_class.variants()[0]
    metrics = Decode(mixer=mixer, context=8, batch=2, d_model=32, budget_s=0.01).run(Context(CPU))
    assert metrics["time_ms"] > 0
    # A cache for the context and the token that is timed.
    assert metrics["state_bytes"] == 4 * mixer.state_size(32, 9)


@pytest.mark.parametrize("mixer_class", [HGRN2, Attention], ids=lambda m: m.__name__)
def test_the_bare_operator_of_a_step_has_a_floor(mixer_class):
    task = Decode(mixer=mixer_class.variants()[0], context=8, batch=2, d_model=32, level="op")
    metrics = task.model_copy(update={"budget_s": 0.01}).run(Context(CPU))
    vectors, fp32 = 4 * 32 * 2, 4
    if mixer_class is HGRN2:
        assert metrics["state_bytes"] == fp32 * 32 * 16
        # q, z, v, y, the bound; the state read and written
        moved = 4 * vectors + fp32 * 32 + 2 * 2 * metrics["state_bytes"]
    else:
        assert metrics["state_bytes"] == fp32 * 2 * 32 * 9
        moved = 2 * vectors + 2 * metrics["state_bytes"]
    floor_s = moved / (1e9 * metrics["copy_gb_per_s"])
    assert metrics["bytes_floor_ms"] == pytest.approx(1e3 * floor_s)


def test_a_decode_step_is_timed_at_its_context_without_the_tokens_before_it():
    """A full cache, and its position: what a step sees is the whole of it."""
    seen = []

    class Watched(Attention):
        def stack(self, d_model, n_layers, *, causal, generator):
            layers = super().stack(d_model, n_layers, causal=causal, generator=generator)
            step = layers[0].step

            def watched(x, state):
                if state[0].shape[0] == 3:
                    seen.append((int(state[2]), bool((state[0] != 0).all())))
                return step(x, state)

            layers[0].step = watched
            return layers

    Decode(mixer=Watched(), context=100, batch=3, d_model=32, budget_s=0.01).run(Context(CPU))
    assert set(seen) == {(100, True)}
    assert len(seen) < 100
