"""Denoising networks."""

from dtr_lightning.models.base import Denoiser
from dtr_lightning.models.dit import DiT, DiT_B, DiT_L, DiT_S, DiT_XL

__all__ = ["Denoiser", "DiT", "DiT_B", "DiT_L", "DiT_S", "DiT_XL"]
