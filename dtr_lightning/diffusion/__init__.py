"""Processes that turn images into noise over T denoising tasks."""

from dtr_lightning.diffusion.flow import FlowMatching
from dtr_lightning.diffusion.gaussian import Diffusion, Prediction
from dtr_lightning.diffusion.process import Factors, Process
from dtr_lightning.diffusion.schedules import cosine_betas, linear_betas, space

__all__ = [
    "Diffusion",
    "Factors",
    "FlowMatching",
    "Prediction",
    "Process",
    "cosine_betas",
    "linear_betas",
    "space",
]
