"""Where a number comes from: the `env` of a record. No host names, no paths."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import pynvml
import torch

from harness.cells import CHECKOUT, PACKAGES

DISTRIBUTIONS = {
    "triton": "triton",
    "numpy": "numpy",
    "fla": "flash-linear-attention",
    "mamba_ssm": "mamba-ssm",
    "causal_conv1d": "causal-conv1d",
}
# Variables that change which kernel or which of its settings runs; in a record where they are set.
KERNEL_SETTINGS = ("FLA_CACHE_RESULTS", "FLA_CACHE_MODE", "FLA_DISABLE_BACKEND_DISPATCH")

Env = dict[str, Any]


def checkout() -> Env:
    """The commit of the code, and whether a package of ours differs from it (both None where git
    cannot tell). Results do not count: a run writes them."""
    commit = _git("rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--", *PACKAGES))}


def _git(*arguments: str) -> str | None:
    # Without optional locks: a look at the status must not disturb another git command.
    command = ["git", "--no-optional-locks", "-C", str(CHECKOUT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def capture(device: torch.device) -> Env:
    """All that stays the same while a worker lives."""
    env: Env = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{name: version_of(distribution) for name, distribution in DISTRIBUTIONS.items()},
        "device": device_name(device),
        "device_type": device.type,
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_mib": psutil.virtual_memory().total // 2**20,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        env["device_index"] = device.index
        env["device_memory_mib"] = properties.total_memory // 2**20
        env["capability"] = f"{properties.major}.{properties.minor}"
    return env | {name: os.environ[name] for name in KERNEL_SETTINGS if name in os.environ}


def clocks(device: torch.device) -> Env:
    """The GPU's clocks and throttle bits (NVML's clock event reasons) now; None where NVML does
    not answer. Nothing on a CPU."""
    if device.type != "cuda":
        return {}
    return {
        "sm_clock_mhz": _ask(device, "nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
        "memory_clock_mhz": _ask(device, "nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM),
        "throttle_bits": _ask(device, "nvmlDeviceGetCurrentClocksThrottleReasons"),
    }


def device_name(device: torch.device) -> str:
    """What names a device in the records: "NVIDIA H200", or the CPU's model and how much of it
    this process has, "Intel(R) Xeon(R) Processor @ 2.50GHz, 2 cores"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = cores()
    return f"{cpu_model()}, {count} core{'s' if count > 1 else ''}"


@cache
def cpu_model() -> str:
    """The model of the CPU, or its architecture where the system does not tell."""
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        return name or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cores() -> int:
    """CPU cores that this process may use: its affinity, and the quota of its container."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):
        return count


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None where there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@cache
def _driver() -> str | None:
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def _ask(device: torch.device, question: str, *arguments: int) -> int | None:
    try:
        pynvml.nvmlInit()
        # By UUID: NVML does not know CUDA_VISIBLE_DEVICES.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return int(getattr(pynvml, question)(handle, *arguments))
    except pynvml.NVMLError:
        return None
