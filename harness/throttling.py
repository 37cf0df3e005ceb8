"""Whether a GPU's clock was its own when a record was made. Imports no torch."""

from __future__ import annotations

from typing import Any

import pynvml

SLOWED = (
    pynvml.nvmlClocksThrottleReasonHwSlowdown
    | pynvml.nvmlClocksThrottleReasonSwThermalSlowdown
    | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
    | pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
)
"""Of `throttle_bits`: a GPU too hot, or too poorly fed, for its clock. Its power limit is not among
them: work that meets that limit meets it on every such GPU."""


def slowed(env: dict[str, Any]) -> bool:
    """Whether the GPU was so when the record was made."""
    return (env.get("throttle_bits") or 0) & SLOWED != 0
