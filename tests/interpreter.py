"""Triton's interpreter, faster: a pytest plugin (`-p tests.interpreter`) for interpreted_ files.

The interpreter replaces triton.language's functions by its own anew at every call of a function
that a kernel calls, two fifths of its time in attention's tests. What is replaced stays so until
the launch ends, so here it is done once a launch for each function.
"""

from __future__ import annotations

from typing import Any

import pytest
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor


@pytest.fixture(autouse=True, scope="session")
def replaced_once_a_launch():
    replace, launch = interpreter._patch_lang, GridExecutor.__call__
    replaced: set[Any] = set()

    def first_only(fn: Any) -> Any:
        if fn in replaced:
            return None
        replaced.add(fn)
        return replace(fn)

    def fresh(self: Any, *args: Any, **options: Any) -> Any:
        replaced.clear()
        return launch(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", first_only)
        patch.setattr(GridExecutor, "__call__", fresh)
        yield
