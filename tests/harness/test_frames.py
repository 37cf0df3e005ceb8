"""Records become tidy rows: nothing lost, nothing mixed unasked."""

from __future__ import annotations

import pytest

from harness.frames import flatten

TASK = {
    "name": "mqar",
    "mixer": {"name": "hgrn2", "impl": "triton", "expand": 64, "dropout": 0.0},
    "backbone": {"d_model": 128, "dropout": 0.1, "name": "plain"},
    "training": {"lr": 1e-3, "schedule": {"warmup": 0}},
    "segments": [{"seq_len": 64, "kv_pairs": 4}],
    "seed": 1,
}


def test_flatten_names_leaves_by_their_own_name_where_it_is_unique():
    assert flatten(TASK) == {
        "task": "mqar",
        "mixer": "hgrn2",
        "impl": "triton",
        "expand": 64,
        "mixer_dropout": 0.0,
        "d_model": 128,
        "backbone_dropout": 0.1,
        "backbone_name": "plain",
        "lr": 1e-3,
        "warmup": 0,
        "segments": '[{"kv_pairs":4,"seq_len":64}]',
        "seed": 1,
    }


def test_flatten_keeps_the_bare_name_for_a_field_of_the_task_itself():
    row = flatten({"name": "speed", "d_model": 64, "mixer": {"name": "gla", "d_model": 32}})
    assert (row["d_model"], row["mixer_d_model"]) == (64, 32)


def test_flatten_refuses_two_fields_that_would_share_a_column():
    with pytest.raises(ValueError, match="a_x"):
        flatten({"name": "t", "a_x": 1, "a": {"x": 2}, "b": {"x": 3}})
