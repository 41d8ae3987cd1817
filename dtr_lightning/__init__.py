"""Experiments on task routing in diffusion models (Denoising Task Routing, ICLR 2024).

From Python: load(RUN), runs(DIR), train(CONFIG, OPTIONS), and the masks.
"""

__all__ = ["load", "masks", "runs", "train"]

from importlib import import_module
from typing import Any

WHERE = {"load": "experiment.api", "runs": "experiment.api", "train": "experiment.api"}


def __getattr__(name: str) -> Any:
    """Imports what needs PyTorch only when it is asked for."""
    if name == "masks":
        return import_module("dtr_lightning.masks")
    if name in WHERE:
        return getattr(import_module(f"dtr_lightning.{WHERE[name]}"), name)
    raise AttributeError(f"module 'dtr_lightning' has no attribute {name!r}")
