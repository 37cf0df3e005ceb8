"""What names a device: two machines of one name have to be as fast."""

from __future__ import annotations

import pytest
import torch

from harness import environment


def test_a_cpu_is_its_model_and_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cpu_model", lambda: "Xeon @ 2.50GHz")
    names: list[str] = []
    for count in (1, 2, 64):
        monkeypatch.setattr(environment, "cores", lambda count=count: count)
        names.append(environment.device_name(torch.device("cpu")))
    assert names == [f"Xeon @ 2.50GHz, {told}" for told in ("1 core", "2 cores", "64 cores")]


def test_a_setting_that_changes_a_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLA_CACHE_RESULTS", raising=False)
    assert "FLA_CACHE_RESULTS" not in environment.capture(torch.device("cpu"))
    monkeypatch.setenv("FLA_CACHE_RESULTS", "1")
    assert environment.capture(torch.device("cpu"))["FLA_CACHE_RESULTS"] == "1"
