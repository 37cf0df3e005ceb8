"""Which reductions torch's compiler launches as one."""

from types import SimpleNamespace

import pytest
import torch
from torch._inductor.codegen import triton_combo_kernel
from torch._inductor.runtime.hints import ReductionHint
from torch.torch_version import TorchVersion

from tasks.combining import by_direction
from tasks.graphs import compiled


def node(hint: ReductionHint | None) -> SimpleNamespace:
    features = SimpleNamespace(
        is_reduction=lambda: hint is not None, get_reduction_hint=lambda: hint
    )
    return SimpleNamespace(features=features)


def test_reductions_of_unknown_layout_are_apart_from_those_over_columns(monkeypatch):
    info = {
        "columns": node(ReductionHint.OUTER),
        "looked up": node(ReductionHint.DEFAULT),
        "rows": node(ReductionHint.INNER),
        "looked up too": node(ReductionHint.DEFAULT),
        "pointwise": node(None),
    }
    groups = [["columns", "looked up", "rows", "looked up too"], ["pointwise"]]
    monkeypatch.setattr(
        triton_combo_kernel,
        "_default_custom_combo_kernel_horizontal_partition",
        lambda *_: groups,
    )
    found = by_direction(list(info), None, info)
    assert found == [["columns", "rows"], ["looked up", "looked up too"], ["pointwise"]]


@pytest.mark.parametrize(("version", "ours"), [("2.11.0+cu130", True), ("2.13.0", False)])
def test_the_compiler_is_told_where_it_needs_to_be(monkeypatch, version, ours):
    name = "_custom_combo_kernel_horizontal_partition_algorithm"
    theirs = triton_combo_kernel._default_custom_combo_kernel_horizontal_partition
    monkeypatch.setattr(triton_combo_kernel, name, theirs)
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    compiled(torch.sin)
    assert getattr(triton_combo_kernel, name) is (by_direction if ours else theirs)
