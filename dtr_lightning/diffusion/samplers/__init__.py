"""Samplers: from noise to images."""

from dtr_lightning.diffusion.samplers.base import IndexedNoise, Sampler, guided
from dtr_lightning.diffusion.samplers.flow import Euler, Heun
from dtr_lightning.diffusion.samplers.gaussian import DDIM, DDPM, DPMSolver, GaussianSampler

__all__ = [
    "DDIM",
    "DDPM",
    "DPMSolver",
    "Euler",
    "GaussianSampler",
    "Heun",
    "IndexedNoise",
    "Sampler",
    "guided",
]
