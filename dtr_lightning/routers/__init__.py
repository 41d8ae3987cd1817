"""Routers: what every block may read at every denoising task."""

from dtr_lightning.routers.base import Embed, NoRouting, Route, Router
from dtr_lightning.routers.clusters import CDTR, ERCDT
from dtr_lightning.routers.controls import (
    BlockPermutedDTR,
    SharedCore,
    TimeShuffledDTR,
    WeightsOnly,
)
from dtr_lightning.routers.roaming import MaxRoaming
from dtr_lightning.routers.static import DTR, RTR, FixedMasks, MaskRouter, WindowRouter
from dtr_lightning.routers.switch import Switch
from dtr_lightning.routers.window import FreeWindow

__all__ = [
    "CDTR",
    "DTR",
    "ERCDT",
    "RTR",
    "BlockPermutedDTR",
    "Embed",
    "FixedMasks",
    "FreeWindow",
    "MaskRouter",
    "MaxRoaming",
    "NoRouting",
    "Route",
    "Router",
    "SharedCore",
    "Switch",
    "TimeShuffledDTR",
    "WeightsOnly",
    "WindowRouter",
]
