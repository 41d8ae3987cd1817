"""Processes that turn images into noise over T denoising tasks."""

from dtr_lightning.diffusion.flow import FlowMatching
from dtr_lightning.diffusion.gaussian import Diffusion, Prediction
from dtr_lightning.diffusion.process import LossConversion, Process
from dtr_lightning.diffusion.schedules import cosine_betas, linear_betas, space

__all__ = [
    "Diffusion",
    "FlowMatching",
    "LossConversion",
    "Prediction",
    "Process",
    "cosine_betas",
    "linear_betas",
    "space",
]
