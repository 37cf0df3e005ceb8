"""The operators of HGRN2, HGRN1 and gated linear attention. Needs torch alone (and triton, for
`impl="triton"`)."""

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
from hgrn2.api_gla import gla, gla_bidirectional, gla_step
from hgrn2.projection import Activations

__all__ = [
    "IMPLS",
    "Activations",
    "Impl",
    "gla",
    "gla_bidirectional",
    "gla_step",
    "hgrn1",
    "hgrn1_bidirectional",
    "hgrn2",
    "hgrn2_bidirectional",
    "hgrn2_projected",
    "hgrn2_step",
    "unsupported",
]
