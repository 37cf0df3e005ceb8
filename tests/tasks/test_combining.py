"""Which reductions torch's compiler launches as one."""

from types import SimpleNamespace

import pytest
import torch
from torch._inductor.choices import InductorChoices
from torch._inductor.codegen import triton_combo_kernel
from torch._inductor.runtime.hints import ReductionHint
from torch.torch_version import TorchVersion

from tasks.combining import KEY, rows_apart
from tasks.graphs import compiled


def node(hint: ReductionHint | None, *, held_whole: bool = False) -> SimpleNamespace:
    features = SimpleNamespace(
        is_reduction=lambda: hint is not None,
        get_reduction_hint=lambda: hint,
        held_whole=held_whole,
    )
    return SimpleNamespace(features=features)


def test_reductions_along_rows_are_apart_from_those_over_columns(monkeypatch):
    info = {
        "columns": node(ReductionHint.OUTER),
        "looked up": node(ReductionHint.DEFAULT),
        "short rows": node(ReductionHint.INNER, held_whole=True),
        "long rows": node(ReductionHint.INNER),
        "few columns": node(ReductionHint.OUTER_TINY),
        "pointwise": node(None),
    }
    groups = [[name for name in info if name != "pointwise"], ["pointwise"]]
    name = "_default_custom_combo_kernel_horizontal_partition"
    monkeypatch.setattr(triton_combo_kernel, name, lambda *_: groups)
    monkeypatch.setattr(
        InductorChoices,
        "should_use_persistent_reduction",
        staticmethod(lambda features, _: features.held_whole),
    )
    assert rows_apart(list(info), None, info) == [
        *(["columns", "short rows", "few columns"], ["looked up", "long rows"], ["pointwise"])
    ]


@pytest.mark.parametrize(("version", "ours"), [("2.11.0+cu130", True), ("2.13.0", False)])
def test_the_compiler_is_told_where_it_needs_to_be(monkeypatch, version, ours):
    name = "_custom_combo_kernel_horizontal_partition_algorithm"
    theirs = triton_combo_kernel._default_custom_combo_kernel_horizontal_partition
    monkeypatch.setattr(triton_combo_kernel, name, theirs)
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    with torch.compiler.config.patch(cache_key_tag="own"):
        compiled(torch.sin)
        compiled(torch.cos)
        assert torch.compiler.config.cache_key_tag == (f"own {KEY}" if ours else "own")
    assert getattr(triton_combo_kernel, name) is (rows_apart if ours else theirs)
