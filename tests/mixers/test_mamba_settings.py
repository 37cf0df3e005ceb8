"""Which programs Mamba's Triton kernels are launched as; no kernel runs."""

from __future__ import annotations

import pytest

from mixers.mamba_settings import BACKWARD, FORWARD, Launch, launch_of, segments_of


def test_how_many_segments():
    assert segments_of(128, 32_768) == 8
    assert segments_of(1, 2048) == 16
    assert segments_of(1, 512) == 4
    # No multiple of four grains, too few grains, and enough programs.
    assert segments_of(1, 2000) == segments_of(1, 256) == segments_of(512, 32_768) == 1
    assert segments_of(0, 512) == segments_of(1, 0) == 1


def test_programs_fill_the_device_where_they_can():
    assert launch_of(512, 1024, 16, 64, FORWARD) == Launch(32, 16, 1)
    assert launch_of(512, 1024, 24, 64, FORWARD) == Launch(16, 32, 1)
    assert launch_of(512, 1024, 1, 64, BACKWARD) == Launch(16, 1, 1)
    # Few sequences: fewer channels each, or segments.
    assert launch_of(128, 128, 16, 64, FORWARD) == Launch(16, 16, 1)
    assert launch_of(1, 128, 256, 64, FORWARD) == Launch(1, 256, 1)
    assert launch_of(1, 4096, 16, 32_768, FORWARD) == Launch(32, 16, 8)
    assert launch_of(1, 4096, 16, 32_768, BACKWARD) == Launch(16, 16, 4)
    # Both, where the length allows few segments.
    assert launch_of(1, 1024, 16, 512, FORWARD) == Launch(16, 16, 4)
    assert launch_of(1, 1024, 16, 512, BACKWARD) == Launch(8, 16, 4)


@pytest.mark.parametrize(
    ("t", "channels", "d_state", "whole"),
    [
        (16, 64, 16, True),
        (12, 64, 16, False),
        (16, 48, 16, False),
        (16, 64, 12, False),
        (0, 64, 16, False),
    ],
)
def test_what_is_whole_is_not_masked(t, channels, d_state, whole):
    assert Launch(32, 16, 1).is_whole(t, channels, d_state) is whole
