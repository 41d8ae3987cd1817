"""Routers: what every block may read at every denoising task."""

from dtr_lightning.routers.base import NoRouting, Route, Router
from dtr_lightning.routers.static import DTR, RTR, FixedMasks, MaskRouter

__all__ = ["DTR", "RTR", "FixedMasks", "MaskRouter", "NoRouting", "Route", "Router"]
