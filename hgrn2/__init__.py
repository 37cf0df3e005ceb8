"""The operators of HGRN2 and HGRN1. Needs torch alone (and triton, for `impl="triton"`)."""

from hgrn2.api import (
    IMPLS,
    Impl,
    hgrn1,
    hgrn1_bidirectional,
    hgrn2,
    hgrn2_bidirectional,
    hgrn2_projected,
    hgrn2_step,
    unsupported,
)
from hgrn2.projection import Activations

__all__ = [
    "IMPLS",
    "Activations",
    "Impl",
    "hgrn1",
    "hgrn1_bidirectional",
    "hgrn2",
    "hgrn2_bidirectional",
    "hgrn2_projected",
    "hgrn2_step",
    "unsupported",
]
