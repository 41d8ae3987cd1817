"""Denoising networks."""

from dtr_lightning.models.adm import ADM
from dtr_lightning.models.base import Denoiser, evaluation_mode
from dtr_lightning.models.dit import DiT, DiT_B, DiT_L, DiT_S, DiT_XL, SiT
from dtr_lightning.models.range_experts import RangeExperts
from dtr_lightning.models.text_dit import TextDiT

__all__ = [
    "ADM",
    "Denoiser",
    "DiT",
    "DiT_B",
    "DiT_L",
    "DiT_S",
    "DiT_XL",
    "RangeExperts",
    "SiT",
    "TextDiT",
    "evaluation_mode",
]
