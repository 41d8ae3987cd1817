"""Routers: what every block may read at every denoising task."""

from dtr_lightning.routing.controls import (
    BlockPermutedDTR,
    SharedCore,
    TimeShuffledDTR,
    WeightsOnly,
)
from dtr_lightning.routing.max_roaming import MaxRoaming
from dtr_lightning.routing.router import Embed, NoRouting, Route, Router
from dtr_lightning.routing.switch import Switch
from dtr_lightning.routing.tables import (
    CDTR,
    DTR,
    ERCDT,
    RTR,
    FixedMasks,
    FreeWindow,
    MaskRouter,
    WindowRouter,
)

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
