"""Every mixer that the suite compares. To add one: a file here, and its class in MIXERS."""

from mixers.attention import Attention
from mixers.base import Mixer
from mixers.gla import GLA
from mixers.hgrn1 import HGRN1
from mixers.hgrn2 import HGRN2
from mixers.mamba import Mamba

MIXERS: tuple[type[Mixer], ...] = (HGRN2, HGRN1, GLA, Mamba, Attention)

__all__ = ["GLA", "HGRN1", "HGRN2", "MIXERS", "Attention", "Mamba", "Mixer"]
