"""What is compiled before a first call: nothing is left to compile when it launches."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from hgrn2 import Activations
from hgrn2.kernels import chunks, gla_ops, projected, scan_ops
from hgrn2.kernels.first_call import compile_before_first, compile_together, noted
from hgrn2.kernels.scan_heads import Heads

# No device has these numbers: kernels of a real one, and of another test, are not mistaken for its.
NUMBERS = itertools.count(97)


class Hopper:
    """A driver that compiles for a GPU and launches nothing."""

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.threads: set[str] = set()
        self.collecting: set[bool] = set()
        self.launched: list[str] = []
        self.number = next(NUMBERS)
        self.utils = SimpleNamespace(
            get_device_properties=lambda _: {"max_shared_mem": 227 * 1024},
            load_binary=lambda *_: (object(), 0, 0, 0, 1024),
        )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, src, metadata):
        # Python can mix up launchers that threads load at once: wrong kernels' are called.
        assert threading.current_thread() is threading.main_thread()
        return lambda *_: self.launched.append(src.fn.fn.__name__)

    def note(self, src, **_) -> None:
        self.compiled.append(src.fn.fn.__name__)
        self.threads.add(threading.current_thread().name)
        self.collecting.add(gc.isenabled())


@pytest.fixture
def hopper(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = Hopper()
    monkeypatch.setattr(driver, "_active", found)
    monkeypatch.setattr(knobs.compilation, "listener", found.note)
    return found


def hgrn2_inputs(device: str) -> tuple:
    q, z, v = (torch.zeros(1, 100, 2, 64, dtype=torch.bfloat16, device=device) for _ in range(3))
    bound = torch.zeros(2, 64, device=device)
    return chunks.forward, chunks.backward, q, z, v, bound, None, None, False, True


def hgrn2_with_all(device: str) -> tuple:
    """Heads of 16, a state and lengths."""
    q, z, v = (torch.zeros(1, 100, 2, 16, dtype=torch.bfloat16, device=device) for _ in range(3))
    state, lengths = torch.zeros(1, 2, 16, 16, device=device), torch.tensor([70], device=device)
    bound = torch.zeros(2, 16, device=device)
    return chunks.forward, chunks.backward, q, z, v, bound, state, lengths, False, True


def gla_inputs(device: str) -> tuple:
    """A key of other strides than the rest, no state."""
    q, z, v = (torch.zeros(1, 100, 2, 64, dtype=torch.bfloat16, device=device) for _ in range(3))
    key = torch.zeros(1, 100, 3, 64, dtype=torch.bfloat16, device=device)[:, :, 1:]
    return gla_ops._forward, gla_ops._backward, q, z, v, key, None, None, False, True


def projected_inputs(device: str) -> tuple:
    x = torch.zeros(1, 100, 3, 2, 64, dtype=torch.bfloat16, device=device)
    activations = Activations("sigmoid", silu_value=True)
    return x, torch.zeros(2, 64, device=device), None, activations, False, True


def hgrn1_inputs(device: str) -> tuple:
    v, z = (torch.zeros(2, 100, 32, dtype=torch.bfloat16, device=device) for _ in range(2))
    return v, z, torch.zeros(32, device=device), *5 * [None], 0, False, True


def narrow_inputs(device: str) -> tuple:
    """Two heads of 4 keys and 8 values, both directions."""
    z = torch.zeros(2, 100, 2 * 4, dtype=torch.bfloat16, device=device)
    v = torch.zeros(2, 100, 2 * 8, dtype=torch.bfloat16, device=device)
    bound = torch.zeros(Heads(2, 4, 8).channels, device=device)
    return v, z, bound, None, None, torch.zeros_like(z), None, None, 4, True, True


@pytest.mark.parametrize(
    ("passes", "inputs", "fewest"),
    [
        (chunks.passes, hgrn2_inputs, 8),
        (chunks.passes, hgrn2_with_all, 7),
        (chunks.passes, gla_inputs, 8),
        (projected._passes, projected_inputs, 8),
        (scan_ops._passes, hgrn1_inputs, 2),
        (scan_ops._passes, narrow_inputs, 4),
    ],
)
def test_nothing_is_left_to_compile(hopper, passes, inputs, fewest):
    with noted() as launches:
        passes(*inputs("meta"))
    assert not hopper.launched
    compile_together(launches)
    assert hopper.collecting == {False}
    assert gc.isenabled()
    compiled = list(hopper.compiled)
    assert len(compiled) >= fewest
    assert len(hopper.threads) > 1
    assert not hopper.launched

    passes(*inputs("cpu"))
    assert hopper.compiled == compiled
    assert hopper.launched == [launch.name for launch in launches]


def test_a_failed_compilation_is_told_and_leaves_nothing_behind(hopper, monkeypatch):
    with noted() as launches:
        chunks.passes(*hgrn2_inputs("meta"))
    one = launches[0].kernel
    # Triton gives a kernel its compiler with the first look at a device's kernels.
    assert one.device_caches[hopper.number]
    with monkeypatch.context() as broken:
        broken.setattr(one, "compile", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            compile_together(launches)
    scan_ops._passes(*hgrn1_inputs("cpu"))
    chunks.passes(*hgrn2_inputs("cpu"))
    assert hopper.launched[-len(launches) :] == [launch.name for launch in launches]


def test_noting_imports_no_compiler():
    """Seconds of a first call: run where nothing else has imported it."""
    script = (
        "import sys; from tests.hgrn2 import test_first_call as t\n"
        "with t.noted(): t.chunks.passes(*t.hgrn2_inputs('meta'))\n"
        "with t.noted(): t.projected._passes(*t.projected_inputs('meta'))\n"
        "with t.noted(): t.scan_ops._passes(*t.hgrn1_inputs('meta'))\n"
        "assert 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_without_a_gpu_nothing_is_compiled_ahead():
    def passes(*_):
        raise AssertionError("called")

    compile_before_first(passes, torch.zeros(1, 1, 1, 16), True)
