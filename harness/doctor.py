"""What works on this machine: the device, the versions, many machines, every mixer and
implementation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import torch
from pydantic import ValidationError

from harness import environment
from harness.plan import find_devices
from mixers import MIXERS, Mixer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SETTINGS = {("HGRN1", impl): {"kind": "real"} for impl in ("fla_chunk", "fla_recurrent")}
"""What an implementation takes where it does not take the mixer's defaults."""
FAN_OUT = {"ray": ("ray", "run --ray"), "submitit": ("slurm", "submit")}
"""A library for many machines: its extra, and the command that needs it."""


def examine(device: str | None) -> Iterator[str]:
    """The lines of `mixerbench doctor`."""
    first = find_devices(device)[0]
    for name, value in (environment.checkout() | environment.capture(first)).items():
        yield f"{name:<16}  {'not there' if value is None else value}"
    for library, (extra, command) in FAN_OUT.items():
        missing = f"not there; mixerbench {command} needs it: pip install -e '.[{extra}]'"
        yield f"{library:<16}  {environment.version_of(library) or missing}"
    yield ""
    for mixer in MIXERS:
        for impl in get_args(mixer.model_fields["impl"].annotation):
            yield f"{mixer.__name__:<10}  {impl:<13}  {_verdict(mixer, impl, first)}"


def _verdict(mixer: type[Mixer], impl: str, device: torch.device) -> str:
    try:
        # A mixer's own name is a default of its class.
        made = mixer.model_validate({"impl": impl} | SETTINGS.get((mixer.__name__, impl), {}))
    except ValidationError as error:
        return f"needs more settings: {error.errors()[0]['msg']}"
    reasons = {name: made.unsupported(device, dtype) for name, dtype in DTYPES.items()}
    if not any(reasons.values()):
        return "ok"
    if len(set(reasons.values())) == 1:
        return str(next(iter(reasons.values())))
    return "; ".join(f"{name}: {reason or 'ok'}" for name, reason in reasons.items())
