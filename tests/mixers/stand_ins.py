"""Stand-ins for the peers' packages: their functions' signatures over our eager forms, so that what
surrounds the kernels is tested where the kernels do not run."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from torch import Tensor

from hgrn2.reference import diagonal_scan, gated_chunked, gated_recurrent


def install(monkeypatch: pytest.MonkeyPatch, functions: dict[str, dict[str, object]]) -> None:
    """Put modules of these functions, and packages around them, in the place of the real ones."""
    for name, contents in functions.items():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            package = ".".join(parts[:depth])
            if not isinstance(sys.modules.get(package), StandIn):
                monkeypatch.setitem(sys.modules, package, StandIn(package))
        module = StandIn(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)


class StandIn(ModuleType):
    __path__ = ()


def chunk_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float) -> tuple[Tensor, None]:
    return gated_chunked(q * scale, k, v, g.exp())[0], None


def fused_recurrent_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    gk: Tensor,
    scale: float,
    initial_state: Tensor,
    output_final_state: bool,
) -> tuple[Tensor, Tensor]:
    assert output_final_state
    return gated_recurrent(q * scale, k, v, gk.exp(), state=initial_state)


def hgrn(
    x: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Both of FLA's scans; the last state has x's dtype, as there."""
    h, last = diagonal_scan(g.exp(), x.to(g.dtype), state=initial_state)
    return h.to(x.dtype), last.to(x.dtype) if output_final_state else None


FLA = {
    "fla.ops.gla": {"chunk_gla": chunk_gla, "fused_recurrent_gla": fused_recurrent_gla},
    "fla.ops.hgrn": {"chunk_hgrn": hgrn, "fused_recurrent_hgrn": hgrn},
}
